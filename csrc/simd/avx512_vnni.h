// Products of bytes on the lanes of simd/avx512.h, by AVX-512 VNNI. Included after it.

// In every lane acc and four products: of a's bytes without, b's with a sign.
FASTEBM_TARGET inline Ints multiply_bytes(Ints acc, Ints a, Ints b) {
  return _mm512_dpbusd_epi32(acc, a, b);
}
FASTEBM_TARGET inline int32_t sum(Ints v) { return _mm512_reduce_add_epi32(v); }
