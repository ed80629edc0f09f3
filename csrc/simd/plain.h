// Four lanes, in the vectors of the compiler, for any CPU: the operations of simd/avx2.h that mlp,
// neighbor and replay use. Included inside a namespace of its own, where FASTEBM_TARGET is empty.

typedef float Floats __attribute__((vector_size(16)));
typedef uint32_t Ints __attribute__((vector_size(16)));  // sums wrap
typedef double Doubles __attribute__((vector_size(16)));
constexpr int kLanes = 4;

#define FASTEBM_OP inline
template <class V, class T>
FASTEBM_OP V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
FASTEBM_OP unsigned sign_bits(V v) {
  unsigned bits = 0;
  for (unsigned i = 0; i < sizeof v / sizeof v[0]; ++i) bits |= (v[i] < 0 ? 1u : 0u) << i;
  return bits;
}
FASTEBM_OP Floats set(float v) { return Floats{v, v, v, v}; }
FASTEBM_OP Doubles set(double v) { return Doubles{v, v}; }
FASTEBM_OP Floats load(const float* p) { return load_as<Floats>(p); }
FASTEBM_OP Doubles load(const double* p) { return load_as<Doubles>(p); }
FASTEBM_OP Floats load(const Bfloat16* p) {
  return Floats{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
}
FASTEBM_OP Floats load(const Float16* p) {
  return Floats{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
}
FASTEBM_OP Floats load_bytes(const uint8_t* p) {
  return Floats{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
}
FASTEBM_OP void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
FASTEBM_OP void store(double* p, Doubles v) { std::memcpy(p, &v, sizeof v); }
FASTEBM_OP Floats add(Floats a, Floats b) { return a + b; }
FASTEBM_OP Floats sub(Floats a, Floats b) { return a - b; }
FASTEBM_OP Floats mul(Floats a, Floats b) { return a * b; }
FASTEBM_OP Floats div(Floats a, Floats b) { return a / b; }
FASTEBM_OP Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }  // rounded twice
FASTEBM_OP Floats sqrt(Floats a) {
  return Floats{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
                __builtin_sqrtf(a[3])};
}
FASTEBM_OP Floats abs(Floats a) { return a < 0.0f ? -a : a + 0.0f; }
FASTEBM_OP Ints bits_of(Floats v) { return load_as<Ints>(&v); }
FASTEBM_OP Floats floats_of(Ints v) { return load_as<Floats>(&v); }
FASTEBM_OP Ints set_int(int32_t v) {
  const uint32_t u = static_cast<uint32_t>(v);
  return Ints{u, u, u, u};
}
FASTEBM_OP Ints load_ints(const void* p) { return load_as<Ints>(static_cast<const char*>(p)); }
FASTEBM_OP Ints add(Ints a, Ints b) { return a + b; }
FASTEBM_OP Ints sub(Ints a, Ints b) { return a - b; }
FASTEBM_OP Floats to_float(Ints a) {  // of signed ones
  typedef int32_t Signed __attribute__((vector_size(16)));
  return __builtin_convertvector(reinterpret_cast<Signed>(a), Floats);
}
// Of every lane the low 8 bits.
FASTEBM_OP void store_low_bytes(uint8_t* p, Ints v) {
  for (int l = 0; l < kLanes; ++l) p[l] = static_cast<uint8_t>(v[l]);
}
#if defined(__SSE2__)
// In every lane the sum of two products of signed 16-bit halves.
FASTEBM_OP Ints multiply_pairs(Ints a, Ints b) {
  return reinterpret_cast<Ints>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
#endif
template <int kBits>
FASTEBM_OP Ints shift_left(Ints a) {
  return a << kBits;
}
FASTEBM_OP float sum(Floats v) { return (v[0] + v[1]) + (v[2] + v[3]); }
FASTEBM_OP float lowest(Floats v) {
  const float a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
  return a < b ? a : b;
}
FASTEBM_OP double lowest(Doubles v) { return v[0] < v[1] ? v[0] : v[1]; }
// min and max return their second operand where one is NaN.
FASTEBM_OP Floats min(Floats a, Floats b) { return a < b ? a : b; }
FASTEBM_OP Floats max(Floats a, Floats b) { return a > b ? a : b; }
FASTEBM_OP Doubles min(Doubles a, Doubles b) { return a < b ? a : b; }
FASTEBM_OP Floats min_square(Floats a, Floats b) { return min(a, b); }
FASTEBM_OP Doubles min_square(Doubles a, Doubles b) { return min(a, b); }
// x where a < b, y elsewhere and for NaN.
FASTEBM_OP Floats pick_less(Floats a, Floats b, Floats x, Floats y) { return a < b ? x : y; }
// p[index], every index in 0 .. kLanes.
FASTEBM_OP Floats pick_near(const float* p, const int32_t* index) {
  return Floats{p[index[0]], p[index[1]], p[index[2]], p[index[3]]};
}
FASTEBM_OP unsigned not_greater(Floats a, Floats b) { return ~sign_bits(a > b) & 15u; }
FASTEBM_OP Doubles sub(Doubles a, Doubles b) { return a - b; }
FASTEBM_OP Doubles mul(Doubles a, Doubles b) { return a * b; }
FASTEBM_OP Doubles fma(Doubles a, Doubles b, Doubles c) { return a * b + c; }
FASTEBM_OP unsigned not_greater(Doubles a, Doubles b) { return ~sign_bits(a > b) & 3u; }
#undef FASTEBM_OP
