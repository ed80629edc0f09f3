// Products of bytes on the lanes of simd/avx2.h, by AVX-VNNI. Included after it.

// In every lane acc and four products: of a's bytes without, b's with a sign.
FASTEBM_TARGET inline Ints multiply_bytes(Ints acc, Ints a, Ints b) {
  return _mm256_dpbusd_avx_epi32(acc, a, b);
}
FASTEBM_TARGET inline int32_t sum(Ints v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
