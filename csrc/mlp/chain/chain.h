// All steps of a Langevin chain on the energy of a small multi-layer perceptron: what a caller
// fills in, the launchers, and what one step shares. No torch, no Python.
//
// Samples never meet, so a tile of them goes through all steps where it lies: in a core's cache, or
// in a multiprocessor's registers and shared memory.
#pragma once
#include <atomic>

#include "langevin/langevin.h"
#include "mlp/mlp.h"

namespace fastebm {

// A chain. `step` describes its steps: x = out (B, D) float32, no grad, no mask; step k of the
// chain, k < n_steps, takes the noise of step.t + k. Coefficients that are tables have n_steps or 1
// rows of B or 1 values: strides of 0 stand for what all share.
struct MlpChainParams {
  LangevinParams step;
  Mlp mlp;
  const float* row_bias;  // null, or (B, width_1): each sample's first-layer biases, for mlp's
  const float *lo, *hi;   // null, or (D,): the box, for step.lo and step.hi
  int64_t n_steps;
  int64_t step_sizes_stride[2], noise_stds_stride[2];  // of a step, of a sample
  bool noise_first;  // x <- x + sigma n, then the gradient there, then the rest of the step
  bool bfloat16;     // CUDA: products of bfloat16 on tensor cores, sums of float32
  float* energy;     // null, or (B,): E at the point whose gradient the last step used
  float* grad;       // null, or (B, D): that gradient, unclipped
  void* scratch;     // mlp_chain_scratch_*() bytes, 64-byte aligned; null for none
  int tasks;         // CPU: how many go through the batch, each with a part of the scratch
  std::atomic<int64_t>* next;  // CPU: the first sample that no task has taken yet
};

// CPU: the tasks [begin, end) of p.tasks, until no sample is left; CUDA: all samples, on `stream`.
// 0 or a cudaError_t.
using MlpChainLauncher = int(const MlpChainParams& p, int64_t begin, int64_t end, void* stream);
MlpChainLauncher mlp_chain_cpu, mlp_chain_cuda;

// Sets p->tasks for so many threads, and returns the bytes of scratch.
int64_t mlp_chain_scratch_cpu(MlpChainParams* p, int threads);
// The bytes of scratch on the current device: 0 where all weights have room in shared memory.
int64_t mlp_chain_scratch_cuda(const MlpChainParams& p);
// What these do in float32, and in bfloat16.
int64_t float_chain_scratch_cuda(const MlpChainParams& p);
int64_t tensor_chain_scratch_cuda(const MlpChainParams& p);
int float_chain_cuda(const MlpChainParams& p, void* stream);
int tensor_chain_cuda(const MlpChainParams& p, void* stream);

// The coefficients of step k, with the sample's gradient scaled by `scale`.
FASTEBM_HD RowCoefficients<float> chain_coefficients(const MlpChainParams& p, int64_t k,
                                                     int64_t row, float scale) {
  const auto entry = [&](const void* table, const int64_t* stride, double value) {
    if (!table) return static_cast<float>(value);
    return checked_coefficient(static_cast<const float*>(table)[k * stride[0] + row * stride[1]]);
  };
  RowCoefficients<float> c;
  c.step = entry(p.step.step_sizes, p.step_sizes_stride, p.step.step_size);
  c.sigma = entry(p.step.noise_stds, p.noise_stds_stride, p.step.noise_std);
  c.scale = scale;
  c.clip = static_cast<float>(p.step.grad_clip);
  c.displacement = static_cast<float>(p.step.displacement_clip);
  c.lo = static_cast<float>(p.step.lo);
  c.hi = static_cast<float>(p.step.hi);
  return c;
}

FASTEBM_HD NoiseKey chain_noise_key(const MlpChainParams& p, int64_t k) {
  NoiseKey key = noise_key(p.step);
  key.step += static_cast<uint32_t>(k);
  return key;
}

// Noise before the gradient is asked for: langevin_element() with neither gradient nor bounds.
FASTEBM_HD float noise_element(float x, float n, float sigma) { return fma_rn(sigma, n, x); }

}  // namespace fastebm
