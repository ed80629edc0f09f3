// Hamiltonian Monte Carlo on the energy of a small perceptron, all trajectories in one call: what a
// caller fills in, and the launchers. No torch, no Python. Samples never meet, as in mlp/chain.
//
// A trajectory begins with a velocity v from N(0, T) and makes n_leapfrog steps
//   v -= h/2 g(x);  x += h v;  v -= h/2 g(x),   h = step (1 + jitter (2 u - 1)), u uniform,
// a u for each sample and trajectory; two halves of a kick that meet are one. Its end is accepted
// with probability min(1, r), log r = (H(start) - H(end)) / T, H = E + |v|^2 / 2, and refused where
// it is outside of the box or r is NaN (Duane et al. 1987; Neal 2011).
#pragma once
#include "metropolis/metropolis.h"
#include "mlp/chain/chain.h"
#include "mlp/chain/coefficient.h"

namespace fastebm {

constexpr uint32_t kVelocityTag = 0x8c, kJitterTag = 0x8d;
constexpr float kDivergence = 1000.0f;  // |log r| of a trajectory that is lost

// `chain` is as for mlp_adjusted_*(), n_steps being those trajectories; its noise_std is not looked
// at. Trajectory k takes the coefficients of step k and the random numbers of step.t + k.
struct MlpHmcParams {
  MlpChainParams chain;
  bool known;
  int64_t n_leapfrog;            // >= 1
  double jitter;                 // in [0, 1)
  ChainCoefficient temperature;  // > 0
  const float *lo, *hi;          // null, or (D,): the box
  float* acceptance;             // (B,): min(1, r) is added
  int32_t* divergent;            // (B,): 1 is added where |log r| > kDivergence, or not finite
};

// As those of mlp/chain/chain.h.
using MlpHmcLauncher = int(const MlpHmcParams& p, int64_t begin, int64_t end, void* stream);
MlpHmcLauncher mlp_hmc_cpu;
int64_t mlp_hmc_scratch_cpu(MlpHmcParams* p, int threads);

// The temperature of trajectory k: NaN where there is none, whose sample is refused.
FASTEBM_HD float trajectory_temperature(const MlpHmcParams& p, int64_t k, int64_t row) {
  const float t = coefficient_at(p.temperature, k, row);
  return t > 0.0f ? t : float_from_bits(0x7fc00000u);
}

}  // namespace fastebm
