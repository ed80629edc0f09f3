// The noise of random/philox.h for kLanes blocks at a time: the same bits as normals4(). Included
// once for each instruction set, inside its namespace, after simd/avx2.h or simd/avx512.h.

// Numbers of kLanes blocks: v[i] holds blocks i * kLanes / 4 and the following, elements in order.
struct Normals {
  Floats v[4];
};

// One word of the counters of kLanes blocks, in the low halves of 64-bit lanes, where the
// multiplication reads its factors. The order is the one that makes the transposition at the end
// free of moves across 128-bit lanes: with G = kLanes / 4, `a` holds blocks 0 G, 1 G+1, ... and
// `b` blocks 2G 3G, 2G+1 3G+1, ...
struct Counters {
  Wides a, b;
};

FASTEBM_TARGET inline Counters counters_from(const uint64_t* word) {
  constexpr int kGroup = kLanes / 4;
  alignas(64) uint64_t a[kLanes / 2], b[kLanes / 2];
  for (int i = 0; i < kGroup; ++i) {
    a[2 * i] = word[i];
    a[2 * i + 1] = word[i + kGroup];
    b[2 * i] = word[i + 2 * kGroup];
    b[2 * i + 1] = word[i + 3 * kGroup];
  }
  return {load_wide(a), load_wide(b)};
}

// The order in which numbers() leaves word[i] in lane i.
FASTEBM_TARGET inline Counters counters_by_lane(const uint64_t* word) {
  alignas(64) uint64_t a[kLanes / 2], b[kLanes / 2];
  for (int i = 0; i < kLanes; i += 4) {
    a[i / 2] = word[i];
    a[i / 2 + 1] = word[i + 1];
    b[i / 2] = word[i + 2];
    b[i / 2 + 1] = word[i + 3];
  }
  return {load_wide(a), load_wide(b)};
}

// The order in which numbers() leaves what unpack_low() and unpack_high() of elements 0 and 1 turn
// into pairs, block after block: `a` is the lower half of the blocks.
FASTEBM_TARGET inline Counters counters_by_pair(const uint64_t* word) {
  return {load_wide(word), load_wide(word + kLanes / 2)};
}

FASTEBM_TARGET inline Counters counters_ascending(uint64_t first) {
  uint64_t word[kLanes];
  for (int i = 0; i < kLanes; ++i) word[i] = static_cast<uint64_t>(i);
  const Counters ramp = counters_from(word);
  return {add_wide(ramp.a, set_wide(first)), add_wide(ramp.b, set_wide(first))};
}

// The blocks and sample ids of kLanes blocks from `block` of sample `id` on, where a sample has
// `blocks` of them, at most kShortSample. The division is by a reciprocal: v * ceil(2^26 / blocks)
// / 2^26 is right for v * blocks < 2^26.
constexpr int64_t kShortSample = 4096;

FASTEBM_TARGET inline void counters_across(uint64_t block, uint64_t id, uint64_t blocks,
                                           Counters* at, Counters* ids) {
  const Wides reciprocal = set_wide(((uint64_t{1} << 26) + blocks - 1) / blocks);
  const Wides divisor = set_wide(blocks), first_id = set_wide(id);
  const Counters v = counters_ascending(block);
  const Wides rows_a = shift_right<26>(multiply_low(v.a, reciprocal));
  const Wides rows_b = shift_right<26>(multiply_low(v.b, reciprocal));
  *at = {sub_wide(v.a, multiply_low(rows_a, divisor)),
         sub_wide(v.b, multiply_low(rows_b, divisor))};
  *ids = {add_wide(first_id, rows_a), add_wide(first_id, rows_b)};
}

// normal_pair() of random/philox.h, with the same result at every rounding.
FASTEBM_TARGET inline void normal_pair(Ints w0, Ints w1, Floats* n0, Floats* n1) {
  using namespace box_muller;
  const Floats u = fma(unsigned_to_float(w0), set(kTwoM32), set(kTwoM33));
  const Ints above = sub(bits_of(u), set_int(kSqrtHalfBits));
  const Ints e = shift_right_signed<23>(above);
  const Ints mantissa = add(bit_and(above, set_int(0x7fffff)), set_int(kSqrtHalfBits));
  const Floats t = sub(floats_of(mantissa), set(1.0f));
  Floats p = fma(set(kLog7), t, set(kLog6));
  p = fma(p, t, set(kLog5));
  p = fma(p, t, set(kLog4));
  p = fma(p, t, set(kLog3));
  p = fma(p, t, set(kLog2));
  p = fma(p, t, set(kLog1));
  p = fma(p, t, set(kLog0));
  const Floats r2 = fma(to_float(e), set(kMinus2Ln2), mul(p, t));
  const Floats r = sqrt(max(r2, set(kMinRadius2)));

  // Bits 31 and 30 of w1 + 2^29 are the quadrant: the sign of the sine, and which is which.
  const Ints quadrant = add(w1, set_int(0x20000000)), odd = shift_left<1>(quadrant);
  const Ints angle = sub(bit_and(quadrant, set_int(0x3fffffff)), set_int(0x20000000));
  const Floats f = mul(to_float(angle), set(kTwoM30));
  const Floats z = mul(f, f);
  const Floats s = mul(f, fma(fma(fma(set(kSin3), z, set(kSin2)), z, set(kSin1)), z, set(kSin0)));
  const Floats c = fma(fma(fma(set(kCos3), z, set(kCos2)), z, set(kCos1)), z, set(kCos0));
  const Floats sin_q = flip_sign(pick_negative(odd, c, s), quadrant);
  const Floats cos_q = flip_sign(pick_negative(odd, s, c), bit_xor(quadrant, odd));
  *n0 = mul(r, cos_q);
  *n1 = mul(r, sin_q);
}

// What two words become: standard normals, uniform numbers in [0, 1) of 24 bits, or they stay as
// they are.
struct NormalLaw {
  FASTEBM_TARGET static void pair(Ints w0, Ints w1, Floats* n0, Floats* n1) {
    normal_pair(w0, w1, n0, n1);
  }
};
struct UniformLaw {
  FASTEBM_TARGET static void pair(Ints w0, Ints w1, Floats* n0, Floats* n1) {
    const Floats unit = set(5.9604644775390625e-8f);
    *n0 = mul(to_float(shift_right_unsigned<8>(w0)), unit);
    *n1 = mul(to_float(shift_right_unsigned<8>(w1)), unit);
  }
};
struct WordLaw {
  FASTEBM_TARGET static void pair(Ints w0, Ints w1, Floats* n0, Floats* n1) {
    *n0 = floats_of(w0);
    *n1 = floats_of(w1);
  }
};

// The round keys and the words that all counters of a step share, spread over the lanes once.
struct RoundKeys {
  Wides k0[kPhiloxRounds], k1[kPhiloxRounds];
  Wides step, tag;
};

FASTEBM_TARGET inline RoundKeys round_keys(const NoiseKey& key) {
  RoundKeys keys;
  uint32_t k0 = static_cast<uint32_t>(key.key), k1 = static_cast<uint32_t>(key.key >> 32);
  for (int r = 0; r < kPhiloxRounds; ++r) {
    keys.k0[r] = set_wide(k0);
    keys.k1[r] = set_wide(k1);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  keys.step = set_wide(key.step);
  keys.tag = set_wide(key.tag << 24);
  asm volatile("" : "+m"(keys));  // read them from memory: remaking them costs more
  return keys;
}

// One round on the counters of one register; the upper halves collect rubbish that nothing reads.
FASTEBM_TARGET inline void philox_round(Wides c[4], Wides k0, Wides k1) {
  const Wides x = multiply_low(set_wide(kPhiloxMul0), c[0]);
  const Wides y = multiply_low(set_wide(kPhiloxMul1), c[2]);
  c[0] = xor3(high_half(y), c[1], k0);
  c[2] = xor3(high_half(x), c[3], k1);
  c[1] = y;
  c[3] = x;
}

// Rounds from `first` on, then the numbers: v[i] holds element i of each block; with kElements <= 2
// only elements 0 and 1, at little more than half the price.
template <class Law, int kElements = 4>
FASTEBM_TARGET inline Normals numbers(const RoundKeys& keys, int first, Wides a[4], Wides b[4]) {
#pragma GCC unroll 10
  for (int r = first; r < kPhiloxRounds; ++r) {
    philox_round(a, keys.k0[r], keys.k1[r]);
    philox_round(b, keys.k0[r], keys.k1[r]);
  }
  Normals n;
  Law::pair(low_halves(a[0], b[0]), low_halves(a[1], b[1]), &n.v[0], &n.v[1]);
  if (kElements > 2) Law::pair(low_halves(a[2], b[2]), low_halves(a[3], b[3]), &n.v[2], &n.v[3]);
  return n;
}

// The same, block after block.
template <class Law>
FASTEBM_TARGET inline Normals finish(const RoundKeys& keys, int first, Wides a[4], Wides b[4]) {
  const Normals n = numbers<Law>(keys, first, a, b);
  const Floats t0 = unpack_low(n.v[0], n.v[1]), t1 = unpack_high(n.v[0], n.v[1]);
  const Floats t2 = unpack_low(n.v[2], n.v[3]), t3 = unpack_high(n.v[2], n.v[3]);
  return {{unpack_low_pairs(t0, t2), unpack_high_pairs(t0, t2), unpack_low_pairs(t1, t3),
           unpack_high_pairs(t1, t3)}};
}

FASTEBM_TARGET inline Wides top_word(const RoundKeys& keys, Wides id) {
  return or_wide(and_wide(high_half(id), set_wide(0x00ffffff)), keys.tag);
}

// Blocks of any samples.
template <class Law = NormalLaw>
FASTEBM_TARGET inline Normals normals(const RoundKeys& keys, const Counters& block,
                                      const Counters& sample_id) {
  Wides a[4] = {keys.step, block.a, sample_id.a, top_word(keys, sample_id.a)};
  Wides b[4] = {keys.step, block.b, sample_id.b, top_word(keys, sample_id.b)};
  return finish<Law>(keys, 0, a, b);
}

// The same block of kLanes samples: v[i] holds element i of the block, a sample to a lane if
// counters_by_lane() has put the ids in order.
template <int kElements = 4, class Law = NormalLaw>
FASTEBM_TARGET inline Normals normals_by_lane(const RoundKeys& keys, uint64_t block,
                                              const Counters& sample_id) {
  const Wides at = set_wide(block);
  Wides a[4] = {keys.step, at, sample_id.a, top_word(keys, sample_id.a)};
  Wides b[4] = {keys.step, at, sample_id.b, top_word(keys, sample_id.b)};
  return numbers<Law, kElements>(keys, 0, a, b);
}

// What the first three rounds come to where only the block differs: five of their six products
// hold nothing but the step and the sample.
struct SampleWords {
  Wides block_xor, high_xor, word0_xor, word2_xor, word3;
};

FASTEBM_TARGET inline SampleWords sample_words(const NoiseKey& key, uint64_t sample_id) {
  const auto product = [](uint32_t m, uint32_t word) { return static_cast<uint64_t>(m) * word; };
  const auto high = [](uint64_t v) { return static_cast<uint32_t>(v >> 32); };
  const auto low = [](uint64_t v) { return static_cast<uint32_t>(v); };
  const Words4 c = noise_counter(key, sample_id, 0);
  const uint32_t k0 = low(key.key), k1 = high(key.key);
  const uint64_t x1 = product(kPhiloxMul0, c.v[0]), y1 = product(kPhiloxMul1, c.v[2]);
  const uint64_t y2 = product(kPhiloxMul1, high(x1) ^ c.v[3] ^ k1);
  const uint64_t x3 = product(kPhiloxMul0, high(y2) ^ low(y1) ^ (k0 + kPhiloxWeyl0));
  return {set_wide(high(y1) ^ k0), set_wide(low(x1) ^ (k1 + kPhiloxWeyl1)),
          set_wide(low(y2) ^ (k0 + 2 * kPhiloxWeyl0)), set_wide(high(x3) ^ (k1 + 2 * kPhiloxWeyl1)),
          set_wide(low(x3))};
}

// Blocks of one sample.
template <class Law = NormalLaw>
FASTEBM_TARGET inline Normals normals_of_sample(const RoundKeys& keys, const SampleWords& w,
                                                const Counters& block) {
  const auto three_rounds = [&](Wides counter, Wides c[4]) FASTEBM_TARGET {
    const Wides x = multiply_low(set_wide(kPhiloxMul0), xor_wide(counter, w.block_xor));
    const Wides y = multiply_low(set_wide(kPhiloxMul1), xor_wide(high_half(x), w.high_xor));
    c[0] = xor_wide(high_half(y), w.word0_xor);
    c[1] = y;
    c[2] = xor_wide(x, w.word2_xor);
    c[3] = w.word3;
  };
  Wides a[4], b[4];
  three_rounds(block.a, a);
  three_rounds(block.b, b);
  return finish<Law>(keys, 3, a, b);
}
