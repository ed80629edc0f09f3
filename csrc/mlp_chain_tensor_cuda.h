// The whole chain with products of bfloat16 on tensor cores. A CUDA block shares its samples: a
// warp has 32 features of each layer, of all of them.
#pragma once
#include "mlp_chain_activation_cuda.h"
#include "mlp_chain_plan_cuda.h"
#include "mlp_chain_step_cuda.h"

namespace fastebm {
namespace {

// What a CUDA block holds in shared memory, a row for each sample: x and the gradient in float32,
// x rounded, and twice the values, or gradients, of a layer. Rows are odd numbers of quads.
struct TensorTile {
  int samples, x_pitch, rounded_pitch, pitch;  // in elements
  int threads;

  FASTEBM_HD TensorTile(const ChainPlan& plan, int samples)
      : samples(samples),
        x_pitch((plan.columns[0] / 4 | 1) * 4),
        rounded_pitch((plan.columns[0] / 8 | 1) * 8),
        threads(32 * plan.warps) {
    int widest = 0;
    for (int l = 0; l < plan.layers; ++l) widest = widest < plan.rows[l] ? plan.rows[l] : widest;
    pitch = (widest / 8 | 1) * 8;
  }
  FASTEBM_HD int bytes() const {
    return samples * (2 * 4 * x_pitch + 2 * rounded_pitch + 2 * 2 * pitch) + threads * 8 +
           threads / 32 * samples * 4;
  }
  __device__ float* x(unsigned char* at) const { return reinterpret_cast<float*>(at); }
  __device__ float* grad(unsigned char* at) const { return x(at) + samples * x_pitch; }
  __device__ double* squares(unsigned char* at) const {  // of each thread
    return reinterpret_cast<double*>(grad(at) + samples * x_pitch);
  }
  __device__ float* energy(unsigned char* at) const {  // of each warp and sample
    return reinterpret_cast<float*>(squares(at) + threads);
  }
  __device__ Bfloat16* rounded(unsigned char* at) const {
    return reinterpret_cast<Bfloat16*>(energy(at) + threads / 32 * samples);
  }
  __device__ Bfloat16* values(unsigned char* at, int which) const {
    return rounded(at) + samples * (rounded_pitch + which * pitch);
  }
};

// Sums of a warp: of 16-row tile m, 16-column pair c and 8-column half h, as mma_bfloat16 has them.
template <int kTiles>
struct WarpSums {
  float v[kTiles][2][2][4];
};

// sum += in W^T, or kTransposed in W, for all samples and the features n, n + 1, ..., n + 31 of
// those that there are; the inner dimension is that of `in`.
template <bool kTransposed, int kTiles>
__device__ __forceinline__ void multiply(WeightStream<Bfloat16>& weights, int inner, int features,
                                         int n, const Bfloat16* in, int pitch,
                                         WarpSums<kTiles>& sum) {
  const int lane = threadIdx.x % 32;
  const int pairs = features - n < 32 ? (features - n) / 16 : 2;
  in += lane % 16 * pitch + lane / 16 * 8;
  for (int from = 0; from < inner;) {
    const Slab<Bfloat16> slab = weights.next();
    const Bfloat16* w =
        slab.at + (kTransposed ? lane % 16 * slab.pitch + n + lane / 16 * 8
                               : (n + lane % 8 + lane / 16 * 8) * slab.pitch + lane / 8 % 2 * 8);
    const int along = kTransposed ? slab.pitch : 1, across = kTransposed ? 1 : slab.pitch;
    if (pairs > 0)
#pragma unroll 4
      for (int k = 0; k < slab.count; k += 16) {
        uint32_t a[kTiles][4];
#pragma unroll
        for (int m = 0; m < kTiles; ++m) load_matrices<false>(a[m], in + 16 * m * pitch + from + k);
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (c < pairs) {
            uint32_t r[4];
            load_matrices<kTransposed>(r, w + k * along + 16 * c * across);
            const uint32_t b[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
#pragma unroll
            for (int m = 0; m < kTiles; ++m) mma_bfloat16(sum.v[m][c], a[m], b);
          }
      }
    from += slab.count;
  }
}

__device__ __forceinline__ void store_pair(Bfloat16* to, uint32_t pair) {
  *reinterpret_cast<uint32_t*>(to) = pair;
}

// A share of x, rounded, into its sample's row.
__device__ __forceinline__ void round_share(const SampleShare& s, Bfloat16* row, int end) {
#pragma unroll 1
  for (int b = s.first; 4 * b < end; b += s.every) {
    const float4 v = *reinterpret_cast<const float4*>(s.x + 4 * b);
    store_pair(row + 4 * b, bfloat16_pair(v.x, v.y));
    store_pair(row + 4 * b + 2, bfloat16_pair(v.z, v.w));
  }
}

// All steps of x <- clamp(x - step * clip(grad E(x)) + sigma n), see mlp_chain.h, with x, the
// values and slopes of layers, and gradients rounded to bfloat16 where they are multiplied by
// weights, and the weights too; sums, biases, the last layer and the state stay float32. A CUDA
// block takes 16 kTiles samples, a warp 32 features of each layer, a lane those of its mma
// fragments; noise and step go by blocks of four elements of one sample, a thread always to the
// same sample. Memory moves 8 B an element of x for the whole chain; a step reads each weight twice
// a CUDA block out of shared memory. Slopes stay in the lanes that have their features. x, and at
// the last step energy and gradient, are written by the threads that step them.
template <Activation kActivation, int kTiles>
__global__ void __launch_bounds__(kChainThreads)
    tensor_chain_kernel(const __grid_constant__ MlpChainParams p,
                        const __grid_constant__ ChainPlan plan) {
  constexpr int kSamples = 16 * kTiles;
  unsigned char* shared = dynamic_shared<unsigned char>();
  unsigned char* at = shared + plan.weight_bytes();
  const TensorTile tile(plan, kSamples);
  const int lane = threadIdx.x % 32, n = threadIdx.x / 32 * 32;
  const int g = lane / 4, t = lane % 4;  // of the fragments: see mma_bfloat16()
  const int s = threadIdx.x % kSamples;
  const SampleShare share = sample_share(
      p, int64_t{blockIdx.x} * kSamples + s, tile.x(at) + s * tile.x_pitch,
      tile.grad(at) + s * tile.x_pitch, 1, threadIdx.x / kSamples, tile.threads / kSamples);
  Bfloat16* rounded = tile.rounded(at) + s * tile.rounded_pitch;
  read_share(share, p.step.x, plan.columns[0]);
  round_share(share, rounded, plan.columns[0]);
  WeightStream<Bfloat16> weights(plan, p.scratch, shared);
  const float* last = reinterpret_cast<const float*>(shared + plan.last);

  for (int64_t k = 0; k < p.n_steps; ++k) {
    const bool end = k + 1 == p.n_steps;
    RowCoefficients<float> c = chain_coefficients(p, k, share.row, 1.0f);
    if (p.noise_first) {
      add_noise(share, k, c.sigma);
      round_share(share, rounded, share.dim);
      c.sigma = 0;
    }
    __syncthreads();
    uint32_t slopes[kMaxHidden - 1][kTiles][2][2][2];
    int which = 0;  // of the two buffers, to be written next
#pragma unroll
    for (int l = 0; l < kMaxHidden; ++l)
      if (l < plan.layers) {
        const float* bias = reinterpret_cast<const float*>(shared + plan.bias[l]);
        const bool is_last = l + 1 == plan.layers;
        WarpSums<kTiles> sum = {};
        multiply<false>(weights, plan.columns[l], plan.rows[l], n,
                        l == 0 ? tile.rounded(at) : tile.values(at, !which),
                        l == 0 ? tile.rounded_pitch : tile.pitch, sum);
        Bfloat16* to = tile.values(at, which);
        float energy[kTiles][2] = {};
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            if (const int f = n + 16 * c + 8 * h + 2 * t; n + 16 * c < plan.rows[l]) {
              const float2 b = *reinterpret_cast<const float2*>(bias + f);
              const float2 w = is_last ? *reinterpret_cast<const float2*>(last + f) : b;
#pragma unroll
              for (int m = 0; m < kTiles; ++m)
#pragma unroll
                for (int r = 0; r < 2; ++r) {  // rows g and g + 8 of the tile
                  const float* z = &sum.v[m][c][h][2 * r];
                  const lane::Activated a0 =
                      lane::activate<kActivation>(z[0] + b.x, p.mlp.beta, p.mlp.threshold);
                  const lane::Activated a1 =
                      lane::activate<kActivation>(z[1] + b.y, p.mlp.beta, p.mlp.threshold);
                  uint32_t out;
                  if (is_last) {
                    out = bfloat16_pair(w.x * a0.slope, w.y * a1.slope);
                    energy[m][r] = fma_rn(w.x, a0.value, energy[m][r]);
                    energy[m][r] = fma_rn(w.y, a1.value, energy[m][r]);
                  } else {
                    out = bfloat16_pair(a0.value, a1.value);
                    if (l < kMaxHidden - 1)
                      slopes[l][m][c][h][r] = bfloat16_pair(a0.slope, a1.slope);
                  }
                  store_pair(to + (16 * m + 8 * r + g) * tile.pitch + f, out);
                }
            }
        if (is_last && end && p.energy)
#pragma unroll
          for (int m = 0; m < kTiles; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              float e = energy[m][r];
              e += __shfl_xor_sync(0xFFFFFFFFu, e, 1);
              e += __shfl_xor_sync(0xFFFFFFFFu, e, 2);
              if (t == 0) tile.energy(at)[n / 32 * kSamples + 16 * m + 8 * r + g] = e;
            }
        which = !which;
        __syncthreads();
      }
#pragma unroll
    for (int l = kMaxHidden - 1; l > 0; --l)
      if (l < plan.layers) {
        WarpSums<kTiles> sum = {};
        multiply<true>(weights, plan.rows[l], plan.columns[l], n, tile.values(at, !which),
                       tile.pitch, sum);
        Bfloat16* to = tile.values(at, which);
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (n + 16 * c < plan.columns[l])
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
              for (int m = 0; m < kTiles; ++m)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                  const uint32_t slope = slopes[l - 1][m][c][h][r];
                  const float* v = &sum.v[m][c][h][2 * r];
                  store_pair(to + (16 * m + 8 * r + g) * tile.pitch + n + 16 * c + 8 * h + 2 * t,
                             bfloat16_pair(v[0] * float_from_bits(slope << 16),
                                           v[1] * float_from_bits(slope & 0xFFFF0000u)));
                }
        which = !which;
        __syncthreads();
      }
    {
      WarpSums<kTiles> sum = {};
      multiply<true>(weights, plan.rows[0], plan.columns[0], n, tile.values(at, !which), tile.pitch,
                     sum);
#pragma unroll
      for (int c = 0; c < 2; ++c)
        if (n + 16 * c < plan.columns[0])
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int m = 0; m < kTiles; ++m)
#pragma unroll
              for (int r = 0; r < 2; ++r)
                *reinterpret_cast<float2*>(tile.grad(at) + (16 * m + 8 * r + g) * tile.x_pitch + n +
                                           16 * c + 8 * h + 2 * t) =
                    make_float2(sum.v[m][c][h][2 * r], sum.v[m][c][h][2 * r + 1]);
    }
    __syncthreads();
    if (end) {
      if (p.grad) write_share(share, share.grad, p.grad);
      if (p.energy && threadIdx.x < kSamples && share.valid) {
        float e = last[plan.rows[plan.layers - 1]];
        for (int w = 0; w < plan.warps; ++w) e += tile.energy(at)[w * kSamples + s];
        p.energy[share.row] = e;
      }
    }
    if (p.step.grad_norm_clip - p.step.grad_norm_clip == 0) {
      double* squares = tile.squares(at);
      squares[threadIdx.x] = share_of_squares(share);
      __syncthreads();
      double sum = 0;
      for (int i = s; i < tile.threads; i += kSamples) sum += squares[i];
      c.scale = norm_clip_scale<float>(sum, p.step.grad_norm_clip);
    }
    take_step(share, k, share.noisy && !p.noise_first, c);
    round_share(share, rounded, share.dim);
  }
  weights.finish();
  write_share(share, share.x, p.step.out);
}

}  // namespace
}  // namespace fastebm
