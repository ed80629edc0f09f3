// Activations on a CUDA device: the formulas of the CPU, one value at a time.
#pragma once
#include "launch/ptx_cuda.h"
#include "mlp/mlp.h"
#include "random/philox.h"

namespace fastebm {
namespace {

namespace lane {
#define FASTEBM_TARGET [[maybe_unused]] __device__
#include "simd/one.h"
FASTEBM_TARGET inline Floats fma(Floats a, Floats b, Floats c) { return fma_rn(a, b, c); }
FASTEBM_TARGET inline Floats abs(Floats a) { return fabsf(a); }
FASTEBM_TARGET inline Floats exp_minus(Floats y) { return expf(-y); }
FASTEBM_TARGET inline Floats exp_minus_signed(Floats z) { return expf(-z); }
FASTEBM_TARGET inline Floats ratio(Floats a, Floats b) { return ratio_approximate(a, b); }
#include "mlp/activation_simd.h"
#undef FASTEBM_TARGET

// Value and slope within 2^-10 max(|z|, 1), a quarter of what rounding to bfloat16 may do to them;
// no curvature.
template <Activation kActivation>
__device__ __forceinline__ Activated activate_roughly(float z, float beta, float threshold) {
  if constexpr (kActivation == Activation::kSilu) {
    const float s = fma_rn(0.5f, tanh_approximate(0.5f * z), 0.5f), value = z * s;
    return {value, fma_rn(value, 1.0f - s, s), 0.0f};
  } else if constexpr (kActivation == Activation::kTanh) {
    const float value = tanh_approximate(z);
    return {value, fma_rn(-value, value, 1.0f), 0.0f};
  } else {
    return activate<kActivation>(z, beta, threshold);
  }
}
}  // namespace lane

}  // namespace
}  // namespace fastebm
