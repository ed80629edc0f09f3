// Metropolis-adjusted Langevin chains, with jumps between the modes of a population, on the energy
// of a small perceptron, all steps in one call: what a caller fills in, and the launchers. No
// torch, no Python. The rule is in metropolis/metropolis.h; samples never meet, as in mlp/chain.
#pragma once
#include "metropolis/metropolis.h"
#include "mlp/chain/chain.h"

namespace fastebm {

// `chain` is as for mlp_chain_*(), but that
//   lo, hi, step.lo, step.hi, the three clips, noise_first and bfloat16 are not looked at,
//   energy (B,) and grad (B, D) are not null: E and its gradient at x, at the start where `known`
//   says so, else computed first (one evaluation more), and in the end those of the last x.
// Transition k of the call, k < n_steps, is a jump where every > 0 and (first + k + 1) % every ==
// 0, else a Langevin proposal; both take the coefficients of step k and the noise of step.t + k.
struct MlpAdjustedParams {
  MlpChainParams chain;
  bool known;
  JumpTargets jumps;  // and the box that no proposal may leave
  int64_t every, first;
  float* acceptance;  // (2, B): min(1, r) of the Langevin proposals and the jumps that were
                      // accepted are added
};

// As those of mlp/chain/chain.h.
using MlpAdjustedLauncher = int(const MlpAdjustedParams& p, int64_t begin, int64_t end,
                                void* stream);
MlpAdjustedLauncher mlp_adjusted_cpu, mlp_adjusted_cuda;
int64_t mlp_adjusted_scratch_cpu(MlpAdjustedParams* p, int threads);
int64_t mlp_adjusted_scratch_cuda(const MlpAdjustedParams& p);

FASTEBM_HD bool is_jump(const MlpAdjustedParams& p, int64_t k) {
  return p.every > 0 && (p.first + k + 1) % p.every == 0;
}

// The coefficients of transition k: without noise there is no ratio, so a sigma of 0 is NaN as
// well.
FASTEBM_HD RowCoefficients<float> adjusted_coefficients(const MlpAdjustedParams& p, int64_t k,
                                                        int64_t row) {
  RowCoefficients<float> c = chain_coefficients(p.chain, k, row, 1.0f);
  if (!(c.sigma > 0.0f)) c.sigma = float_from_bits(0x7fc00000u);
  return c;
}

}  // namespace fastebm
