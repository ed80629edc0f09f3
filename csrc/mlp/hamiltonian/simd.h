// Hamiltonian chains of a tile of samples, a sample to a lane. Included for each instruction set,
// inside its namespace, after mlp/chain/gradient_simd.h and what defines LaneNoise,
// normals_of_tile() and uniforms_of_tile().

// Steps, jittered(), and temperatures of trajectory k for each lane; `noise` is that of kJitterTag.
template <int kVectors>
FASTEBM_TARGET void set_coefficients(const MlpHmcParams& p, const HmcTile& tile, int64_t k,
                                     const LaneNoise<kVectors>& noise) {
  const Tile& to = tile.to;
  for (int lane = 0; lane < kVectors * kLanes; ++lane) {
    const int64_t row = to.first + std::min(lane, to.count - 1);
    to.step[lane] = chain_coefficients(p.chain, k, row, 1.0f).step;
    tile.temperature[lane] = trajectory_temperature(p, k, row);
  }
  if (p.jitter == 0) return;
  const Floats one = set(1.0f), jitter = set(static_cast<float>(p.jitter));
  for (int v = 0; v < kVectors; ++v) {
    const Floats u = uniforms_of_tile(noise, v);
    const Floats factor = add(one, mul(jitter, sub(add(u, u), one)));
    store(to.step + v * kLanes, mul(load(to.step + v * kLanes), factor));
  }
}

// Velocities, and their kinetic energies; `noise` is that of kVelocityTag.
template <int kVectors>
FASTEBM_TARGET void draw_velocities(int64_t dim, const HmcTile& tile,
                                    const LaneNoise<kVectors>& noise) {
  constexpr int kPanel = kVectors * kLanes;
  for (int v = 0; v < kVectors; ++v) {
    const int lane = v * kLanes;
    const Floats sigma = sqrt(load(tile.temperature + lane));
    Floats square = set(0.0f);
    for (int64_t block = 0; 4 * block < dim; ++block) {
      const Normals n = normals_of_tile(noise, block, v, dim - 4 * block <= 2);
      for (int64_t d = 4 * block; d < std::min(4 * block + 4, dim); ++d) {
        const Floats velocity = mul(sigma, n.v[d % 4]);
        store(tile.velocity + d * kPanel + lane, velocity);
        square = fma(velocity, velocity, square);
      }
    }
    store(tile.kinetic + lane, mul(set(0.5f), square));
  }
}

// v -= share h g, x += h v.
template <int kVectors>
FASTEBM_TARGET void kick_and_drift(int64_t dim, const HmcTile& tile, float share) {
  Floats step[kVectors], down[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    step[v] = load(tile.to.step + v * kLanes);
    down[v] = mul(set(-share), step[v]);
  }
  for (int64_t d = 0, at = 0; d < dim; ++d)
    for (int v = 0; v < kVectors; ++v, at += kLanes) {
      const Floats velocity = fma(down[v], load(tile.to.grad + at), load(tile.velocity + at));
      store(tile.velocity + at, velocity);
      store(tile.to.x + at, fma(step[v], velocity, load(tile.to.x + at)));
    }
}

// Kinetic energies after the last half of a kick, of the kLanes samples from `lane` on.
template <int kPanel>
FASTEBM_TARGET inline Floats kinetic_energies(int64_t dim, const HmcTile& tile, int lane) {
  const Floats down = mul(set(-0.5f), load(tile.to.step + lane));
  Floats square = set(0.0f);
  for (int64_t at = lane; at < dim * kPanel; at += kPanel) {
    const Floats velocity = fma(down, load(tile.to.grad + at), load(tile.velocity + at));
    square = fma(velocity, velocity, square);
  }
  return mul(set(0.5f), square);
}

// NaN in the lanes whose end is outside of the box, else 0.
template <int kPanel>
FASTEBM_TARGET inline Floats outside(const MlpHmcParams& p, const float* x, int lane) {
  const Floats nan = set(std::numeric_limits<float>::quiet_NaN());
  Floats mark = set(0.0f);
  for (int64_t d = 0; p.lo && d < p.chain.mlp.dim; ++d) {
    const Floats y = load(x + d * kPanel + lane);
    mark = pick_less(y, set(p.lo[d]), nan, mark);
    mark = pick_less(set(p.hi[d]), y, nan, mark);
  }
  return mark;
}

// Accepts where trajectories end, or goes back to where they began. `noise` is that of kAcceptTag.
template <int kVectors>
FASTEBM_TARGET void decide(const MlpHmcParams& p, const HmcTile& tile,
                           const LaneNoise<kVectors>& noise) {
  constexpr int kPanel = kVectors * kLanes;
  const Tile& to = tile.to;
  const int64_t dim = p.chain.mlp.dim;
  const Floats zero = set(0.0f), one = set(1.0f);
  const Floats above = set(std::nextafter(static_cast<float>(kDivergence), INFINITY));
  for (int v = 0; v < kVectors; ++v) {
    const int lane = v * kLanes;
    const Floats fall =
        add(sub(load(tile.energy + lane), load(to.energy + lane)),
            sub(load(tile.kinetic + lane), kinetic_energies<kPanel>(dim, tile, lane)));
    const Floats error = div(fall, load(tile.temperature + lane));
    const Floats log_r = add(error, outside<kPanel>(p, to.x, lane));
    const Normals n = normals_of_tile(noise, 0, v, true);
    const Floats log_u = mul(set(-0.5f), add(mul(n.v[0], n.v[0]), mul(n.v[1], n.v[1])));
    const auto accept = [&](float* from, float* end) FASTEBM_TARGET {
      const Floats now = pick_less(log_u, log_r, load(end), load(from));
      store(from, now);
      store(end, now);
    };
    for (int64_t at = lane; at < dim * kPanel; at += kPanel) {
      accept(tile.x + at, to.x + at);
      accept(tile.grad + at, to.grad + at);
    }
    accept(tile.energy + lane, to.energy + lane);
    const auto count = [&](float* sums, Floats share)
                           FASTEBM_TARGET { store(sums + lane, add(load(sums + lane), share)); };
    // max() gives its second operand for NaN
    count(tile.acceptance, max(exp_minus(max(zero, sub(zero, log_r))), zero));
    count(tile.divergent, pick_less(abs(error), above, zero, one));
  }
}

template <int kVectors>
FASTEBM_TARGET void run_tile(const MlpHmcParams& p, const HmcTile& tile) {
  constexpr int kPanel = kVectors * kLanes;
  const MlpChainParams& chain = p.chain;
  const Tile& to = tile.to;
  const int64_t dim = chain.mlp.dim, at = to.first * dim;
  float* x = static_cast<float*>(chain.step.out) + at;
  load_tile(x, dim, to.count, kPanel, to.x);
  load_row_bias(chain, to, kPanel);
  if (p.known) {
    load_tile(chain.grad + at, dim, to.count, kPanel, to.grad);
    load_tile(chain.energy + to.first, 1, to.count, kPanel, to.energy);
  } else {
    gradient<kVectors>(chain, to, true);
  }
  std::copy_n(to.x, dim * kPanel, tile.x);
  std::copy_n(to.grad, dim * kPanel, tile.grad);
  std::copy_n(to.energy, kPanel, tile.energy);
  load_tile(p.acceptance + to.first, 1, to.count, kPanel, tile.acceptance);
  std::fill_n(tile.divergent, kPanel, 0.0f);
  LaneNoise<kVectors> noise(chain, to);
  for (int64_t k = 0; k < chain.n_steps; ++k) {
    NoiseKey key = chain_noise_key(chain, k);
    const auto take = [&](uint32_t tag) FASTEBM_TARGET -> const LaneNoise<kVectors>& {
      key.tag = tag;
      noise.set_key(key);
      return noise;
    };
    set_coefficients<kVectors>(p, tile, k, take(kJitterTag));
    draw_velocities<kVectors>(dim, tile, take(kVelocityTag));
    for (int64_t l = 0; l < p.n_leapfrog; ++l) {
      kick_and_drift<kVectors>(dim, tile, l == 0 ? 0.5f : 1.0f);
      gradient<kVectors>(chain, to, l == p.n_leapfrog - 1);
    }
    decide<kVectors>(p, tile, take(kAcceptTag));
  }
  store_tile(tile.x, dim, to.count, kPanel, x);
  store_tile(tile.grad, dim, to.count, kPanel, chain.grad + at);
  std::copy_n(tile.energy, to.count, chain.energy + to.first);
  std::copy_n(tile.acceptance, to.count, p.acceptance + to.first);
  for (int lane = 0; lane < to.count; ++lane)
    p.divergent[to.first + lane] += static_cast<int32_t>(tile.divergent[lane]);
}

// Samples [begin, end), two vectors of them at a time.
FASTEBM_TARGET inline void run(const MlpHmcParams& p, HmcTile tile, int64_t begin, int64_t end) {
  for (tile.to.first = begin; tile.to.first < end; tile.to.first += tile.to.count) {
    tile.to.count = static_cast<int>(std::min<int64_t>(2 * kLanes, end - tile.to.first));
    if (tile.to.count > kLanes)
      run_tile<2>(p, tile);
    else
      run_tile<1>(p, tile);
  }
}
