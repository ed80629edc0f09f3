// The noise of a tile's samples for simd/plain.h, one sample after another. Included after it.

// NoiseKey and the ids of the samples.
template <int kVectors>
struct LaneNoise {
  NoiseKey key;
  uint64_t id[kVectors * kLanes];

  LaneNoise(const MlpChainParams& p, const Tile& tile) { lane_ids(p, tile, kVectors * kLanes, id); }
  void set_key(const NoiseKey& k) { key = k; }
};

struct Normals {
  Floats v[4];
};

// Of the v-th kLanes samples.
template <int kVectors>
Normals normals_of_tile(const LaneNoise<kVectors>& noise, int64_t block, int v, bool) {
  Normals n;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Normals4 of =
        normals4(noise.key, noise.id[v * kLanes + lane], static_cast<uint32_t>(block));
    for (int i = 0; i < 4; ++i) n.v[i][lane] = of.v[i];
  }
  return n;
}

// A uniform number in [0, 1) of each of the v-th kLanes samples, from word 0 of their block 0.
template <int kVectors>
Floats uniforms_of_tile(const LaneNoise<kVectors>& noise, int v) {
  Floats u;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Words4 c = noise_counter(noise.key, noise.id[v * kLanes + lane], 0);
    const auto k0 = static_cast<uint32_t>(noise.key.key);
    u[lane] = uniform_of(philox4x32(c, k0, static_cast<uint32_t>(noise.key.key >> 32)).v[0]);
  }
  return u;
}
