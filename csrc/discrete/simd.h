// The moves of a discrete sample weighted with vectors. Included once for each instruction set,
// inside its namespace, after random/philox_simd.h, random/log_simd.h and simd/exp.h.

// PlainWeights of discrete/row.h, 4 kLanes moves at a time.
struct VectorWeights {
  const NoiseKey& key;
  const RoundKeys& keys;

  // Of the moves from `first` on; -infinity after the last one.
  FASTEBM_TARGET static void logits(const Weighed& w, int64_t first, float* logit) {
    const int count = static_cast<int>(std::min<int64_t>(4 * kLanes, w.dim - first));
    if (w.categories || count < 4 * kLanes) {
      std::fill_n(logit, 4 * kLanes, -INFINITY);
      logits_of(w, first, count, logit);
      return;
    }
    for (int i = 0; i < 4 * kLanes; i += kLanes) {
      const Floats sign = fma(set(2.0f), load(w.x + first + i), set(-1.0f));
      store(logit + i, mul(mul(sign, load(w.grad + first + i)), set(w.half_inverse)));
    }
  }

  FASTEBM_TARGET float largest(const Weighed& w) const {
    Floats most = set(-INFINITY);
    alignas(64) float logit[4 * kLanes];
    for (int64_t first = 0; first < w.dim; first += 4 * kLanes) {
      logits(w, first, logit);
      for (int i = 0; i < 4 * kLanes; i += kLanes) most = max(load(logit + i), most);
    }
    store(logit, most);
    return *std::max_element(logit, logit + kLanes);
  }

  template <bool kDraw>
  FASTEBM_TARGET Draw weigh(const Weighed& w, float largest, uint64_t id) const {
    const int lanes = lanes_of_row(w.dim);
    alignas(64) float part[4 * kLanesOfRow], logit[4 * kLanes];
    std::fill_n(part, 4 * std::max(lanes, kLanes), 0.0f);
    SampleWords words;
    if (kDraw) words = sample_words(key, id);
    Floats time = set(INFINITY), winner = floats_of(set_int(0));
    alignas(64) int32_t ramp[kLanes];
    for (int i = 0; i < kLanes; ++i) ramp[i] = i;
    Ints move = load_ints(ramp);
    for (int64_t first = 0; first < w.dim; first += 4 * kLanes) {
      logits(w, first, logit);
      Normals n{};
      if (kDraw)
        n = normals_of_sample<WordLaw>(keys, words,
                                       counters_ascending(static_cast<uint64_t>(first / 4)));
      float* to = part + first % (4 * kLanesOfRow);
      for (int i = 0; i < 4; ++i, to += kLanes) {
        const Floats weight = exp_minus(sub(set(largest), load(logit + i * kLanes)));
        store(to, add(load(to), weight));
        if (!kDraw) continue;
        const Floats next = div(exponentials(bits_of(n.v[i])), weight);
        winner = pick_less(next, time, floats_of(move), winner);
        time = pick_less(next, time, next, time);
        move = add(move, set_int(kLanes));
      }
    }
    const float log_sum = log_sum_of(largest, sum_of_weights(part, lanes));
    if (!kDraw) return {log_sum, 0};
    alignas(64) float times[kLanes], winners[kLanes];
    store(times, time);
    store(winners, winner);
    Winner best = {INFINITY, 0};
    for (int i = 0; i < kLanes; ++i) {
      const Winner next = {times[i], float_bits(winners[i])};
      if (is_ahead(next, best)) best = next;
    }
    return {log_sum, best.move};
  }
};

// Samples [begin, end).
FASTEBM_TARGET inline void step(const GwgParams& p, int64_t begin, int64_t end) {
  const NoiseKey key = noise_key(p, kSiteTag);
  const RoundKeys keys = round_keys(key);
  if (p.dim <= 4)  // which vectors would be empty of
    for (; begin < end; ++begin) gwg_row(p, begin, PlainWeights{key});
  for (; begin < end; ++begin) gwg_row(p, begin, VectorWeights{key, keys});
}
