// The Langevin step of samples that lie in shared memory, and what a thread does of it.
#pragma once
#include "launch/device.h"
#include "mlp/chain/chain.h"

namespace fastebm {
namespace {

// A thread's share of one sample: the blocks of four elements `first`, `first` + `every`, ..., of
// which element j of block b lies at x[b * block + j * stride], and its gradient likewise. Rows
// that the batch does not have read the coefficients of the last one, and write nothing.
struct SampleShare {
  float* x;
  float* grad;
  int block, stride, first, every, dim;
  bool valid;
  bool noisy;
  int64_t row;
  uint64_t id;
  NoiseKey key;  // of the chain's first step

  __device__ int at(int b, int j) const { return b * block + j * stride; }
};

__device__ __forceinline__ SampleShare sample_share(const MlpChainParams& p, int64_t row, float* x,
                                                    float* grad, int block, int stride, int first,
                                                    int every) {
  const bool valid = row < p.step.batch;
  if (!valid) row = p.step.batch - 1;
  return {x,
          grad,
          block,
          stride,
          first,
          every,
          static_cast<int>(p.mlp.dim),
          valid,
          p.step.noise_stds || p.step.noise_std != 0,
          row,
          sample_id(p.step, row),
          noise_key(p.step)};
}

__device__ __forceinline__ Normals4 share_noise(const SampleShare& s, int64_t k, int block) {
  NoiseKey key = s.key;
  key.step += static_cast<uint32_t>(k);
  return normals4(key, s.id, static_cast<uint32_t>(block));
}

// The bias that sample s of a tile, whose first is the batch's first_row, has for feature f of the
// first layer: 0 past the last feature, the last sample's where the batch has no such row.
__device__ __forceinline__ float row_bias_at(const MlpChainParams& p, int64_t first_row, int s,
                                             int f) {
  const int width = p.mlp.width[0];
  const int64_t last = p.step.batch - 1 - first_row;  // may be before the tile
  const int row = s < last ? s : static_cast<int>(last);
  return f < width ? __ldg(p.row_bias + first_row * width + (row * width + f)) : 0.0f;
}

// x_d less the mean of the energy's base.
__device__ __forceinline__ float from_base(const Mlp& mlp, int d, float x) {
  return mlp.base_mean ? x - __ldg(mlp.base_mean + d) : x;
}
__device__ __forceinline__ float base_energy_at(const Mlp& mlp, int d, float x) {
  const float u = from_base(mlp, d, x);
  return 0.5f * __ldg(mlp.base_precision + d) * u * u;
}

// The gradient with that of the energy's base.
__device__ __forceinline__ void add_base(const Mlp& mlp, const SampleShare& s) {
#pragma unroll 1
  for (int b = s.first; 4 * b < s.dim; b += s.every)
    for (int j = 0; j < 4 && 4 * b + j < s.dim; ++j) {
      const int d = 4 * b + j, at = s.at(b, j);
      s.grad[at] = fma_rn(__ldg(mlp.base_precision + d), from_base(mlp, d, s.x[at]), s.grad[at]);
    }
}

// What this share adds to the energy of the base.
__device__ __forceinline__ double share_of_base(const Mlp& mlp, const SampleShare& s) {
  double sum = 0;
#pragma unroll 1
  for (int b = s.first; 4 * b < s.dim; b += s.every)
    for (int j = 0; j < 4 && 4 * b + j < s.dim; ++j)
      sum += base_energy_at(mlp, 4 * b + j, s.x[s.at(b, j)]);
  return sum;
}

// x <- x + sigma n.
__device__ __forceinline__ void add_noise(const SampleShare& s, int64_t k, float sigma) {
#pragma unroll 1
  for (int b = s.first; 4 * b < s.dim; b += s.every) {
    const Normals4 n = share_noise(s, k, b);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (4 * b + j < s.dim) {
        float& x = s.x[s.at(b, j)];
        x = noise_element(x, n.v[j], sigma);
      }
  }
}

// sum + the squares of the gradient's elements in block b.
__device__ __forceinline__ double add_squares(const SampleShare& s, int b, double sum) {
  for (int j = 0; j < 4 && 4 * b + j < s.dim; ++j) {
    const double g = s.grad[s.at(b, j)];
    sum = fma_rn(g, g, sum);
  }
  return sum;
}

// The noise of the sample's blocks `first`, `first` + `every`, ... at step k, to where x has those.
__device__ __forceinline__ void draw_noise(const SampleShare& s, int64_t k, int first, int every,
                                           float* to) {
#pragma unroll 1
  for (int b = first; 4 * b < s.dim; b += every) {
    const Normals4 n = share_noise(s, k, b);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[s.at(b, j)] = n.v[j];
  }
}

// The noise of this share's first block, which can be had before the gradient is there.
__device__ __forceinline__ Normals4 first_noise(const SampleShare& s, int64_t k) {
  return 4 * s.first < s.dim ? share_noise(s, k, s.first) : Normals4{};
}

// x <- clamp(x + clip(-step * clip(grad) + sigma n)), with noise_of(b) the noise of block b.
template <class F>
__device__ __forceinline__ void take_step(const MlpChainParams& p, const SampleShare& s,
                                          RowCoefficients<float> c, F&& noise_of) {
#pragma unroll 1
  for (int b = s.first; 4 * b < s.dim; b += s.every) {
    const Normals4 n = noise_of(b);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (4 * b + j < s.dim) {
        const int at = s.at(b, j);
        if (p.lo) c.lo = __ldg(p.lo + 4 * b + j), c.hi = __ldg(p.hi + 4 * b + j);
        bool inside, unclipped;
        s.x[at] = langevin_element<float>(s.x[at], s.grad[at], n.v[j], c, &inside, &unclipped);
      }
  }
}

// Out, as (B, D), what lies at `from` as this share's elements do.
__device__ __forceinline__ void write_share(const SampleShare& s, const float* from, void* out) {
  if (!s.valid) return;
#pragma unroll 1
  for (int b = s.first; 4 * b < s.dim; b += s.every)
    for (int j = 0; j < 4 && 4 * b + j < s.dim; ++j)
      static_cast<float*>(out)[s.row * s.dim + 4 * b + j] = from[s.at(b, j)];
}

// In, the other way round; zeros where the batch has no such row, and after the last element.
__device__ __forceinline__ void read_share(const SampleShare& s, const void* in, int padded) {
#pragma unroll 1
  for (int b = s.first; 4 * b < padded; b += s.every)
    for (int j = 0; j < 4; ++j) {
      const int e = 4 * b + j;
      s.x[s.at(b, j)] =
          s.valid && e < s.dim ? static_cast<const float*>(in)[s.row * s.dim + e] : 0.0f;
    }
}

}  // namespace
}  // namespace fastebm
