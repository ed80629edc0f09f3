// Underdamped chains of a tile of samples, a sample to a lane. Included for each instruction set,
// inside its namespace, after mlp/chain/gradient_simd.h and what defines LaneNoise and
// normals_of_tile().

// The coefficients of step k for each lane.
template <int kVectors>
FASTEBM_TARGET void set_coefficients(const MlpUnderdampedParams& p, const UnderdampedTile& tile,
                                     int64_t k) {
  const Tile& to = tile.to;
  for (int lane = 0; lane < kVectors * kLanes; ++lane) {
    const int64_t row = to.first + std::min(lane, to.count - 1);
    const UnderdampedCoefficients<float> c = underdamped_coefficients(p, k, row);
    tile.kick[lane] = c.kick;
    tile.decay[lane] = c.decay;
    to.step[lane] = c.drift;
    to.sigma[lane] = c.sigma;
  }
}

// reflect() of underdamped/underdamped.h for kLanes samples.
FASTEBM_TARGET inline void reflect(Floats* x, Floats* v, Floats lo, Floats hi) {
  const Floats face = pick_less(*x, lo, lo, hi), mirrored = sub(face, sub(*x, face));
  const Floats turned = sub(set(0.0f), *v);
  *v = pick_less(*x, lo, turned, pick_less(hi, *x, turned, *v));
  const Floats inside = pick_less(*x, lo, mirrored, pick_less(hi, *x, mirrored, *x));
  *x = min(hi, max(lo, inside));
}

// underdamped_element() for all elements; without noise sigma is not looked at.
template <int kVectors>
FASTEBM_TARGET void update(const MlpUnderdampedParams& p, const UnderdampedTile& tile,
                           const LaneNoise<kVectors>* noise) {
  constexpr int kPanel = kVectors * kLanes;
  const Tile& to = tile.to;
  const int64_t dim = p.chain.mlp.dim;
  for (int64_t block = 0; 4 * block < dim; ++block)
    for (int v = 0; v < kVectors; ++v) {
      const int lane = v * kLanes;
      Normals n{};
      if (noise) n = normals_of_tile(*noise, block, v, dim - 4 * block <= 2);
      const Floats down = sub(set(0.0f), load(tile.kick + lane)), drift = load(to.step + lane);
      const Floats decay = load(tile.decay + lane), sigma = load(to.sigma + lane);
      for (int64_t d = 4 * block; d < std::min(4 * block + 4, dim); ++d) {
        const int64_t at = d * kPanel + lane;
        const auto move = [&](Floats* x, Floats* velocity) FASTEBM_TARGET {
          *x = fma(drift, *velocity, *x);
          if (p.lo) reflect(x, velocity, set(p.lo[d]), set(p.hi[d]));
        };
        Floats x = load(to.x + at);
        Floats velocity = fma(down, load(to.grad + at), load(tile.velocity + at));
        move(&x, &velocity);
        velocity = fma(sigma, n.v[d % 4], mul(decay, velocity));
        move(&x, &velocity);
        store(to.x + at, x);
        store(tile.velocity + at, velocity);
      }
    }
}

template <int kVectors>
FASTEBM_TARGET void run_tile(const MlpUnderdampedParams& p, const UnderdampedTile& tile) {
  constexpr int kPanel = kVectors * kLanes;
  const MlpChainParams& chain = p.chain;
  const Tile& to = tile.to;
  const int64_t dim = chain.mlp.dim, at = to.first * dim;
  float* x = static_cast<float*>(chain.step.out) + at;
  load_tile(x, dim, to.count, kPanel, to.x);
  load_tile(p.velocity + at, dim, to.count, kPanel, tile.velocity);
  load_row_bias(chain, to, kPanel);
  if (p.known)
    load_tile(chain.grad + at, dim, to.count, kPanel, to.grad);
  else
    gradient<kVectors>(chain, to, chain.n_steps == 0);
  const bool noisy = chain.step.noise_stds || chain.step.noise_std != 0;
  LaneNoise<kVectors> noise(chain, to);
  for (int64_t k = 0; k < chain.n_steps; ++k) {
    noise.set_key(chain_noise_key(chain, k));
    set_coefficients<kVectors>(p, tile, k);
    update<kVectors>(p, tile, noisy ? &noise : nullptr);
    gradient<kVectors>(chain, to, k == chain.n_steps - 1);
  }
  store_tile(to.x, dim, to.count, kPanel, x);
  store_tile(tile.velocity, dim, to.count, kPanel, p.velocity + at);
  store_tile(to.grad, dim, to.count, kPanel, chain.grad + at);
  std::copy_n(to.energy, to.count, chain.energy + to.first);
}

// Samples [begin, end), two vectors of them at a time.
FASTEBM_TARGET inline void run(const MlpUnderdampedParams& p, UnderdampedTile tile, int64_t begin,
                               int64_t end) {
  for (tile.to.first = begin; tile.to.first < end; tile.to.first += tile.to.count) {
    tile.to.count = static_cast<int>(std::min<int64_t>(2 * kLanes, end - tile.to.first));
    if (tile.to.count > kLanes)
      run_tile<2>(p, tile);
    else
      run_tile<1>(p, tile);
  }
}
