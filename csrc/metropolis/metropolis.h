// Metropolis' rule for Langevin proposals and for jumps between samples of a population: the
// arithmetic of one sample, what a caller of the jumps fills in, and their launchers. No torch, no
// Python.
//
// A Langevin proposal from x is y = x - a(x) g(x) + sigma n, g the gradient of E, with a drift that
// is bounded: a(x) = min(step, sigma sqrt(D) / |g(x)|). It is accepted with probability min(1, r),
//   log r = (E(x) - E(y)) / T - (|x - y + a(y) g(y)|^2 - |y - x + a(x) g(x)|^2) / (2 sigma^2),
// T = sigma^2 / (2 step), and then leaves exp(-E / T) as it is (Roberts and Tweedie 1996: MALTA).
// A jump is y = x + b_i - b_j with b_i and b_j two samples of a population, drawn uniformly, or
// with some probability a uniform point of the box: both are as likely as their way back, and so
// log r = (E(x) - E(y)) / T. What is outside of the box, or has no finite r, is refused.
#pragma once
#include "random/philox.h"

namespace fastebm {

constexpr uint32_t kAcceptTag = 0x88, kJumpTag = 0x8a;

// a(x) of the drift, from |g|^2.
FASTEBM_HD float drift_step(float step, float sigma, float root_dim, float square) {
  const float most = sigma * root_dim / std::sqrt(square);
  return most < step ? most : step;
}

// What log r of a Langevin proposal is made of: sums over the elements, u = y - x.
struct ProposalSums {
  float along_x, along_y;    // u . g(x), u . g(y)
  float square_x, square_y;  // |g(x)|^2, |g(y)|^2
};

FASTEBM_HD float log_ratio(float e_x, float e_y, float step, float sigma, float a_x, float a_y,
                           const ProposalSums& s) {
  const float squares = a_y * a_y * s.square_y - a_x * a_x * s.square_x;
  const float sum = a_x * s.along_x + a_y * s.along_y - 0.5f * squares;
  return (2.0f * step * (e_x - e_y) + sum) / (sigma * sigma);
}

FASTEBM_HD float jump_log_ratio(float e_x, float e_y, float step, float sigma) {
  return 2.0f * step * (e_x - e_y) / (sigma * sigma);
}

// Whether log r > log u, u uniform: -log u is (n_0^2 + n_1^2) / 2 of the first two normals of the
// sample's block 0 under kAcceptTag. False for NaN.
FASTEBM_HD bool is_accepted(float log_r, float n0, float n1) {
  return log_r > -0.5f * (n0 * n0 + n1 * n1);
}

// min(1, r); 0 for NaN.
FASTEBM_HD float acceptance(float log_r) {
  return log_r >= 0.0f ? 1.0f : log_r < 0.0f ? std::exp(log_r) : 0.0f;
}

// Jumps of a batch. x (B, D), population (P, D) and out (B, D) are dense float32.
struct JumpParams {
  int64_t batch, dim;
  const float* x;
  const float* population;  // null for none, then size is 0
  int64_t size;             // P, 2 at least
  float* out;
  const int64_t* rng;         // {key, step, first sample id, 0}, on the device of x
  uint32_t t;                 // added to the step in rng
  const int64_t* sample_ids;  // null: first sample id + row; or (B,)
  const float *lo, *hi;       // null, or (D,): the box of uniform points
  uint32_t uniform_below;  // a jump is one of these where word 2 is below; 2^32 - 1 stands for all
};

// Where a sample jumps to: the difference of two samples, or a uniform point.
struct Jump {
  int64_t i, j;
  bool uniform;
};

// From block 0 under kJumpTag.
FASTEBM_HD Jump jump_of(const Words4& w, int64_t size, uint32_t uniform_below) {
  Jump jump;
  jump.uniform = w.v[2] < uniform_below || size == 0;
  jump.i = mul_high(w.v[0], static_cast<uint32_t>(size));
  jump.j = mul_high(w.v[1], static_cast<uint32_t>(size - 1));
  jump.j += jump.j >= jump.i;  // another one
  return jump;
}

FASTEBM_HD float jump_element(float x, float b_i, float b_j) { return x + (b_i - b_j); }

// An element of a uniform point, from word d % 4 of block 1 + d / 4.
FASTEBM_HD float uniform_element(uint32_t word, float lo, float hi) {
  const float u = fma_rn(uint_to_float_rn(word), 2.3283064365386963e-10f, 1.1641532182693481e-10f);
  return fma_rn(hi - lo, u, lo);
}

FASTEBM_HD NoiseKey noise_key(const JumpParams& p) {
  return NoiseKey{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]) + p.t, kJumpTag};
}

FASTEBM_HD uint64_t sample_id(const JumpParams& p, int64_t row) {
  return static_cast<uint64_t>(p.sample_ids ? p.sample_ids[row] : p.rng[2] + row);
}

// Four random words of a sample.
FASTEBM_HD Words4 jump_words(const NoiseKey& k, uint64_t sample_id, uint32_t block) {
  return philox4x32(noise_counter(k, sample_id, block), static_cast<uint32_t>(k.key),
                    static_cast<uint32_t>(k.key >> 32));
}

// Both devices: returns 0 or a cudaError_t. The CPU launcher takes the samples [begin, end), the
// CUDA one all of them, on `stream`.
using JumpLauncher = int(const JumpParams& p, int64_t begin, int64_t end, void* stream);
JumpLauncher population_jump_cpu, population_jump_cuda;

}  // namespace fastebm
