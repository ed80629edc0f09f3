// Underdamped Langevin chains in the order of BAOAB on the energy of a small perceptron, all steps
// in one call: what a caller fills in, and the launchers. No torch, no Python. Samples never meet,
// as in mlp/chain.
//
// Step k, with the gradient g at x,
//   v -= kick g;  x += h/2 v;  v = decay v + sigma n;  x += h/2 v,   kick = h'/2 + h/2,
// h being the step's size and h' that of the step before: between steps the velocity is half a kick
// behind (Leimkuhler and Matthews 2013). Where x leaves the box it is reflected, and v with it,
// after each change of x.
#pragma once
#include "mlp/chain/chain.h"
#include "mlp/chain/coefficient.h"
#include "underdamped/underdamped.h"

namespace fastebm {

// `chain` is as for mlp_adjusted_*(); its step sizes and noise are h and sigma of each step.
struct MlpUnderdampedParams {
  MlpChainParams chain;
  bool known;
  ChainCoefficient first_kick, decay;  // h'/2 of the first step; factors of all of them
  const float *lo, *hi;                // null, or (D,): the box
  float* velocity;                     // (B, D), half a kick behind
};

// As those of mlp/chain/chain.h.
using MlpUnderdampedLauncher = int(const MlpUnderdampedParams& p, int64_t begin, int64_t end,
                                   void* stream);
MlpUnderdampedLauncher mlp_underdamped_cpu;
int64_t mlp_underdamped_scratch_cpu(MlpUnderdampedParams* p, int threads);

// What the elements of one sample share in step k.
FASTEBM_HD UnderdampedCoefficients<float> underdamped_coefficients(const MlpUnderdampedParams& p,
                                                                   int64_t k, int64_t row) {
  const RowCoefficients<float> c = chain_coefficients(p.chain, k, row, 1.0f);
  const float drift = 0.5f * c.step;
  const float before = k == 0 ? coefficient_at(p.first_kick, 0, row)
                              : 0.5f * chain_coefficients(p.chain, k - 1, row, 1.0f).step;
  return {before + drift, drift, coefficient_at(p.decay, k, row), c.sigma};
}

}  // namespace fastebm
