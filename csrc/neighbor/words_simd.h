// Products of bytes as 16-bit words: two fill 32 bits. Included for each instruction set, before
// neighbor/bytes_simd.h.

using Word = int16_t;
constexpr int kPer = 2;

// Lane l: acc[l] + y . x[l], of kPer elements; y is given as its 32 bits, x (kLanes, kPer).
FASTEBM_TARGET inline Ints add_products(Ints acc, int32_t y, const Word* x) {
  return add(acc, multiply_pairs(set_int(y), load_ints(x)));
}

// A sample to a tile, and zeros up to a multiple of kByteAlign; returns the sum of y (y - 256).
FASTEBM_TARGET inline int32_t lay_row(const uint8_t* from, int count, Word* to) {
  int32_t sum = 0;
  for (int i = 0; i < count; ++i) {
    to[i] = from[i];
    sum += to[i] * (to[i] - 256);
  }
  std::fill(to + count, to + byte_width(count), Word{0});
  return sum;
}
