// Products of bytes by VNNI instructions: four fill 32 bits. Included for each instruction set,
// before neighbor/bytes_simd.h.

using Word = int8_t;  // as a tile's, without a sign
constexpr int kPer = 4;

// Lane l: acc[l] + y . x[l], of kPer elements; y is given as its 32 bits, x (kLanes, kPer).
FASTEBM_TARGET inline Ints add_products(Ints acc, int32_t y, const Word* x) {
  return multiply_bytes(acc, set_int(y), load_ints(x));
}

// A sample to a tile, and zeros up to a multiple of kByteAlign; returns the sum of y (y - 256).
FASTEBM_TARGET inline int32_t lay_row(const uint8_t* from, int count, Word* to) {
  const Ints ones = set_int(0x01010101), flip = set_int(static_cast<int32_t>(0x80808080u));
  Ints sums = set_int(0), squares = set_int(0);  // of y, and of y (y - 128)
  const int whole = count / kByteAlign * kByteAlign;
  const auto lay = [&](const uint8_t* line, Word* at) FASTEBM_TARGET {
    for (int i = 0; i < kByteAlign; i += 4 * kLanes) {
      const Ints v = load_ints(line + i);
      store_ints(at + i, v);
      sums = multiply_bytes(sums, v, ones);
      squares = multiply_bytes(squares, v, bit_xor(v, flip));
    }
  };
  for (int i = 0; i < whole; i += kByteAlign) lay(from + i, to + i);
  if (whole < count) {
    alignas(64) uint8_t last[kByteAlign] = {};
    std::copy(from + whole, from + count, last);
    lay(last, to + whole);
  }
  return sum(squares) - 128 * sum(sums);
}
