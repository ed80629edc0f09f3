// Hamiltonian Monte Carlo on any energy: what a caller fills in, the launcher, and the arithmetic
// of one element and of a sample's decision. No torch, no Python.
//
// A transition from x draws velocities v ~ N(0, T), of unit mass, and follows H(y, v) = E(y) +
// |v|^2 / 2 by n leapfrog steps of size h from y = x:
//   v -= h/2 g(y),  y += h v,  v -= h/2 g(y),
// where the last kick of a step and the first of the next are one. It is accepted with probability
// min(1, r), log r = (H(x, v_0) - H(y, v)) / T, which leaves exp(-E / T) as it is (Duane, Kennedy,
// Pendleton and Roweth 1987; Neal 2011). What is outside of the box, or has NaN for r, is refused.
//
// Between two calls the caller finds the gradient, and at a trajectory's end the energy, at y: so n
// steps take n gradients and n calls, as a call that ends a trajectory begins the next one.
//
// h = step_size (1 + jitter (2u - 1)), u uniform for each sample and transition, so that no period
// of the motion is met for ever (Mackenzie 1989).
#pragma once
#include "launch/rows.h"
#include "random/accept.h"

namespace fastebm {

constexpr uint32_t kVelocityTag = 0x8c, kJitterTag = 0x8d;
constexpr double kDivergence = 1000;  // |log r| of a trajectory that is lost

// All arrays are dense, of `dtype`, float32 or float64, but for the counts. With grad_y alone the
// trajectory of step t of the stream takes a step; with e_y as well it ends, by the numbers of step
// t, and where `begin` says so that of step t + 1 begins. With neither that of step t begins.
struct HamiltonianParams {
  Dtype dtype;
  int64_t batch, dim;
  void *x, *energy, *grad;   // (B, D), (B,), (B, D): the chain
  void *y, *v, *kinetic;     // (B, D), (B, D), (B,): the trajectory, and |v|^2 / 2 at its start
  float* acceptance;         // (B,): sums of min(1, r)
  int32_t* divergent;        // (B,): counts of |log r| > kDivergence, or not finite
  const void *e_y, *grad_y;  // (B,), (B, D), or null
  PerSample step_size, temperature;
  bool begin;
  PerSample next_step_size, next_temperature;  // of the trajectory that begins
  double jitter;                               // in [0, 1)
  SampleBox box;                               // that y may not be out of at the end
  const int64_t* rng;         // {key, step, first sample id, 0}, on the device of x
  uint32_t t;                 // added to the step in rng
  const int64_t* sample_ids;  // null: first sample id + row; or (batch,)
};

FASTEBM_HD uint64_t sample_id(const HamiltonianParams& p, int64_t row) {
  return static_cast<uint64_t>(p.sample_ids ? p.sample_ids[row] : p.rng[2] + row);
}

// Of the transition that the call has to do with, or, where one has ended, of the next.
FASTEBM_HD NoiseKey noise_key(const HamiltonianParams& p, bool next, uint32_t tag) {
  const uint32_t step = static_cast<uint32_t>(p.rng[1]) + p.t + (next ? 1 : 0);
  return NoiseKey{static_cast<uint64_t>(p.rng[0]), step, tag};
}

// h, u being uniform in [0, 1).
template <class C>
FASTEBM_HD C jittered(C step, C jitter, C u) {
  return step * (C(1) + jitter * (C(2) * u - C(1)));
}

// A kick by the gradient over the time h, and a move by the velocity.
template <class C>
FASTEBM_HD C kicked(C v, C grad, C h) {
  return fma_rn(-h, grad, v);
}
template <class C>
FASTEBM_HD C moved(C y, C v, C h) {
  return fma_rn(h, v, y);
}

// (H(x, v_0) - H(y, v)) / T; square is |v|^2.
template <class C>
FASTEBM_HD C log_ratio(C e_x, C e_y, C kinetic, C square, C temperature) {
  return ((e_x - e_y) + (kinetic - C(0.5) * square)) / temperature;
}

template <class C>
FASTEBM_HD bool is_divergent(C log_r) {
  return !(std::fabs(log_r) <= C(kDivergence));
}

// Both devices: returns 0 or a cudaError_t. The CPU launcher takes the samples [begin, end), the
// CUDA one all of them, on `stream`.
using HamiltonianLauncher = int(const HamiltonianParams& p, int64_t begin, int64_t end,
                                void* stream);
HamiltonianLauncher hmc_step_cpu, hmc_step_cuda;

}  // namespace fastebm
