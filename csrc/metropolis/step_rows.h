// A transition of a tile of samples on a CPU. Included for each instruction set, inside its
// namespace, after random/row_noise*.h and launch/row_tiles.h; the compiler makes vectors of its
// loops: over samples of up to kShortDim elements, else over elements.

// What is known of the samples of a tile.
template <class C>
struct StepTile {
  int64_t first;
  int rows;
  alignas(64) uint64_t ids[kTileRows];
  alignas(64) float normals[2 * kTileRows];  // that decide
  alignas(64) C along_x[kTileRows], along_y[kTileRows], square_x[kTileRows], square_y[kTileRows];
  alignas(64) C step[kTileRows], sigma[kTileRows], drift[kTileRows], log_r[kTileRows];
  alignas(64) int32_t inside[kTileRows], accepted[kTileRows];
  alignas(64) float noise[kTileFloats + 4 * kMaxLanes];
};

template <class C>
FASTEBM_TARGET void set_coefficients(const PerSample& step, const PerSample& sigma,
                                     StepTile<C>* tile) {
  for (int i = 0; i < tile->rows; ++i) {
    tile->step[i] = step_of<C>(step, tile->first + i);
    tile->sigma[i] = scale_of<C>(sigma, tile->first + i);
  }
}

// Sums of samples of kDim elements; square_x alone where nothing is decided.
template <class C, int kDim>
FASTEBM_TARGET void sum_short(const MetropolisStepParams& p, StepTile<C>* tile) {
  const int64_t at = tile->first * kDim;
  const C *x = static_cast<const C*>(p.x) + at, *g_x = static_cast<const C*>(p.grad) + at;
  const C *y = static_cast<const C*>(p.y) + at, *g_y = static_cast<const C*>(p.grad_y) + at;
  for (int i = 0; i < tile->rows; ++i)
    tile->square_x[i] = short_product<kDim>(g_x + i * kDim, g_x + i * kDim);
  if (!p.e_y) return;
  for (int i = 0; i < tile->rows; ++i) {
    C u[kDim];
#pragma GCC unroll 4
    for (int d = 0; d < kDim; ++d) u[d] = y[i * kDim + d] - x[i * kDim + d];
    tile->along_x[i] = short_product<kDim>(u, g_x + i * kDim);
    tile->along_y[i] = short_product<kDim>(u, g_y + i * kDim);
    tile->square_y[i] = short_product<kDim>(g_y + i * kDim, g_y + i * kDim);
  }
}

template <class C>
FASTEBM_TARGET void sum_long(const MetropolisStepParams& p, int threads, StepTile<C>* tile) {
  for (int i = 0; i < tile->rows; ++i) {
    const int64_t row = (tile->first + i) * p.dim;
    if (!p.e_y) {
      Partials<C, 1> sums;
      sums.clear(threads);
      const C* g = static_cast<const C*>(p.grad) + row;
      for (int64_t at = 0; at < p.dim; at += kPartials)
        for (int64_t d = 0; d < std::min<int64_t>(kPartials, p.dim - at); ++d)
          sums.v[0][d] = fma_rn(g[at + d], g[at + d], sums.v[0][d]);
      sums.fold(threads, &tile->square_x[i]);
      continue;
    }
    Partials<C, 4> sums;
    sums.clear(threads);
    for (int64_t at = 0; at < p.dim; at += kPartials) {
      const C *x = static_cast<const C*>(p.x) + row + at,
              *y = static_cast<const C*>(p.y) + row + at;
      const C* g_x = static_cast<const C*>(p.grad) + row + at;
      const C* g_y = static_cast<const C*>(p.grad_y) + row + at;
      const int64_t count = std::min<int64_t>(kPartials, p.dim - at);
      for (int64_t d = 0; d < count; ++d) {
        const C u = y[d] - x[d];
        sums.v[0][d] = fma_rn(u, g_x[d], sums.v[0][d]);
        sums.v[1][d] = fma_rn(u, g_y[d], sums.v[1][d]);
        sums.v[2][d] = fma_rn(g_x[d], g_x[d], sums.v[2][d]);
        sums.v[3][d] = fma_rn(g_y[d], g_y[d], sums.v[3][d]);
      }
    }
    C found[4];
    sums.fold(threads, found);
    tile->along_x[i] = found[0];
    tile->along_y[i] = found[1];
    tile->square_x[i] = found[2];
    tile->square_y[i] = found[3];
  }
}

template <class C, bool kJump>
FASTEBM_TARGET void decide(const MetropolisStepParams& p, StepTile<C>* tile) {
  float* acceptances = p.acceptance + (kJump ? p.batch : 0) + tile->first;
  C* energy = static_cast<C*>(p.energy) + tile->first;
  const C* e_y = static_cast<const C*>(p.e_y) + tile->first;
  for (int i = 0; i < tile->rows; ++i) {
    const ProposalSums<C> sums = {tile->along_x[i], tile->along_y[i], tile->square_x[i],
                                  tile->square_y[i]};
    tile->log_r[i] = log_ratio_of<C, kJump>(p, tile->first + i, energy[i], sums, tile->step[i],
                                            tile->sigma[i], tile->inside[i] != 0);
  }
  for (int i = 0; i < tile->rows; ++i) {
    const bool accepted =
        is_accepted(tile->log_r[i], tile->normals[i], tile->normals[kTileRows + i]);
    const float probability = acceptance(static_cast<float>(tile->log_r[i]));
    acceptances[i] += kJump ? (accepted ? 1.0f : 0.0f) : probability;
    energy[i] = accepted ? e_y[i] : energy[i];
    tile->square_x[i] = accepted ? tile->square_y[i] : tile->square_x[i];
    tile->accepted[i] = accepted;
  }
}

template <class C, int kDim>
FASTEBM_TARGET void propose_short(const MetropolisStepParams& p, StepTile<C>* tile,
                                  const NoiseStream& stream) {
  first_normals<(kDim > 2 ? 4 : 2)>(stream, tile->ids, tile->rows, kTileRows, tile->noise);
  const int64_t at = tile->first * kDim;
  const C *x = static_cast<const C*>(p.x) + at, *g = static_cast<const C*>(p.grad) + at;
  C* y = static_cast<C*>(p.y) + at;
  for (int i = 0; i < tile->rows; ++i)
#pragma GCC unroll 4
    for (int d = 0; d < kDim; ++d) {
      const int j = i * kDim + d;
      y[j] = propose_element(x[j], g[j], tile->drift[i], tile->sigma[i],
                             static_cast<C>(tile->noise[d * kTileRows + i]));
    }
}

template <class C>
FASTEBM_TARGET void propose_long(const MetropolisStepParams& p, StepTile<C>* tile,
                                 const NoiseStream& stream) {
  const int64_t at_once = tile->rows == 1 ? kTileFloats : p.dim, padded = (p.dim + 3) / 4 * 4;
  for (int64_t from = 0; from < p.dim; from += at_once) {
    const int64_t count = std::min(at_once, p.dim - from);
    row_normals(stream, tile->ids, tile->rows, from / 4, (count + 3) / 4, tile->noise);
    for (int i = 0; i < tile->rows; ++i) {
      const int64_t at = (tile->first + i) * p.dim + from;
      const C *x = static_cast<const C*>(p.x) + at, *g = static_cast<const C*>(p.grad) + at;
      C* y = static_cast<C*>(p.y) + at;
      const float* n = tile->noise + i * padded;
      const C drift = tile->drift[i], sigma = tile->sigma[i];
      for (int64_t d = 0; d < count; ++d)
        y[d] = propose_element(x[d], g[d], drift, sigma, static_cast<C>(n[d]));
    }
  }
}

// Samples [begin, end). kDim: their number of elements, or 0 where that is more than kShortDim.
template <class C, int kDim>
FASTEBM_TARGET void run_step(const MetropolisStepParams& p, int64_t begin, int64_t end) {
  const NoiseStream deciding(accept_key(p)), proposing(proposal_key(p));
  const int threads = threads_of_row(p.dim), rows = tile_rows(p.dim);
  const C root_dim = std::sqrt(static_cast<C>(p.dim));
  StepTile<C> tile;
  for (tile.first = begin; tile.first < end; tile.first += rows) {
    tile.rows = static_cast<int>(std::min<int64_t>(rows, end - tile.first));
    for (int i = 0; i < (tile.rows + kMaxLanes - 1) / kMaxLanes * kMaxLanes; ++i)
      tile.ids[i] = sample_id(p, tile.first + std::min(i, tile.rows - 1));
    if constexpr (kDim > 0)
      sum_short<C, kDim>(p, &tile);
    else
      sum_long(p, threads, &tile);
    if (p.e_y) {
      set_coefficients(p.step_size, p.noise_std, &tile);
      first_normals<2>(deciding, tile.ids, tile.rows, kTileRows, tile.normals);
      find_inside<kDim>(p.box, static_cast<const C*>(p.y) + tile.first * p.dim, p.dim, tile.first,
                        tile.rows, tile.inside);
      if (p.log_factor)
        decide<C, true>(p, &tile);
      else
        decide<C, false>(p, &tile);
      const int64_t at = tile.first * p.dim;
      accept_rows<kDim>(p.dim, tile.rows, tile.accepted, static_cast<C*>(p.x) + at,
                        static_cast<C*>(p.grad) + at, static_cast<const C*>(p.y) + at,
                        static_cast<const C*>(p.grad_y) + at);
    }
    if (!p.propose) continue;
    set_coefficients(p.next_step_size, p.next_noise_std, &tile);
    for (int i = 0; i < tile.rows; ++i)
      tile.drift[i] = drift_step(tile.step[i], tile.sigma[i], root_dim, tile.square_x[i]);
    if constexpr (kDim > 0)
      propose_short<C, kDim>(p, &tile, proposing);
    else
      propose_long(p, &tile, proposing);
  }
}
