// Eight lanes: the operations that what is written for vectors (*simd.h) is written in, with AVX2.
// Included inside a namespace of its own, where FASTEBM_TARGET names the instruction set.

using Floats = __m256;
using Ints = __m256i;     // 8 x 32 bits
using Wides = __m256i;    // 4 x 64 bits
using Doubles = __m256d;  // kLanes / 2 of them
constexpr int kLanes = 8;

#define FASTEBM_OP FASTEBM_TARGET inline
FASTEBM_OP Floats set(float v) { return _mm256_set1_ps(v); }
FASTEBM_OP Ints set_int(int32_t v) { return _mm256_set1_epi32(v); }
FASTEBM_OP Wides set_wide(uint64_t v) { return _mm256_set1_epi64x(static_cast<int64_t>(v)); }
FASTEBM_OP Wides load_wide(const uint64_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
FASTEBM_OP Doubles set(double v) { return _mm256_set1_pd(v); }
FASTEBM_OP Ints bits_of(Floats v) { return _mm256_castps_si256(v); }
FASTEBM_OP Floats floats_of(Ints v) { return _mm256_castsi256_ps(v); }

FASTEBM_OP Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
FASTEBM_OP Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
FASTEBM_OP Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
FASTEBM_OP Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
FASTEBM_OP Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
FASTEBM_OP Floats sqrt(Floats a) { return _mm256_sqrt_ps(a); }
FASTEBM_OP Floats abs(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
FASTEBM_OP float sum(Floats v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// min and max return their second operand where one is NaN.
FASTEBM_OP Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
FASTEBM_OP Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
// x where a < b, y elsewhere and for NaN.
FASTEBM_OP Floats pick_less(Floats a, Floats b, Floats x, Floats y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
FASTEBM_OP Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
FASTEBM_OP Doubles mul(Doubles a, Doubles b) { return _mm256_mul_pd(a, b); }
FASTEBM_OP Doubles sub(Doubles a, Doubles b) { return _mm256_sub_pd(a, b); }
FASTEBM_OP Doubles min(Doubles a, Doubles b) { return _mm256_min_pd(a, b); }
// min of values that are >= 0 or NaN, which loses: their bits in order are they in order, and
// integer units have time for it.
FASTEBM_OP Floats min_square(Floats a, Floats b) {
  return floats_of(_mm256_min_epu32(bits_of(a), bits_of(b)));
}
FASTEBM_OP Doubles min_square(Doubles a, Doubles b) { return min(a, b); }
FASTEBM_OP float lowest(Floats v) {
  __m128 s = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_min_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_min_ss(s, _mm_movehdup_ps(s)));
}
FASTEBM_OP double lowest(Doubles v) {
  const __m128d s = _mm_min_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_min_sd(s, _mm_unpackhi_pd(s, s)));
}
FASTEBM_OP unsigned not_greater(Floats a, Floats b) {  // true for NaN
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NGT_UQ)));
}
FASTEBM_OP unsigned not_greater(Doubles a, Doubles b) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_NGT_UQ)));
}
FASTEBM_OP unsigned within(Floats v, Floats lo, Floats hi) {
  return static_cast<unsigned>(_mm256_movemask_ps(
      _mm256_and_ps(_mm256_cmp_ps(v, lo, _CMP_GE_OQ), _mm256_cmp_ps(v, hi, _CMP_LE_OQ))));
}

FASTEBM_OP Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
FASTEBM_OP Ints sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
FASTEBM_OP Ints load_ints(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
FASTEBM_OP void store_ints(void* p, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
// Of every lane the low 8 bits.
FASTEBM_OP void store_low_bytes(uint8_t* p, Ints v) {
  const __m256i order = _mm256_set1_epi32(0x0c080400);
  const __m256i fours = _mm256_shuffle_epi8(v, order);
  const __m128i eight =
      _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), eight);
}
// In every lane the sum of two products of signed 16-bit halves.
FASTEBM_OP Ints multiply_pairs(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }
FASTEBM_OP Ints bit_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
FASTEBM_OP Ints bit_xor(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
template <int kBits>
FASTEBM_OP Ints shift_left(Ints a) {
  return _mm256_slli_epi32(a, kBits);
}
template <int kBits>
FASTEBM_OP Ints shift_right_unsigned(Ints a) {
  return _mm256_srli_epi32(a, kBits);
}
template <int kBits>
FASTEBM_OP Ints shift_right_signed(Ints a) {
  return _mm256_srai_epi32(a, kBits);
}
FASTEBM_OP Floats to_float(Ints a) { return _mm256_cvtepi32_ps(a); }
FASTEBM_OP Floats unsigned_to_float(Ints a) {  // exact halves, rounded once by the FMA
  const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 16));
  const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(a, _mm256_set1_epi32(0xffff)));
  return _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
}
// a where `which` is negative, b elsewhere.
FASTEBM_OP Floats pick_negative(Ints which, Floats a, Floats b) {
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(which));
}
// v with its sign flipped where the sign bit of `sign` is set.
FASTEBM_OP Floats flip_sign(Floats v, Ints sign) {
  const __m256i top = _mm256_set1_epi32(static_cast<int32_t>(0x80000000u));
  return _mm256_xor_ps(v, _mm256_castsi256_ps(_mm256_and_si256(sign, top)));
}

FASTEBM_OP Wides add_wide(Wides a, Wides b) { return _mm256_add_epi64(a, b); }
FASTEBM_OP Wides sub_wide(Wides a, Wides b) { return _mm256_sub_epi64(a, b); }
FASTEBM_OP Wides multiply_low(Wides a, Wides b) { return _mm256_mul_epu32(a, b); }  // low halves
template <int kBits>
FASTEBM_OP Wides shift_right(Wides a) {
  return _mm256_srli_epi64(a, kBits);
}
FASTEBM_OP Wides high_half(Wides a) { return shift_right<32>(a); }
FASTEBM_OP Wides and_wide(Wides a, Wides b) { return _mm256_and_si256(a, b); }
FASTEBM_OP Wides or_wide(Wides a, Wides b) { return _mm256_or_si256(a, b); }
FASTEBM_OP Wides xor_wide(Wides a, Wides b) { return _mm256_xor_si256(a, b); }
FASTEBM_OP Wides xor3(Wides a, Wides b, Wides c) {
  return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}
// The low halves of two and two lanes of a and b, in turn, inside each 128 bits.
FASTEBM_OP Ints low_halves(Wides a, Wides b) {
  return _mm256_castps_si256(
      _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88));
}
FASTEBM_OP Floats unpack_low(Floats a, Floats b) { return _mm256_unpacklo_ps(a, b); }
FASTEBM_OP Floats unpack_high(Floats a, Floats b) { return _mm256_unpackhi_ps(a, b); }
FASTEBM_OP Floats unpack_low_pairs(Floats a, Floats b) {
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
FASTEBM_OP Floats unpack_high_pairs(Floats a, Floats b) {
  return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}

FASTEBM_OP Floats load(const float* p) { return _mm256_loadu_ps(p); }
FASTEBM_OP Floats load(const Bfloat16* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
FASTEBM_OP Floats load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// p[index], every index in 0 .. kLanes; reads 2 kLanes elements of p.
FASTEBM_OP Floats pick_near(const float* p, const int32_t* index) {
  const __m256i i = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p), i);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p + 8), i);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
}
FASTEBM_OP Doubles load(const double* p) { return _mm256_loadu_pd(p); }
FASTEBM_OP Floats load_bytes(const uint8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
FASTEBM_OP void store(double* p, Doubles v) { _mm256_storeu_pd(p, v); }
FASTEBM_OP void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
FASTEBM_OP void store(Bfloat16* p, Floats v) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i w = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(w, w), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
FASTEBM_OP void store(Float16* p, Floats v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#undef FASTEBM_OP
