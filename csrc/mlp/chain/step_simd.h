// Noise and step for a tile of samples with vectors. Included for each instruction set, inside its
// namespace, after random/philox_simd.h.

// The noise of a tile's samples: NoiseKey and their ids, in lanes.
template <int kVectors>
struct LaneNoise {
  RoundKeys keys;
  Counters ids[kVectors];

  FASTEBM_TARGET LaneNoise(const MlpChainParams& p, const Tile& tile)
      : keys(round_keys(noise_key(p.step))) {
    uint64_t id[kVectors * kLanes];
    lane_ids(p, tile, kVectors * kLanes, id);
    for (int v = 0; v < kVectors; ++v) ids[v] = counters_by_lane(id + v * kLanes);
  }
  FASTEBM_TARGET void set_step(const MlpChainParams& p, int64_t k) {
    keys.step = set_wide(chain_noise_key(p, k).step);
  }
};

// Of the v-th kLanes samples; with `pair` the first two elements of the block, which suffice for
// the last block of some samples.
template <int kVectors>
FASTEBM_TARGET inline Normals normals_of_tile(const LaneNoise<kVectors>& noise, int64_t block,
                                              int v, bool pair) {
  const auto at = static_cast<uint64_t>(block);
  return pair ? normals_by_lane<2>(noise.keys, at, noise.ids[v])
              : normals_by_lane(noise.keys, at, noise.ids[v]);
}

// langevin_element(), or noise_element() without kGradient, for all elements; noise may be null.
template <int kVectors, bool kGradient>
FASTEBM_TARGET void update(const MlpChainParams& p, const Tile& tile,
                           const LaneNoise<kVectors>* noise) {
  constexpr int kPanel = kVectors * kLanes;
  const Floats clip = set(static_cast<float>(p.step.grad_clip)), unclip = sub(set(0.0f), clip);
  const Floats lo = set(static_cast<float>(p.step.lo)), hi = set(static_cast<float>(p.step.hi));
  for (int64_t block = 0; 4 * block < p.mlp.dim; ++block)
    for (int v = 0; v < kVectors; ++v) {
      const int lane = v * kLanes;
      Normals n{};
      if (noise) n = normals_of_tile(*noise, block, v, p.mlp.dim - 4 * block <= 2);
      const Floats down = sub(set(0.0f), load(tile.step + lane)), scale = load(tile.scale + lane);
      const Floats sigma = load(tile.sigma + lane);
      for (int64_t i = 4 * block; i < std::min(4 * block + 4, p.mlp.dim); ++i) {
        const int64_t at = i * kPanel + lane;
        Floats y = load(tile.x + at);
        if (kGradient) {
          const Floats g = mul(scale, load(tile.grad + at));
          y = fma(down, min(clip, max(unclip, g)), y);
        }
        y = fma(sigma, n.v[i % 4], y);
        store(tile.x + at, kGradient ? min(hi, max(lo, y)) : y);
      }
    }
}
