// Adjusted chains of a tile of samples, a sample to a lane: the formulas of
// metropolis/metropolis.h, operation by operation. Included for each instruction set, inside its
// namespace, after mlp/chain/gradient_simd.h and what defines LaneNoise and normals_of_tile().

// The coefficients of transition k for each lane.
template <int kVectors>
FASTEBM_TARGET void set_coefficients(const MlpAdjustedParams& p, const Tile& tile, int64_t k) {
  for (int lane = 0; lane < kVectors * kLanes; ++lane) {
    const int64_t row = tile.first + std::min(lane, tile.count - 1);
    const RowCoefficients<float> c = adjusted_coefficients(p, k, row);
    tile.step[lane] = c.step;
    tile.sigma[lane] = c.sigma;
  }
}

FASTEBM_TARGET inline Floats drift_steps(Floats step, Floats sigma, Floats root_dim,
                                         Floats square) {
  const Floats most = div(mul(sigma, root_dim), sqrt(square));
  return pick_less(most, step, most, step);
}

// y = x - a(x) g(x) + sigma n.
template <int kVectors>
FASTEBM_TARGET void propose(int64_t dim, const AdjustedTile& tile,
                            const LaneNoise<kVectors>& noise) {
  constexpr int kPanel = kVectors * kLanes;
  const Floats root_dim = set(std::sqrt(static_cast<float>(dim)));
  for (int v = 0; v < kVectors; ++v) {
    const int lane = v * kLanes;
    Floats square = set(0.0f);
    for (int64_t d = 0; d < dim; ++d) {
      const Floats g = load(tile.grad + d * kPanel + lane);
      square = fma(g, g, square);
    }
    const Floats sigma = load(tile.to.sigma + lane);
    const Floats drift = drift_steps(load(tile.to.step + lane), sigma, root_dim, square);
    store(tile.square + lane, square);
    store(tile.drift + lane, drift);
    const Floats down = sub(set(0.0f), drift);
    for (int64_t block = 0; 4 * block < dim; ++block) {
      const Normals n = normals_of_tile(noise, block, v, dim - 4 * block <= 2);
      for (int64_t d = 4 * block; d < std::min(4 * block + 4, dim); ++d) {
        const int64_t at = d * kPanel + lane;
        const Floats y = fma(down, load(tile.grad + at), load(tile.x + at));
        store(tile.to.x + at, fma(sigma, n.v[d % 4], y));
      }
    }
  }
}

// Each lane for itself: its centres are in no lane beside it.
FASTEBM_TARGET inline void propose_jumps(const MlpAdjustedParams& p, const AdjustedTile& tile,
                                         int64_t k, int64_t panel) {
  NoiseKey key = chain_noise_key(p.chain, k);
  key.tag = kJumpTag;
  for (int lane = 0; lane < tile.to.count; ++lane) {
    const uint64_t id = sample_id(p.chain.step, tile.to.first + lane);
    tile.factor[lane] =
        jump_sample(p.jumps, key, id, tile.x + lane, tile.to.x + lane, Strided{panel});
  }
}

// Of the kLanes samples from `lane` on: log_ratio(), or jump_log_ratio().
template <int kPanel, bool kJump>
FASTEBM_TARGET inline Floats log_ratios(int64_t dim, const AdjustedTile& tile, int lane) {
  const Floats step = load(tile.to.step + lane), sigma = load(tile.to.sigma + lane);
  const Floats fall = sub(load(tile.energy + lane), load(tile.to.energy + lane));
  Floats sum = mul(mul(set(2.0f), step), fall);
  if (!kJump) {
    const Floats zero = set(0.0f);
    Floats along_x = zero, along_y = zero, square_y = zero;
    for (int64_t at = lane; at < dim * kPanel; at += kPanel) {
      const Floats u = sub(load(tile.to.x + at), load(tile.x + at)), g_y = load(tile.to.grad + at);
      along_x = fma(u, load(tile.grad + at), along_x);
      along_y = fma(u, g_y, along_y);
      square_y = fma(g_y, g_y, square_y);
    }
    const Floats root_dim = set(std::sqrt(static_cast<float>(dim)));
    const Floats a_x = load(tile.drift + lane), a_y = drift_steps(step, sigma, root_dim, square_y);
    const Floats squares =
        sub(mul(mul(a_y, a_y), square_y), mul(mul(a_x, a_x), load(tile.square + lane)));
    sum = add(sum, sub(add(mul(a_x, along_x), mul(a_y, along_y)), mul(set(0.5f), squares)));
  }
  const Floats ratio = div(sum, mul(sigma, sigma));
  return kJump ? add(ratio, load(tile.factor + lane)) : ratio;
}

// NaN in the lanes whose proposal is outside of the box, else 0.
template <int kPanel>
FASTEBM_TARGET inline Floats outside(const MlpAdjustedParams& p, const AdjustedTile& tile,
                                     int lane) {
  const Floats nan = set(std::numeric_limits<float>::quiet_NaN());
  Floats mark = set(0.0f);
  const JumpTargets& box = p.jumps;
  for (int64_t d = 0; box.lo && d < p.chain.mlp.dim; ++d) {
    const Floats y = load(tile.to.x + d * kPanel + lane);
    mark = pick_less(y, set(box.lo[d]), nan, mark);
    mark = pick_less(set(box.hi[d]), y, nan, mark);
  }
  return mark;
}

// Accepts what is proposed, or leaves it. `noise` is that of kAcceptTag.
template <int kVectors, bool kJump>
FASTEBM_TARGET void decide(const MlpAdjustedParams& p, const AdjustedTile& tile,
                           const LaneNoise<kVectors>& noise) {
  constexpr int kPanel = kVectors * kLanes;
  const int64_t dim = p.chain.mlp.dim;
  const Floats zero = set(0.0f), one = set(1.0f);
  for (int v = 0; v < kVectors; ++v) {
    const int lane = v * kLanes;
    const Floats log_r =
        add(log_ratios<kPanel, kJump>(dim, tile, lane), outside<kPanel>(p, tile, lane));
    const Normals n = normals_of_tile(noise, 0, v, true);
    const Floats log_u = mul(set(-0.5f), add(mul(n.v[0], n.v[0]), mul(n.v[1], n.v[1])));
    const auto accept = [&](float* from, const float* to) FASTEBM_TARGET {
      store(from, pick_less(log_u, log_r, load(to), load(from)));
    };
    for (int64_t at = lane; at < dim * kPanel; at += kPanel) {
      accept(tile.x + at, tile.to.x + at);
      accept(tile.grad + at, tile.to.grad + at);
    }
    accept(tile.energy + lane, tile.to.energy + lane);
    float* counted = (kJump ? tile.jumps : tile.proposals) + lane;
    // max() gives its second operand for NaN
    const Floats share = kJump ? pick_less(log_u, log_r, one, zero)
                               : max(exp_minus(max(zero, sub(zero, log_r))), zero);
    store(counted, add(load(counted), share));
  }
}

template <int kVectors>
FASTEBM_TARGET void run_tile(const MlpAdjustedParams& p, const AdjustedTile& tile) {
  constexpr int kPanel = kVectors * kLanes;
  const MlpChainParams& chain = p.chain;
  const Tile& to = tile.to;
  const int64_t dim = chain.mlp.dim, at = to.first * dim, batch = chain.step.batch;
  float *x = static_cast<float*>(chain.step.out) + at, *energy = chain.energy + to.first;
  float *proposals = p.acceptance + to.first, *jumps = proposals + batch;
  load_tile(x, dim, to.count, kPanel, tile.x);
  load_row_bias(chain, to, kPanel);
  std::copy_n(tile.x, dim * kPanel, to.x);  // also of the lanes without a sample
  std::fill_n(tile.factor, kPanel, 0.0f);
  if (p.known) {
    load_tile(chain.grad + at, dim, to.count, kPanel, tile.grad);
    load_tile(energy, 1, to.count, kPanel, tile.energy);
  } else {
    gradient<kVectors>(chain, to, true);
    std::copy_n(to.grad, dim * kPanel, tile.grad);
    std::copy_n(to.energy, kPanel, tile.energy);
  }
  load_tile(proposals, 1, to.count, kPanel, tile.proposals);
  load_tile(jumps, 1, to.count, kPanel, tile.jumps);
  LaneNoise<kVectors> noise(chain, to);
  for (int64_t k = 0; k < chain.n_steps; ++k) {
    const bool jump = is_jump(p, k);
    NoiseKey key = chain_noise_key(chain, k);
    set_coefficients<kVectors>(p, to, k);
    if (jump) {
      propose_jumps(p, tile, k, kPanel);
    } else {
      noise.set_key(key);
      propose<kVectors>(dim, tile, noise);
    }
    gradient<kVectors>(chain, to, true);
    key.tag = kAcceptTag;
    noise.set_key(key);
    if (jump)
      decide<kVectors, true>(p, tile, noise);
    else
      decide<kVectors, false>(p, tile, noise);
  }
  store_tile(tile.x, dim, to.count, kPanel, x);
  store_tile(tile.grad, dim, to.count, kPanel, chain.grad + at);
  std::copy_n(tile.energy, to.count, energy);
  std::copy_n(tile.proposals, to.count, proposals);
  std::copy_n(tile.jumps, to.count, jumps);
}

// Samples [begin, end), two vectors of them at a time.
FASTEBM_TARGET inline void run(const MlpAdjustedParams& p, AdjustedTile tile, int64_t begin,
                               int64_t end) {
  for (tile.to.first = begin; tile.to.first < end; tile.to.first += tile.to.count) {
    tile.to.count = static_cast<int>(std::min<int64_t>(2 * kLanes, end - tile.to.first));
    if (tile.to.count > kLanes)
      run_tile<2>(p, tile);
    else
      run_tile<1>(p, tile);
  }
}
