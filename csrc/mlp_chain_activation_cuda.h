// Activations on a CUDA device: the formulas of the CPU, with the hardware's exponential and
// reciprocal, which are good to 2 units of the last place.
#pragma once
#include "device.h"
#include "mlp_chain.h"

namespace fastebm {
namespace {

namespace lane {
using Floats = float;
#define FASTEBM_TARGET __device__
#define FASTEBM_OP __device__ __forceinline__
FASTEBM_OP Floats set(float v) { return v; }
FASTEBM_OP Floats add(Floats a, Floats b) { return a + b; }
FASTEBM_OP Floats sub(Floats a, Floats b) { return a - b; }
FASTEBM_OP Floats mul(Floats a, Floats b) { return a * b; }
FASTEBM_OP Floats fma(Floats a, Floats b, Floats c) { return fma_rn(a, b, c); }
FASTEBM_OP Floats abs(Floats a) { return fabsf(a); }
// The second operand where one is NaN.
FASTEBM_OP Floats min(Floats a, Floats b) { return a < b ? a : b; }
FASTEBM_OP Floats max(Floats a, Floats b) { return a > b ? a : b; }
FASTEBM_OP Floats pick_less(Floats a, Floats b, Floats x, Floats y) { return a < b ? x : y; }
#ifdef __CUDACC__
FASTEBM_OP Floats div(Floats a, Floats b) { return __fdividef(a, b); }
FASTEBM_OP Floats exp_minus(Floats y) { return __expf(-y); }
#else
FASTEBM_OP Floats div(Floats a, Floats b) { return a / b; }
FASTEBM_OP Floats exp_minus(Floats y) { return std::exp(-y); }
#endif
#include "mlp_chain_activation_simd.h"
#undef FASTEBM_OP
#undef FASTEBM_TARGET

// The same within 2^-10 max(|z|, 1), an eighth of what rounding to bfloat16 may do to it.
template <Activation kActivation>
__device__ __forceinline__ Activated activate_roughly(float z, float beta, float threshold) {
  if constexpr (kActivation == Activation::kSilu) {
    const float s = fma_rn(0.5f, tanh_approximate(0.5f * z), 0.5f), value = z * s;
    return {value, fma_rn(value, 1.0f - s, s)};
  } else if constexpr (kActivation == Activation::kTanh) {
    const float value = tanh_approximate(z);
    return {value, fma_rn(-value, value, 1.0f)};
  } else {
    return activate<kActivation>(z, beta, threshold);
  }
}
}  // namespace lane

}  // namespace
}  // namespace fastebm
