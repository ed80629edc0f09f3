// The chain of a tile of samples, a sample to a lane. Included for each instruction set, inside its
// namespace, after mlp/chain/gradient_simd.h and what defines LaneNoise and update().

// The coefficients of step k for each lane.
template <int kVectors>
FASTEBM_TARGET void set_coefficients(const MlpChainParams& p, const Tile& tile, int64_t k) {
  for (int lane = 0; lane < kVectors * kLanes; ++lane) {
    const int64_t row = tile.first + std::min(lane, tile.count - 1);
    const RowCoefficients<float> c = chain_coefficients(p, k, row, 1.0f);
    tile.step[lane] = c.step;
    tile.sigma[lane] = c.sigma;
    tile.scale[lane] = c.scale;
  }
}

template <int kVectors>
FASTEBM_TARGET void clip_norms(const MlpChainParams& p, const Tile& tile) {
  constexpr int kPanel = kVectors * kLanes;
  double sums[kPanel] = {};
  for (int64_t i = 0; i < p.mlp.dim; ++i)
    for (int lane = 0; lane < kPanel; ++lane) {
      const double g = tile.grad[i * kPanel + lane];
      sums[lane] += g * g;
    }
  for (int lane = 0; lane < kPanel; ++lane)
    tile.scale[lane] = norm_clip_scale<float>(sums[lane], p.step.grad_norm_clip);
}

template <int kVectors>
FASTEBM_TARGET void run_tile(const MlpChainParams& p, const Tile& tile) {
  constexpr int kPanel = kVectors * kLanes;
  const int64_t dim = p.mlp.dim, at = tile.first * dim;
  float* x = static_cast<float*>(p.step.out) + at;
  load_tile(x, dim, tile.count, kPanel, tile.x);
  load_row_bias(p, tile, kPanel);
  const bool noisy = p.step.noise_stds || p.step.noise_std != 0;
  LaneNoise<kVectors> noise(p, tile);
  for (int64_t k = 0; k < p.n_steps; ++k) {
    const bool last = k == p.n_steps - 1;
    noise.set_key(chain_noise_key(p, k));
    set_coefficients<kVectors>(p, tile, k);
    if (p.noise_first) {
      if (noisy) update<kVectors, false>(p, tile, &noise);
      std::fill_n(tile.sigma, kPanel, 0.0f);
    }
    gradient<kVectors>(p, tile, last && p.energy);
    if (last && p.grad) store_tile(tile.grad, dim, tile.count, kPanel, p.grad + at);
    if (p.step.grad_norm_clip < std::numeric_limits<double>::infinity())
      clip_norms<kVectors>(p, tile);
    update<kVectors, true>(p, tile, noisy && !p.noise_first ? &noise : nullptr);
  }
  store_tile(tile.x, dim, tile.count, kPanel, x);
  if (p.energy) std::copy_n(tile.energy, tile.count, p.energy + tile.first);
}

// Samples [begin, end), two vectors of them at a time.
FASTEBM_TARGET inline void run(const MlpChainParams& p, Tile tile, int64_t begin, int64_t end) {
  for (tile.first = begin; tile.first < end; tile.first += tile.count) {
    tile.count = static_cast<int>(std::min<int64_t>(2 * kLanes, end - tile.first));
    if (tile.count > kLanes)
      run_tile<2>(p, tile);
    else
      run_tile<1>(p, tile);
  }
}
