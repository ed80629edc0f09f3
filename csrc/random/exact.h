// exp and log of single values by exactly rounded operations only, so that every path (scalar,
// AVX2, AVX-512, CUDA, emulated CUDA) gives the same bits: the formulas of vectors on one lane.
#pragma once
#include "random/philox.h"

namespace fastebm::exact {

using Floats = float;
using Ints = uint32_t;

FASTEBM_HD Floats set(float v) { return v; }
FASTEBM_HD Ints set_int(int32_t v) { return static_cast<uint32_t>(v); }
FASTEBM_HD Ints bits_of(Floats v) { return float_bits(v); }
FASTEBM_HD Floats floats_of(Ints v) { return float_from_bits(v); }
FASTEBM_HD Floats fma(Floats a, Floats b, Floats c) { return fma_rn(a, b, c); }
FASTEBM_HD Floats mul(Floats a, Floats b) { return mul_rn(a, b); }
FASTEBM_HD Floats add(Floats a, Floats b) { return a + b; }
FASTEBM_HD Floats sub(Floats a, Floats b) { return a - b; }
FASTEBM_HD Floats div(Floats a, Floats b) { return a / b; }
FASTEBM_HD Floats min(Floats a, Floats b) { return a < b ? a : b; }
FASTEBM_HD Floats max(Floats a, Floats b) { return a > b ? a : b; }
FASTEBM_HD Floats pick_less(Floats a, Floats b, Floats x, Floats y) { return a < b ? x : y; }
FASTEBM_HD Floats pick_negative(Ints which, Floats a, Floats b) { return which >> 31 ? a : b; }
FASTEBM_HD Ints add(Ints a, Ints b) { return a + b; }
FASTEBM_HD Ints sub(Ints a, Ints b) { return a - b; }
FASTEBM_HD Ints bit_and(Ints a, Ints b) { return a & b; }
FASTEBM_HD Ints bit_xor(Ints a, Ints b) { return a ^ b; }
template <int kBits>
FASTEBM_HD Ints shift_left(Ints a) {
  return a << kBits;
}
template <int kBits>
FASTEBM_HD Ints shift_right_signed(Ints a) {
  return static_cast<uint32_t>(static_cast<int32_t>(a) >> kBits);
}
FASTEBM_HD Floats to_float(Ints a) { return static_cast<float>(static_cast<int32_t>(a)); }
FASTEBM_HD Floats unsigned_to_float(Ints a) { return uint_to_float_rn(a); }

#ifdef __CUDACC__
#define FASTEBM_TARGET __host__ __device__
#else
#define FASTEBM_TARGET __attribute__((always_inline))
#endif
#include "random/log_simd.h"
#include "simd/exp.h"
#undef FASTEBM_TARGET

}  // namespace fastebm::exact
