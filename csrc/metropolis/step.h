// One transition of Langevin chains under Metropolis' rule, on any energy: what a caller fills in,
// the launchers, and the arithmetic of a sample's decision. No torch, no Python. The rule is in
// metropolis/metropolis.h.
//
// Between two calls the caller finds energy and gradient at y. A call accepts or refuses these, and
// makes the next proposal from where the chain then is, in one pass over the sample.
#pragma once
#include "launch/rows.h"
#include "metropolis/metropolis.h"

namespace fastebm {

constexpr uint32_t kProposalTag = 0x80;  // as of Langevin steps

// All arrays are dense, of `dtype`, float32 or float64, but for `acceptance`. With e_y and grad_y y
// is decided about: by the numbers of step t of the stream, as a jump where there is a log_factor.
// A proposal is made, where `propose` says so, with the noise of step t, or t + 1 after a decision.
struct MetropolisStepParams {
  Dtype dtype;
  int64_t batch, dim;
  void *x, *energy, *grad;  // (B, D), (B,), (B, D): the chain
  float* acceptance;        // (2, B): min(1, r) of Langevin proposals, and jumps that were accepted
  void* y;                  // (B, D)
  const void *e_y, *grad_y;        // (B,), (B, D); null both: y was not proposed yet
  PerSample step_size, noise_std;  // of what is decided about
  const void* log_factor;          // null, or (B,)
  SampleBox box;                   // that y may not be out of
  bool propose;
  PerSample next_step_size, next_noise_std;  // of what is proposed
  const int64_t* rng;                        // {key, step, first sample id, 0}, on the device of x
  uint32_t t;                                // added to the step in rng
  const int64_t* sample_ids;                 // null: first sample id + row; or (batch,)
};

FASTEBM_HD uint64_t sample_id(const MetropolisStepParams& p, int64_t row) {
  return static_cast<uint64_t>(p.sample_ids ? p.sample_ids[row] : p.rng[2] + row);
}

FASTEBM_HD NoiseKey noise_key(const MetropolisStepParams& p, uint32_t t, uint32_t tag) {
  return NoiseKey{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]) + t, tag};
}
FASTEBM_HD NoiseKey accept_key(const MetropolisStepParams& p) {
  return noise_key(p, p.t, kAcceptTag);
}
FASTEBM_HD NoiseKey proposal_key(const MetropolisStepParams& p) {
  return noise_key(p, p.e_y ? p.t + 1 : p.t, kProposalTag);
}

// log r of sample `row`, NaN where it is to be refused.
template <class C, bool kJump>
FASTEBM_HD C log_ratio_of(const MetropolisStepParams& p, int64_t row, C e_x,
                          const ProposalSums<C>& sums, C step, C sigma, bool inside) {
  const C e_y = static_cast<const C*>(p.e_y)[row], root_dim = std::sqrt(static_cast<C>(p.dim));
  C log_r;
  if (kJump) {
    log_r = jump_log_ratio(e_x, e_y, step, sigma, static_cast<const C*>(p.log_factor)[row]);
  } else {
    const C a_x = drift_step(step, sigma, root_dim, sums.square_x);
    const C a_y = drift_step(step, sigma, root_dim, sums.square_y);
    log_r = log_ratio(e_x, e_y, step, sigma, a_x, a_y, sums);
  }
  return inside ? log_r : static_cast<C>(NAN);
}

// An element of a proposal.
template <class C>
FASTEBM_HD C propose_element(C x, C grad, C drift, C sigma, C n) {
  return fma_rn(sigma, n, fma_rn(-drift, grad, x));
}

// Both devices: returns 0 or a cudaError_t. The CPU launcher takes the samples [begin, end), the
// CUDA one all of them, on `stream`.
using MetropolisStepLauncher = int(const MetropolisStepParams& p, int64_t begin, int64_t end,
                                   void* stream);
MetropolisStepLauncher metropolis_step_cpu, metropolis_step_cuda;

}  // namespace fastebm
