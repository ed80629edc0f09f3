// A step of the trajectories of a tile of samples on a CPU. Included for each instruction set,
// inside its namespace, after random/row_noise*.h and launch/row_tiles.h; the compiler makes
// vectors of its loops: over samples of up to kShortDim elements, else over elements.

template <class C>
struct TrajectoryTile {
  int64_t first;
  int rows;
  alignas(64) uint64_t ids[kTileRows];
  alignas(64) float normals[2 * kTileRows];  // that decide
  alignas(64) float uniform[kTileRows];
  alignas(64) C h[kTileRows], temperature[kTileRows], square[kTileRows];
  alignas(64) int32_t inside[kTileRows], accepted[kTileRows];
  alignas(64) float noise[kTileFloats + 4 * kMaxLanes];

  // The tile's part of an array (B, D).
  template <class P>
  FASTEBM_TARGET P* of(P* array, int64_t dim) const {
    return array + first * dim;
  }
};

template <class C>
FASTEBM_TARGET void set_steps(const HamiltonianParams& p, bool next, const NoiseStream& jitter,
                              TrajectoryTile<C>* tile) {
  const PerSample& step = next ? p.next_step_size : p.step_size;
  const PerSample& temperature = next ? p.next_temperature : p.temperature;
  if (p.jitter > 0)
    first_uniforms(jitter, tile->ids, tile->rows, tile->uniform);
  else
    std::fill_n(tile->uniform, tile->rows, 0.0f);
  for (int i = 0; i < tile->rows; ++i) {
    const auto u = static_cast<C>(tile->uniform[i]);
    tile->h[i] = jittered(step_of<C>(step, tile->first + i), static_cast<C>(p.jitter), u);
    tile->temperature[i] = scale_of<C>(temperature, tile->first + i);
  }
}

template <class C, int kDim>
FASTEBM_TARGET void advance(const HamiltonianParams& p, const TrajectoryTile<C>& tile) {
  const int64_t dim = kDim > 0 ? kDim : p.dim;
  C *y = tile.of(static_cast<C*>(p.y), dim), *v = tile.of(static_cast<C*>(p.v), dim);
  const C* g = tile.of(static_cast<const C*>(p.grad_y), dim);
  for (int i = 0; i < tile.rows; ++i)
#pragma GCC unroll 4
    for (int64_t j = i * dim; j < (i + 1) * dim; ++j) {
      const C speed = kicked(v[j], g[j], tile.h[i]);
      v[j] = speed;
      y[j] = moved(y[j], speed, tile.h[i]);
    }
}

// square[i] = |v|^2 after the last half kick, which is not written.
template <class C, int kDim>
FASTEBM_TARGET void last_squares(const HamiltonianParams& p, int threads, TrajectoryTile<C>* tile) {
  const C* v = tile->of(static_cast<const C*>(p.v), p.dim);
  const C* g = tile->of(static_cast<const C*>(p.grad_y), p.dim);
  if constexpr (kDim > 0) {
    for (int i = 0; i < tile->rows; ++i) {
      C last[kDim];
#pragma GCC unroll 4
      for (int d = 0; d < kDim; ++d)
        last[d] = kicked(v[i * kDim + d], g[i * kDim + d], C(0.5) * tile->h[i]);
      tile->square[i] = short_product<kDim>(last, last);
    }
    return;
  }
  for (int i = 0; i < tile->rows; ++i, v += p.dim, g += p.dim) {
    Partials<C, 1> sum;
    sum.clear(threads);
    const C half = C(0.5) * tile->h[i];
    for (int64_t at = 0; at < p.dim; at += kPartials)
      for (int64_t d = 0; d < std::min<int64_t>(kPartials, p.dim - at); ++d) {
        const C last = kicked(v[at + d], g[at + d], half);
        sum.v[0][d] = fma_rn(last, last, sum.v[0][d]);
      }
    sum.fold(threads, &tile->square[i]);
  }
}

template <class C>
FASTEBM_TARGET void decide(const HamiltonianParams& p, TrajectoryTile<C>* tile) {
  C* energy = static_cast<C*>(p.energy) + tile->first;
  const C* e_y = static_cast<const C*>(p.e_y) + tile->first;
  const C* kinetic = static_cast<const C*>(p.kinetic) + tile->first;
  float* acceptances = p.acceptance + tile->first;
  int32_t* divergent = p.divergent + tile->first;
  for (int i = 0; i < tile->rows; ++i) {
    const C log_r = log_ratio(energy[i], e_y[i], kinetic[i], tile->square[i], tile->temperature[i]);
    const C of_inside = tile->inside[i] ? log_r : static_cast<C>(NAN);
    const bool accepted = is_accepted(of_inside, tile->normals[i], tile->normals[kTileRows + i]);
    divergent[i] += is_divergent(log_r);
    acceptances[i] += acceptance(static_cast<float>(of_inside));
    energy[i] = accepted ? e_y[i] : energy[i];
    tile->accepted[i] = accepted;
  }
}

template <class C, int kDim>
FASTEBM_TARGET void begin_short(const HamiltonianParams& p, TrajectoryTile<C>* tile,
                                const NoiseStream& stream) {
  first_normals<(kDim > 2 ? 4 : 2)>(stream, tile->ids, tile->rows, kTileRows, tile->noise);
  C *y = tile->of(static_cast<C*>(p.y), kDim), *v = tile->of(static_cast<C*>(p.v), kDim);
  const C* x = tile->of(static_cast<const C*>(p.x), kDim);
  const C* g = tile->of(static_cast<const C*>(p.grad), kDim);
  for (int i = 0; i < tile->rows; ++i) {
    const C h = tile->h[i], width = std::sqrt(tile->temperature[i]);
    C start[kDim];
#pragma GCC unroll 4
    for (int d = 0; d < kDim; ++d) {
      const int j = i * kDim + d;
      start[d] = width * static_cast<C>(tile->noise[d * kTileRows + i]);
      const C speed = kicked(start[d], g[j], C(0.5) * h);
      v[j] = speed;
      y[j] = moved(x[j], speed, h);
    }
    tile->square[i] = short_product<kDim>(start, start);
  }
}

template <class C>
FASTEBM_TARGET void begin_long(const HamiltonianParams& p, int threads, TrajectoryTile<C>* tile,
                               const NoiseStream& stream) {
  const int64_t at_once = tile->rows == 1 ? kTileFloats : p.dim, padded = (p.dim + 3) / 4 * 4;
  Partials<C, 1> sum;
  sum.clear(threads);
  for (int64_t from = 0; from < p.dim; from += at_once) {
    const int64_t all = std::min(at_once, p.dim - from);
    row_normals(stream, tile->ids, tile->rows, from / 4, (all + 3) / 4, tile->noise);
    for (int i = 0; i < tile->rows; ++i) {
      const C h = tile->h[i], half = C(0.5) * h, width = std::sqrt(tile->temperature[i]);
      for (int64_t piece = 0; piece < all; piece += kPartials) {
        const int64_t at = (tile->first + i) * p.dim + from + piece;
        const C *x = static_cast<const C*>(p.x) + at, *g = static_cast<const C*>(p.grad) + at;
        C *y = static_cast<C*>(p.y) + at, *v = static_cast<C*>(p.v) + at;
        const float* n = tile->noise + i * padded + piece;
        for (int64_t d = 0; d < std::min<int64_t>(kPartials, all - piece); ++d) {
          const C start = width * static_cast<C>(n[d]), speed = kicked(start, g[d], half);
          sum.v[0][d] = fma_rn(start, start, sum.v[0][d]);
          v[d] = speed;
          y[d] = moved(x[d], speed, h);
        }
      }
      if (tile->rows == 1 && from + all < p.dim) continue;
      sum.fold(threads, &tile->square[i]);
      sum.clear(threads);
    }
  }
}

// Samples [begin, end). kDim: their number of elements, or 0 where that is more than kShortDim.
template <class C, int kDim>
FASTEBM_TARGET void run_step(const HamiltonianParams& p, int64_t begin, int64_t end) {
  const bool ends = p.e_y, goes_on = p.grad_y;
  const NoiseStream deciding(noise_key(p, false, kAcceptTag));
  const NoiseStream jitter(noise_key(p, false, kJitterTag));
  const NoiseStream next_jitter(noise_key(p, ends, kJitterTag));
  const NoiseStream velocities(noise_key(p, ends, kVelocityTag));
  const int threads = threads_of_row(p.dim), rows = tile_rows(p.dim);
  TrajectoryTile<C> tile;
  for (tile.first = begin; tile.first < end; tile.first += rows) {
    tile.rows = static_cast<int>(std::min<int64_t>(rows, end - tile.first));
    for (int i = 0; i < (tile.rows + kMaxLanes - 1) / kMaxLanes * kMaxLanes; ++i)
      tile.ids[i] = sample_id(p, tile.first + std::min(i, tile.rows - 1));
    if (goes_on) {
      set_steps(p, false, jitter, &tile);
      if (!ends) {
        advance<C, kDim>(p, tile);
        continue;
      }
      last_squares<C, kDim>(p, threads, &tile);
      first_normals<2>(deciding, tile.ids, tile.rows, kTileRows, tile.normals);
      C* y = tile.of(static_cast<C*>(p.y), p.dim);
      find_inside<kDim>(p.box, y, p.dim, tile.first, tile.rows, tile.inside);
      decide(p, &tile);
      accept_rows<kDim>(p.dim, tile.rows, tile.accepted, tile.of(static_cast<C*>(p.x), p.dim),
                        tile.of(static_cast<C*>(p.grad), p.dim), y,
                        tile.of(static_cast<const C*>(p.grad_y), p.dim));
    }
    if (!p.begin) continue;
    set_steps(p, true, next_jitter, &tile);
    if constexpr (kDim > 0)
      begin_short<C, kDim>(p, &tile, velocities);
    else
      begin_long(p, threads, &tile, velocities);
    for (int i = 0; i < tile.rows; ++i)
      static_cast<C*>(p.kinetic)[tile.first + i] = C(0.5) * tile.square[i];
  }
}
