// Bernoulli(sigmoid(beta * logit)) with vectors. Included once for each instruction set, inside its
// namespace, after random/batch_simd.h.

// bernoulli_element() of gibbs/gibbs.h for kLanes elements, with the same result at every rounding.
FASTEBM_TARGET inline Floats draw_vector(Floats logits, Floats words, Floats beta) {
  using namespace sigmoid;
  const Floats a = mul(beta, logits);
  const Ints negative = shift_right_signed<31>(bits_of(a));
  const Floats c = min(set(kMaxLogit), floats_of(bit_and(bits_of(a), set_int(0x7fffffff))));
  const Floats z = fma(c, set(kMinusLog2E), set(kRound));
  const Floats n = sub(z, set(kRound));
  const Floats s = fma(n, set(kLn2Low), fma(n, set(kLn2High), c));
  Floats e = fma(set(kExp5), s, set(kExp4));
  e = fma(e, s, set(kExp3));
  e = fma(e, s, set(kExp2));
  e = fma(e, s, set(kExp1));
  e = fma(e, s, set(kExp0));
  e = floats_of(add(bits_of(e), shift_left<23>(bits_of(z))));
  const Ints flipped = bit_xor(bit_xor(bits_of(words), negative), set_int(-1));
  const Floats u = fma(to_float(shift_right_unsigned<1>(flipped)), set(kTwoM31), set(kTwoM32));
  const Ints one = bits_of(set(1.0f)), rare = bit_and(negative, one);
  const Floats x = pick_less(fma(u, e, u), e, floats_of(rare), floats_of(bit_xor(rare, one)));
  return fma(c, set(0.0f), x);
}

// kLanes logits, rounded to float32 where they are float64.
template <class T>
FASTEBM_TARGET inline Floats load_logits(const T* p) {
  return load(p);
}
FASTEBM_TARGET inline Floats load_logits(const double* p) {
  alignas(64) float v[kLanes];
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(p[i]);
  return load(v);
}

template <class Out>
FASTEBM_TARGET inline void store_draws(Out* p, Floats x) {
  store(p, x);
}
template <class Out>
FASTEBM_TARGET inline void store_each(Out* p, Floats x) {
  alignas(64) float v[kLanes];
  store(v, x);
  for (int i = 0; i < kLanes; ++i) p[i] = stored_draw<Out>(v[i]);
}
FASTEBM_TARGET inline void store_draws(double* p, Floats x) { store_each(p, x); }
FASTEBM_TARGET inline void store_draws(uint8_t* p, Floats x) { store_each(p, x); }

// `count` consecutive elements, whose words lie at `words`, with room to read on.
template <class T, class Out>
FASTEBM_TARGET inline void draw_run(const T* logits, Out* out, int64_t count, const float* words,
                                    Floats beta) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store_draws(out + i, draw_vector(load_logits(logits + i), load(words + i), beta));
  if (i == count) return;
  T rest[kLanes] = {};
  Out drawn[kLanes];
  const size_t left = static_cast<size_t>(count - i);
  std::memcpy(rest, logits + i, sizeof(T) * left);
  store_draws(drawn, draw_vector(load_logits(rest), load(words + i), beta));
  std::memcpy(out + i, drawn, sizeof(Out) * left);
}

// Blocks [begin, end) of the batch, kLanes at a time. Full blocks lie together and go straight from
// registers; where samples end inside a block, the words that no element needs are left out first.
template <class T, class Out>
FASTEBM_TARGET int draw(const BernoulliParams& p, int64_t begin, int64_t end) {
  const int64_t blocks = (p.dim + 3) / 4;
  const NoiseKey key = noise_key(p);
  const RoundKeys keys = round_keys(key);
  const Floats beta = set(p.beta);
  const int last = static_cast<int>(p.dim - 4 * (blocks - 1));  // elements of a last block
  int64_t row = begin / blocks, block = begin - row * blocks;
  KeptWords words;
  while (begin < end) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, end - begin));
    const Normals n = numbers_of_batch<WordLaw>(p, key, keys, blocks, row, block, count, &words);
    const int64_t at = row * p.dim + 4 * block;
    const T* logits = static_cast<const T*>(p.logits) + at;
    Out* out = static_cast<Out*>(p.out) + at;
    begin += count;
    if (count == kLanes && (last == 4 || block + count < blocks)) {
      for (int i = 0; i < 4; ++i)
        store_draws(out + i * kLanes, draw_vector(load_logits(logits + i * kLanes), n.v[i], beta));
      block += count;
      while (block >= blocks) block -= blocks, ++row;
      continue;
    }
    alignas(64) float packed[4 * kLanes + kLanes] = {};
    const int64_t run = pack_numbers(n, count, blocks, block, last, packed);
    for (block += count; block >= blocks; ++row) block -= blocks;
    draw_run(logits, out, run, packed, beta);
  }
  return 0;
}
