// Hamiltonian Monte Carlo on the energy of a small perceptron, all trajectories in one call: what a
// caller fills in, and the launchers. No torch, no Python. The rule is in
// hamiltonian/hamiltonian.h; samples never meet, as in mlp/chain.
#pragma once
#include "hamiltonian/hamiltonian.h"
#include "mlp/chain/chain.h"
#include "mlp/chain/coefficient.h"

namespace fastebm {

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
  int32_t* divergent;            // (B,): 1 is added where is_divergent(log r), the box aside
};

// As those of mlp/chain/chain.h.
using MlpHmcLauncher = int(const MlpHmcParams& p, int64_t begin, int64_t end, void* stream);
MlpHmcLauncher mlp_hmc_cpu;
int64_t mlp_hmc_scratch_cpu(MlpHmcParams* p, int threads);

// The temperature of trajectory k: NaN where it is not positive, whose sample is refused.
FASTEBM_HD float trajectory_temperature(const MlpHmcParams& p, int64_t k, int64_t row) {
  const float t = coefficient_at(p.temperature, k, row);
  return t > 0.0f ? t : float_from_bits(0x7fc00000u);
}

}  // namespace fastebm
