// Metropolis' decision about a proposal whose log r is known.
#pragma once
#include "random/exact.h"

namespace fastebm {

constexpr uint32_t kAcceptTag = 0x88;

// Whether log r > log u, u uniform: -log u is (n_0^2 + n_1^2) / 2 of the first two normals of the
// sample's block 0 under kAcceptTag. False for NaN.
template <class C>
FASTEBM_HD bool is_accepted(C log_r, float n0, float n1) {
  return log_r > static_cast<C>(-0.5f * (n0 * n0 + n1 * n1));
}

// min(1, r); 0 for NaN. The same bits on all paths.
FASTEBM_HD float acceptance(float log_r) {
  return log_r >= 0.0f ? 1.0f : log_r < 0.0f ? exact::exp_minus(-log_r) : 0.0f;
}

}  // namespace fastebm
