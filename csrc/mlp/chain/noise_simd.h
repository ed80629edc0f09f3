// The noise of a tile's samples, in lanes. Included for each instruction set, inside its namespace,
// after random/philox_simd.h.

// NoiseKey and the ids of the samples.
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
  // Another step or tag of the same stream.
  FASTEBM_TARGET void set_key(const NoiseKey& k) {
    keys.step = set_wide(k.step);
    keys.tag = set_wide(k.tag << 24);
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

// A uniform number in [0, 1) of each of the v-th kLanes samples, from word 0 of their block 0.
template <int kVectors>
FASTEBM_TARGET inline Floats uniforms_of_tile(const LaneNoise<kVectors>& noise, int v) {
  return normals_by_lane<2, UniformLaw>(noise.keys, 0, noise.ids[v]).v[0];
}
