// Metropolis' decision about a proposal whose log r is known.
#pragma once
#include "random/philox.h"

namespace fastebm {

constexpr uint32_t kAcceptTag = 0x88;

// Whether log r > log u, u uniform: -log u is (n_0^2 + n_1^2) / 2 of the first two normals of the
// sample's block 0 under kAcceptTag. False for NaN.
template <class C>
FASTEBM_HD bool is_accepted(C log_r, float n0, float n1) {
  return log_r > static_cast<C>(-0.5f * (n0 * n0 + n1 * n1));
}

// min(1, r); 0 for NaN. By exactly rounded operations, those of exp_minus() in simd/exp.h: alike on
// all paths, with a relative error of 3e-9 before the last rounding; below exp(-87) it is 0.
FASTEBM_HD float acceptance(float log_r) {
  const float y = log_r < 0.0f ? -log_r : 0.0f, shifter = 12582912.0f;  // 1.5 2^23
  const float shifted = fma_rn(y, -1.44269504f, shifter), n = shifted - shifter;
  const float r = fma_rn(n, -2.12194440e-4f, fma_rn(n, 0.693359375f, y));
  float p = fma_rn(-0.0013814467238262296f, r, 0.008368780836462975f);
  p = fma_rn(p, r, -0.04166839271783829f);
  p = fma_rn(p, r, 0.1666651964187622f);
  p = fma_rn(p, r, -0.4999999403953552f);
  p = 1.0f - fma_rn(p * r, r, r);
  const float e = float_from_bits(float_bits(p) + (float_bits(shifted) << 23));
  return log_r >= 0.0f ? 1.0f : log_r > -87.0f ? e : 0.0f;
}

}  // namespace fastebm
