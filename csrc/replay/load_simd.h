// Reading a sample with vectors: the bits of load_block(). Included after
// random/philox_simd.h, for each instruction set that has it.

// Writes the elements [begin, end) of sample `id` to the same places of `to`, and maybe others of
// the blocks that they are in.
template <class T>
FASTEBM_TARGET void load_sample(const ReplayParams& p, uint64_t id, int64_t slot, int64_t begin,
                                int64_t end, float* to) {
  constexpr int64_t kStep = 4 * kLanes;  // elements of kLanes blocks
  int64_t done = begin / 4 * 4;          // a block's start, up to which elements are written
  const bool random = slot == -1 ? p.init != Initial::kZero : slot >= 0 && needs_dither<T>(p);
  const Floats lo = set(p.lo), step = set(level_step(p)), range = set(p.hi - p.lo);
  if (random && end - done >= kStep) {
    const NoiseKey key = replay_key(p, kReplayTag);
    const RoundKeys keys = round_keys(key);
    const SampleWords words = sample_words(key, id);
    const bool normal = slot == -1 && p.init == Initial::kNormal;
    const int64_t last = (end - kStep) / 4 * 4;  // the last step repeats what it must
    for (int64_t at = done; done < last + kStep; at = std::min(at + kStep, last)) {
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
      done = at + kStep;
    }
  } else if (!random && slot >= 0) {
    const T* from = static_cast<const T*>(p.data) + slot * p.dim;
    for (; done + kLanes <= end; done += kLanes) {
      if constexpr (sizeof(T) == 1)
        store(to + done, add(lo, mul(add(load_bytes(from + done), set(0.5f)), step)));
      else
        store(to + done, load(from + done));
    }
  }
  for (int64_t block = done / 4; 4 * block < end; ++block)
    load_block<T>(p, id, slot, block, to + 4 * block);
}
