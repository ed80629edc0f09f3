// The step of a tile of samples with vectors. Included for each instruction set, inside its
// namespace, after mlp/chain/noise_simd.h.

// langevin_element(), or noise_element() without kGradient, for all elements; noise may be null.
template <int kVectors, bool kGradient>
FASTEBM_TARGET void update(const MlpChainParams& p, const Tile& tile,
                           const LaneNoise<kVectors>* noise) {
  constexpr int kPanel = kVectors * kLanes;
  const Floats clip = set(static_cast<float>(p.step.grad_clip)), unclip = sub(set(0.0f), clip);
  const Floats lo = set(static_cast<float>(p.step.lo)), hi = set(static_cast<float>(p.step.hi));
  const Floats displacement = set(static_cast<float>(p.step.displacement_clip));
  for (int64_t block = 0; 4 * block < p.mlp.dim; ++block)
    for (int v = 0; v < kVectors; ++v) {
      const int lane = v * kLanes;
      Normals n{};
      if (noise) n = normals_of_tile(*noise, block, v, p.mlp.dim - 4 * block <= 2);
      const Floats down = sub(set(0.0f), load(tile.step + lane)), scale = load(tile.scale + lane);
      const Floats sigma = load(tile.sigma + lane);
      for (int64_t i = 4 * block; i < std::min(4 * block + 4, p.mlp.dim); ++i) {
        const int64_t at = i * kPanel + lane;
        const Floats from = load(tile.x + at);
        Floats y = from;
        if (kGradient) {
          const Floats g = mul(scale, load(tile.grad + at));
          y = fma(down, min(clip, max(unclip, g)), y);
        }
        y = fma(sigma, n.v[i % 4], y);
        if (kGradient) {
          y = min(add(from, displacement), max(sub(from, displacement), y));
          y = p.lo ? min(set(p.hi[i]), max(set(p.lo[i]), y)) : min(hi, max(lo, y));
        }
        store(tile.x + at, y);
      }
    }
}
