// Products of bytes in registers. Included for each instruction set, after words_simd.h or
// vnni_simd.h.

struct ProductUnit {};  // nothing to set up

// c[r][q] (+)= |y[r]|^2 + |x[q]|^2 - 2 y[r].x[q], of kRows references and a panel of queries, from
// y . (x - 128) and sums[r] of y (y - 256).
FASTEBM_TARGET __attribute__((noinline)) void multiply_rows(const Word* y, const Word* x, int depth,
                                                            const int32_t* sums,
                                                            const int32_t* squares, bool first,
                                                            float* c) {
  for (int q = 0; q < kBytePanel; q += 2 * kLanes) {
    Ints acc[kRows][2];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = set_int(0);
    for (int k = 0; k < depth; k += kPer) {
      const Word* at = x + k * kBytePanel + q * kPer;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        int32_t v;
        std::memcpy(&v, y + r * kBytePitch + k, sizeof v);
        acc[r][0] = add_products(acc[r][0], v, at);
        acc[r][1] = add_products(acc[r][1], v, at + kLanes * kPer);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      float* at = c + r * kBytePanel + q;
      add_square(acc[r][0], sums[r], squares + q, first, at);
      add_square(acc[r][1], sums[r], squares + q + kLanes, first, at + kLanes);
    }
  }
}
