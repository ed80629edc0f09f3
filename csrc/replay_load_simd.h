// Reading a sample with vectors: the bits of load_block(). Included for each instruction set that
// philox_simd.h is, after it.

// Writes every element of sample `row`; `to` may be the output itself.
template <class T>
FASTEBM_TARGET void load_sample(const ReplayParams& p, int64_t row, int64_t slot, float* to) {
  constexpr int64_t kStep = 4 * kLanes;  // elements of kLanes blocks
  const bool random = slot == -1 ? p.init != Initial::kZero : slot >= 0 && needs_dither<T>(p);
  const int64_t vector_end = slot == -2 ? 0 : p.dim / kStep * kStep;
  const Floats lo = set(p.lo), step = set(level_step(p)), range = set(p.hi - p.lo);
  if (random && vector_end > 0) {
    const NoiseKey key = replay_key(p, kReplayTag);
    const RoundKeys keys = round_keys(key);
    const SampleWords words = sample_words(key, sample_id(p, row));
    const bool normal = slot == -1 && p.init == Initial::kNormal;
    for (int64_t at = 0; at < vector_end; at += kStep) {
      const Counters block = counters_ascending(static_cast<uint64_t>(at / 4));
      const Normals n = normal ? normals_of_sample<NormalLaw>(keys, words, block)
                               : normals_of_sample<UniformLaw>(keys, words, block);
      for (int i = 0; i < 4; ++i) {
        Floats value = n.v[i];
        if (slot >= 0) {
          const auto* q = static_cast<const uint8_t*>(p.data) + slot * p.dim + at + i * kLanes;
          const Floats u = add(set(kDitherFrom), mul(set(kDitherRange), value));
          value = add(lo, mul(add(load_bytes(q), u), step));
        } else if (!normal) {
          value = add(lo, mul(range, value));
        }
        store(to + at + i * kLanes, value);
      }
    }
  } else if (slot >= 0) {
    const T* from = static_cast<const T*>(p.data) + slot * p.dim;
    for (int64_t at = 0; at < vector_end; at += kLanes) {
      if constexpr (sizeof(T) == 1)
        store(to + at, add(lo, mul(add(load_bytes(from + at), set(0.5f)), step)));
      else
        store(to + at, load(from + at));
    }
  } else {
    std::memset(to, 0, sizeof(float) * static_cast<size_t>(vector_end));
  }
  for (int64_t block = vector_end / 4; 4 * block < p.dim; ++block)
    load_block<T>(p, row, slot, block, to + 4 * block);
}
