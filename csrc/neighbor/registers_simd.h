// Products of bytes in registers. Included for each instruction set, after words_simd.h or
// vnni_simd.h.

struct ProductUnit {};  // nothing to set up

// c[r][q] (+)= |y[r]|^2 + |x[q]|^2 - 2 y[r].x[q], of kRows references and kVectors vectors of
// queries, from y . (x - 128) and sums[r] of y (y - 256).
template <int kVectors>
FASTEBM_TARGET __attribute__((noinline)) void multiply_vectors(const Word* y, const Word* x,
                                                               int depth, const int32_t* sums,
                                                               const int32_t* squares, bool first,
                                                               float* c) {
  Ints acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) acc[r][v] = set_int(0);
  for (int k = 0; k < depth; k += kPer, x += kBytePanel * kPer) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int32_t word;
      std::memcpy(&word, y + r * kBytePitch + k, sizeof word);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        acc[r][v] = add_products(acc[r][v], word, x + v * kLanes * kPer);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      add_square(acc[r][v], sums[r], squares + v * kLanes, first, c + r * kBytePanel + v * kLanes);
}

// Those of the first `queries` of a panel, at least.
FASTEBM_TARGET inline void multiply_rows(const Word* y, const Word* x, int depth, int queries,
                                         const int32_t* sums, const int32_t* squares, bool first,
                                         float* c) {
  int q = 0;
  for (; q + kLanes < queries; q += 2 * kLanes)
    multiply_vectors<2>(y, x + q * kPer, depth, sums, squares + q, first, c + q);
  if (q < queries) multiply_vectors<1>(y, x + q * kPer, depth, sums, squares + q, first, c + q);
}
