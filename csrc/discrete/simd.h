// The moves of a discrete sample weighted with vectors. Included once for each instruction set,
// inside its namespace, after random/philox_simd.h, random/log_simd.h and simd/exp.h.

// PlainWeights of discrete/row.h, 4 kLanes moves at a time.
struct VectorWeights {
  const NoiseKey& key;
  const RoundKeys& keys;

  // The site that the last logits were of, going through a sample.
  struct Site {
    int64_t end = 0;
    float current = 0;
  };

  // current_gradient() of discrete/discrete.h.
  FASTEBM_TARGET static float current(const Weighed& w, int64_t site) {
    const int64_t end = site + w.categories;
    if (end + kLanes > w.dim) return current_gradient(w, site);
    int64_t at = site;
    for (int64_t i = site; i < end; i += kLanes) {
      const unsigned of_site = (1u << std::min<int64_t>(kLanes, end - i)) - 1;
      const unsigned there = ~not_greater(load(w.x + i), set(0.5f)) & of_site;
      if (there) at = i + 31 - __builtin_clz(there);
    }
    return w.grad[at];
  }

  // Of the moves from `first` on, in order; -infinity after the last one.
  FASTEBM_TARGET static void logits(const Weighed& w, int64_t first, Site* site, float* logit) {
    const int count = static_cast<int>(std::min<int64_t>(4 * kLanes, w.dim - first));
    if (count < 4 * kLanes) {
      std::fill_n(logit, 4 * kLanes, -INFINITY);
      logits_of(w, first, count, logit);
      return;
    }
    const Floats half_inverse = set(w.half_inverse);
    if (w.categories == 0) {
      for (int i = 0; i < 4 * kLanes; i += kLanes) {
        const Floats sign = fma(set(2.0f), load(w.x + first + i), set(-1.0f));
        store(logit + i, mul(mul(sign, load(w.grad + first + i)), half_inverse));
      }
      return;
    }
    alignas(64) float current_of[5 * kLanes];  // which the last site may pass the end of
    for (int64_t i = 0; i < 4 * kLanes; i = site->end - first) {
      if (first + i == site->end) *site = {site->end + w.categories, current(w, site->end)};
      const int64_t end = std::min<int64_t>(site->end - first, 4 * kLanes);
      for (int64_t j = i; j < end; j += kLanes) store(current_of + j, set(site->current));
    }
    for (int i = 0; i < 4 * kLanes; i += kLanes) {
      const Floats by = sub(load(current_of + i), load(w.grad + first + i));
      store(logit + i,
            pick_less(set(0.5f), load(w.x + first + i), set(-INFINITY), mul(by, half_inverse)));
    }
  }

  FASTEBM_TARGET float largest(const Weighed& w) const {
    Floats most = set(-INFINITY);
    Site site;
    alignas(64) float logit[4 * kLanes];
    for (int64_t first = 0; first < w.dim; first += 4 * kLanes) {
      logits(w, first, &site, logit);
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
    Site site;
    SampleWords words;
    if (kDraw) words = sample_words(key, id);
    Floats time = set(INFINITY), winner = floats_of(set_int(0));
    alignas(64) int32_t ramp[kLanes];
    for (int i = 0; i < kLanes; ++i) ramp[i] = i;
    Ints move = load_ints(ramp);
    for (int64_t first = 0; first < w.dim; first += 4 * kLanes) {
      logits(w, first, &site, logit);
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

// The words of block 0 of one sample, drawn with those of others.
struct KnownWords {
  const Words4& words;
  FASTEBM_TARGET Words4 operator()(uint64_t, int64_t) const { return words; }
};

// Those of kLanes samples.
FASTEBM_TARGET inline void first_words(const RoundKeys& keys, const Counters& ids, Words4* words) {
  Wides a[4] = {keys.step, set_wide(0), ids.a, top_word(keys, ids.a)};
  Wides b[4] = {keys.step, set_wide(0), ids.b, top_word(keys, ids.b)};
  const Normals n = numbers<WordLaw>(keys, 0, a, b);
  alignas(64) uint32_t word[kLanes];
  for (int i = 0; i < 4; ++i) {
    store_ints(word, bits_of(n.v[i]));
    for (int l = 0; l < kLanes; ++l) words[l].v[i] = word[l];
  }
}

// Samples [begin, end), kLanes of which draw together what accepts them; and their moves, where
// vectors would be empty of these.
FASTEBM_TARGET inline void step(const GwgParams& p, int64_t begin, int64_t end) {
  const NoiseKey key = noise_key(p, kSiteTag);
  const RoundKeys keys = round_keys(key), accept = round_keys(noise_key(p, kAcceptTag));
  const bool is_short = p.dim <= 4;
  for (; begin < end; begin += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, end - begin);
    uint64_t id[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) id[l] = sample_id(p, begin + std::min(l, count - 1));
    const Counters ids = counters_by_lane(id);
    alignas(64) float n0[kLanes], n1[kLanes];
    const Normals n = normals_by_lane<2>(accept, 0, ids);
    store(n0, n.v[0]);
    store(n1, n.v[1]);
    Words4 words[kLanes];
    if (is_short) first_words(keys, ids, words);
    for (int64_t l = 0; l < count; ++l)
      if (is_short)
        gwg_row(p, begin + l, PlainWeights<KnownWords>{{words[l]}}, n0[l], n1[l]);
      else
        gwg_row(p, begin + l, VectorWeights{key, keys}, n0[l], n1[l]);
  }
}
