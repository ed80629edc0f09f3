// Sixteen lanes: the operations of simd/avx2.h with AVX-512F. Included inside a namespace of its
// own, where FASTEBM_TARGET names the instruction set.

using Floats = __m512;
using Ints = __m512i;     // 16 x 32 bits
using Wides = __m512i;    // 8 x 64 bits
using Doubles = __m512d;  // kLanes / 2 of them
constexpr int kLanes = 16;

#define FASTEBM_OP FASTEBM_TARGET inline
FASTEBM_OP Floats set(float v) { return _mm512_set1_ps(v); }
FASTEBM_OP Ints set_int(int32_t v) { return _mm512_set1_epi32(v); }
FASTEBM_OP Wides set_wide(uint64_t v) { return _mm512_set1_epi64(static_cast<int64_t>(v)); }
FASTEBM_OP Wides load_wide(const uint64_t* p) { return _mm512_loadu_si512(p); }
FASTEBM_OP Doubles set(double v) { return _mm512_set1_pd(v); }
FASTEBM_OP Ints bits_of(Floats v) { return _mm512_castps_si512(v); }
FASTEBM_OP Floats floats_of(Ints v) { return _mm512_castsi512_ps(v); }

FASTEBM_OP Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
FASTEBM_OP Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
FASTEBM_OP Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
FASTEBM_OP Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
FASTEBM_OP Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
FASTEBM_OP Floats sqrt(Floats a) { return _mm512_sqrt_ps(a); }
FASTEBM_OP Floats abs(Floats a) { return _mm512_abs_ps(a); }
FASTEBM_OP float sum(Floats v) { return _mm512_reduce_add_ps(v); }
// min and max return their second operand where one is NaN.
FASTEBM_OP Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
FASTEBM_OP Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
// x where a < b, y elsewhere and for NaN.
FASTEBM_OP Floats pick_less(Floats a, Floats b, Floats x, Floats y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
FASTEBM_OP Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
FASTEBM_OP Doubles mul(Doubles a, Doubles b) { return _mm512_mul_pd(a, b); }
FASTEBM_OP Doubles sub(Doubles a, Doubles b) { return _mm512_sub_pd(a, b); }
FASTEBM_OP Doubles min(Doubles a, Doubles b) { return _mm512_min_pd(a, b); }
// min of values that are >= 0 or NaN, which loses: their bits in order are they in order, and
// integer units have time for it.
FASTEBM_OP Floats min_square(Floats a, Floats b) {
  return floats_of(_mm512_min_epu32(bits_of(a), bits_of(b)));
}
FASTEBM_OP Doubles min_square(Doubles a, Doubles b) {
  return _mm512_castsi512_pd(_mm512_min_epu64(_mm512_castpd_si512(a), _mm512_castpd_si512(b)));
}
FASTEBM_OP float lowest(Floats v) { return _mm512_reduce_min_ps(v); }
FASTEBM_OP double lowest(Doubles v) { return _mm512_reduce_min_pd(v); }
FASTEBM_OP unsigned not_greater(Floats a, Floats b) {  // true for NaN
  return _mm512_cmp_ps_mask(a, b, _CMP_NGT_UQ);
}
FASTEBM_OP unsigned not_greater(Doubles a, Doubles b) {
  return _mm512_cmp_pd_mask(a, b, _CMP_NGT_UQ);
}
FASTEBM_OP unsigned within(Floats v, Floats lo, Floats hi) {
  return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(v, lo, _CMP_GE_OQ), v, hi, _CMP_LE_OQ);
}

FASTEBM_OP Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
FASTEBM_OP Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
FASTEBM_OP Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
FASTEBM_OP void store_ints(void* p, Ints v) { _mm512_storeu_si512(p, v); }
// Of every lane the low 8 bits.
FASTEBM_OP void store_low_bytes(uint8_t* p, Ints v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}
FASTEBM_OP Ints bit_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
FASTEBM_OP Ints bit_xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
template <int kBits>
FASTEBM_OP Ints shift_left(Ints a) {
  return _mm512_slli_epi32(a, kBits);
}
template <int kBits>
FASTEBM_OP Ints shift_right_unsigned(Ints a) {
  return _mm512_srli_epi32(a, kBits);
}
template <int kBits>
FASTEBM_OP Ints shift_right_signed(Ints a) {
  return _mm512_srai_epi32(a, kBits);
}
FASTEBM_OP Floats to_float(Ints a) { return _mm512_cvtepi32_ps(a); }
FASTEBM_OP Floats unsigned_to_float(Ints a) { return _mm512_cvtepu32_ps(a); }
// a where `which` is negative, b elsewhere.
FASTEBM_OP Floats pick_negative(Ints which, Floats a, Floats b) {
  return _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(which, _mm512_setzero_si512()), b, a);
}
// v with its sign flipped where the sign bit of `sign` is set: v ^ (sign & top).
FASTEBM_OP Floats flip_sign(Floats v, Ints sign) {
  const __m512i top = _mm512_set1_epi32(static_cast<int32_t>(0x80000000u));
  return floats_of(_mm512_ternarylogic_epi32(bits_of(v), sign, top, 0x78));
}

FASTEBM_OP Wides add_wide(Wides a, Wides b) { return _mm512_add_epi64(a, b); }
FASTEBM_OP Wides sub_wide(Wides a, Wides b) { return _mm512_sub_epi64(a, b); }
FASTEBM_OP Wides multiply_low(Wides a, Wides b) { return _mm512_mul_epu32(a, b); }  // low halves
template <int kBits>
FASTEBM_OP Wides shift_right(Wides a) {
  return _mm512_srli_epi64(a, kBits);
}
FASTEBM_OP Wides high_half(Wides a) { return shift_right<32>(a); }
FASTEBM_OP Wides and_wide(Wides a, Wides b) { return _mm512_and_si512(a, b); }
FASTEBM_OP Wides or_wide(Wides a, Wides b) { return _mm512_or_si512(a, b); }
FASTEBM_OP Wides xor_wide(Wides a, Wides b) { return _mm512_xor_si512(a, b); }
FASTEBM_OP Wides xor3(Wides a, Wides b, Wides c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
// The low halves of two and two lanes of a and b, in turn, inside each 128 bits.
FASTEBM_OP Ints low_halves(Wides a, Wides b) {
  return bits_of(_mm512_shuffle_ps(floats_of(a), floats_of(b), 0x88));
}
FASTEBM_OP Floats unpack_low(Floats a, Floats b) { return _mm512_unpacklo_ps(a, b); }
FASTEBM_OP Floats unpack_high(Floats a, Floats b) { return _mm512_unpackhi_ps(a, b); }
FASTEBM_OP Floats unpack_low_pairs(Floats a, Floats b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
FASTEBM_OP Floats unpack_high_pairs(Floats a, Floats b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

FASTEBM_OP Floats load(const float* p) { return _mm512_loadu_ps(p); }
FASTEBM_OP Floats load(const Bfloat16* p) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return floats_of(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
FASTEBM_OP Floats load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// p[index], every index in 0 .. kLanes; reads 2 kLanes elements of p.
FASTEBM_OP Floats pick_near(const float* p, const int32_t* index) {
  return _mm512_permutex2var_ps(_mm512_loadu_ps(p), _mm512_loadu_si512(index),
                                _mm512_loadu_ps(p + 16));
}
FASTEBM_OP Doubles load(const double* p) { return _mm512_loadu_pd(p); }
FASTEBM_OP Floats load_bytes(const uint8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
FASTEBM_OP void store(double* p, Doubles v) { _mm512_storeu_pd(p, v); }
FASTEBM_OP void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
FASTEBM_OP void store(Bfloat16* p, Floats v) {
  const __m512i u = bits_of(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i w = _mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(w, 16)));
}
FASTEBM_OP void store(Float16* p, Floats v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#undef FASTEBM_OP
