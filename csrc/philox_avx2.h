// The noise of philox.h for eight blocks at a time with AVX2: the same bits as normals4().
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>

#include "philox.h"

#define FASTEBM_AVX2 __attribute__((target("avx2,fma,f16c")))

namespace fastebm {

// Normals of eight blocks: v[i] holds blocks 2i and 2i + 1, elements in order.
struct Normals32 {
  __m256 v[4];
};

// The counters of eight blocks. Words sit in the low halves of 64-bit lanes, where vpmuludq reads
// its factors; `a` holds blocks 0 1 4 5 and `b` blocks 2 3 6 7, so that one shuffle at the end puts
// the eight results in order.
struct Counters8 {
  __m256i block_a, block_b, id_a, id_b;
};

FASTEBM_AVX2 inline Counters8 counters_of_sample(uint64_t sample_id, uint32_t first_block) {
  const __m256i block = _mm256_set1_epi64x(first_block);
  const __m256i id = _mm256_set1_epi64x(static_cast<int64_t>(sample_id));
  return {_mm256_add_epi64(block, _mm256_setr_epi64x(0, 1, 4, 5)),
          _mm256_add_epi64(block, _mm256_setr_epi64x(2, 3, 6, 7)), id, id};
}

// Two runs of two 64-bit words each, from v[i] and v[i + 4].
FASTEBM_AVX2 inline __m256i load_pairs(const uint64_t* v, int i) {
  return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(v + i + 4),
                             reinterpret_cast<const __m128i*>(v + i));
}

FASTEBM_AVX2 inline Counters8 counters_of_blocks(const uint64_t* id, const uint64_t* block) {
  return {load_pairs(block, 0), load_pairs(block, 2), load_pairs(id, 0), load_pairs(id, 2)};
}

FASTEBM_AVX2 inline __m256 uint_to_float_rn(__m256i w) {  // exact halves, rounded once by the FMA
  const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(w, 16));
  const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(w, _mm256_set1_epi32(0xffff)));
  return _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
}

FASTEBM_AVX2 inline __m256 fma_const(__m256 a, __m256 b, float c) {
  return _mm256_fmadd_ps(a, b, _mm256_set1_ps(c));
}

// normal_pair() of philox.h, operation for operation.
FASTEBM_AVX2 inline void normal_pair(__m256i w0, __m256i w1, __m256* n0, __m256* n1) {
  using namespace box_muller;
  const __m256 u = fma_const(uint_to_float_rn(w0), _mm256_set1_ps(kTwoM32), kTwoM33);
  const __m256i u_bits = _mm256_castps_si256(u);
  const __m256i e =
      _mm256_srai_epi32(_mm256_sub_epi32(u_bits, _mm256_set1_epi32(kSqrtHalfBits)), 23);
  const __m256 mantissa = _mm256_castsi256_ps(_mm256_sub_epi32(u_bits, _mm256_slli_epi32(e, 23)));
  const __m256 t = _mm256_sub_ps(mantissa, _mm256_set1_ps(1.0f));
  __m256 p = _mm256_set1_ps(kLog7);
  p = fma_const(p, t, kLog6);
  p = fma_const(p, t, kLog5);
  p = fma_const(p, t, kLog4);
  p = fma_const(p, t, kLog3);
  p = fma_const(p, t, kLog2);
  p = fma_const(p, t, kLog1);
  p = fma_const(p, t, kLog0);
  const __m256 r2 =
      _mm256_fmadd_ps(_mm256_cvtepi32_ps(e), _mm256_set1_ps(kMinus2Ln2), _mm256_mul_ps(p, t));
  const __m256 r = _mm256_sqrt_ps(_mm256_max_ps(r2, _mm256_set1_ps(kMinRadius2)));

  const __m256i q = _mm256_srai_epi32(_mm256_add_epi32(w1, _mm256_set1_epi32(0x20000000)), 30);
  const __m256 f = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(w1, _mm256_slli_epi32(q, 30))),
                                 _mm256_set1_ps(kTwoM30));
  const __m256 z = _mm256_mul_ps(f, f);
  __m256 s = fma_const(_mm256_set1_ps(kSin3), z, kSin2);
  s = fma_const(s, z, kSin1);
  s = _mm256_mul_ps(f, fma_const(s, z, kSin0));
  __m256 c = fma_const(_mm256_set1_ps(kCos3), z, kCos2);
  c = fma_const(c, z, kCos1);
  c = fma_const(c, z, kCos0);
  const __m256 odd = _mm256_castsi256_ps(_mm256_slli_epi32(q, 31));  // blendv reads the sign bit
  const __m256i sign = _mm256_set1_epi32(static_cast<int32_t>(0x80000000u));
  const __m256i sin_sign = _mm256_and_si256(_mm256_slli_epi32(q, 30), sign);
  const __m256i q1 = _mm256_add_epi32(q, _mm256_set1_epi32(1));
  const __m256i cos_sign = _mm256_and_si256(_mm256_slli_epi32(q1, 30), sign);
  const __m256 sin_q = _mm256_xor_ps(_mm256_blendv_ps(s, c, odd), _mm256_castsi256_ps(sin_sign));
  const __m256 cos_q = _mm256_xor_ps(_mm256_blendv_ps(c, s, odd), _mm256_castsi256_ps(cos_sign));
  *n0 = _mm256_mul_ps(r, cos_q);
  *n1 = _mm256_mul_ps(r, sin_q);
}

FASTEBM_AVX2 inline __m256i low_halves(__m256i a, __m256i b) {
  return _mm256_castps_si256(
      _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88));
}

// Four vectors, one element of each of eight blocks apiece -> block after block.
FASTEBM_AVX2 inline Normals32 transpose_4x8(__m256 n0, __m256 n1, __m256 n2, __m256 n3) {
  const __m256d t0 = _mm256_castps_pd(_mm256_unpacklo_ps(n0, n1));
  const __m256d t1 = _mm256_castps_pd(_mm256_unpackhi_ps(n0, n1));
  const __m256d t2 = _mm256_castps_pd(_mm256_unpacklo_ps(n2, n3));
  const __m256d t3 = _mm256_castps_pd(_mm256_unpackhi_ps(n2, n3));
  const __m256 b04 = _mm256_castpd_ps(_mm256_unpacklo_pd(t0, t2));
  const __m256 b15 = _mm256_castpd_ps(_mm256_unpackhi_pd(t0, t2));
  const __m256 b26 = _mm256_castpd_ps(_mm256_unpacklo_pd(t1, t3));
  const __m256 b37 = _mm256_castpd_ps(_mm256_unpackhi_pd(t1, t3));
  return {{_mm256_permute2f128_ps(b04, b15, 0x20), _mm256_permute2f128_ps(b26, b37, 0x20),
           _mm256_permute2f128_ps(b04, b15, 0x31), _mm256_permute2f128_ps(b26, b37, 0x31)}};
}

FASTEBM_AVX2 inline Normals32 normals32(const NoiseKey& key, const Counters8& counters) {
  const __m256i mul0 = _mm256_set1_epi64x(kPhiloxMul0), mul1 = _mm256_set1_epi64x(kPhiloxMul1);
  const __m256i low24 = _mm256_set1_epi64x(0x00ffffff), tag = _mm256_set1_epi64x(key.tag << 24);
  __m256i a0 = _mm256_set1_epi64x(key.step), b0 = a0;
  __m256i a1 = counters.block_a, b1 = counters.block_b;
  __m256i a2 = counters.id_a, b2 = counters.id_b;
  __m256i a3 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi64(a2, 32), low24), tag);
  __m256i b3 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi64(b2, 32), low24), tag);
  uint32_t k0 = static_cast<uint32_t>(key.key), k1 = static_cast<uint32_t>(key.key >> 32);
  // The upper halves collect rubbish (whole products are kept); nothing ever reads them.
#pragma GCC unroll 10
  for (int r = 0; r < kPhiloxRounds; ++r) {
    const __m256i key0 = _mm256_set1_epi64x(k0), key1 = _mm256_set1_epi64x(k1);
    const __m256i pa = _mm256_mul_epu32(mul0, a0), qa = _mm256_mul_epu32(mul1, a2);
    const __m256i pb = _mm256_mul_epu32(mul0, b0), qb = _mm256_mul_epu32(mul1, b2);
    a0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(qa, 32), a1), key0);
    b0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(qb, 32), b1), key0);
    a2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(pa, 32), a3), key1);
    b2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(pb, 32), b3), key1);
    a1 = qa;
    b1 = qb;
    a3 = pa;
    b3 = pb;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  __m256 n0, n1, n2, n3;
  normal_pair(low_halves(a0, b0), low_halves(a1, b1), &n0, &n1);
  normal_pair(low_halves(a2, b2), low_halves(a3, b3), &n2, &n3);
  return transpose_4x8(n0, n1, n2, n3);
}

}  // namespace fastebm
#endif
