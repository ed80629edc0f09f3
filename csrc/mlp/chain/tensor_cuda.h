// The whole chain with products of bfloat16 on tensor cores. A CUDA block shares its samples: a
// warp has 16 features of each layer, of all of them; in large networks 32.
#pragma once
#include "mlp/activation_cuda.h"
#include "mlp/chain/fragments_cuda.h"
#include "mlp/chain/step_cuda.h"

namespace fastebm {
namespace {

// A lane's slopes of a layer: pairs, where the sums of WarpSums are.
template <int kTiles, int kGroups>
struct alignas(16) WarpSlopes {
  uint32_t v[kTiles][2 * kGroups][2];
};

// Calls f(constant) for the activation: kActivation, or kAnyActivation the network's.
constexpr int kAnyActivation = -1;
template <int kActivation, class F>
__device__ __forceinline__ void with_activation(const Mlp& mlp, F&& f) {
  if constexpr (kActivation == kAnyActivation)
    visit_activation(mlp.activation, [&](auto activation) {
      f(activation);
      return 0;
    });
  else
    f(ActivationConstant<static_cast<Activation>(kActivation)>{});
}

// Sums of the first layer, begun with the samples' own biases.
template <int kTiles, int kGroups>
__device__ __forceinline__ void begin_with_row_bias(const MlpChainParams& p, int64_t first_row,
                                                    int n, int features,
                                                    WarpSums<kTiles, kGroups>* sum) {
  for_each_pair<kTiles, kGroups>(n, features, [&](int row, int f, int m, int h, int r) {
#pragma unroll
    for (int i = 0; i < 2; ++i) sum->v[m][h][2 * r + i] = row_bias_at(p, first_row, row, f + i);
  });
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

// From sums z - bias of a hidden layer: its values to `to`, its slopes to `slopes`.
template <Activation kActivation, int kTiles, int kGroups>
__device__ __forceinline__ void activate_layer(const Mlp& mlp, int n, int features,
                                               const float* bias,
                                               const WarpSums<kTiles, kGroups>& sum,
                                               WarpSlopes<kTiles, kGroups>* slopes, Bfloat16* to,
                                               int pitch) {
  WarpSlopes<kTiles, kGroups> all = {};
  for_each_pair<kTiles, kGroups>(n, features, [&](int row, int f, int m, int h, int r) {
    const float2 b = *reinterpret_cast<const float2*>(bias + f);
    const float* z = &sum.v[m][h][2 * r];
    const auto first = lane::activate_roughly<kActivation>(z[0] + b.x, mlp.beta, mlp.threshold);
    const auto second = lane::activate_roughly<kActivation>(z[1] + b.y, mlp.beta, mlp.threshold);
    all.v[m][h][r] = bfloat16_pair(first.slope, second.slope);
    store_pair(to + row * pitch + f, bfloat16_pair(first.value, second.value));
  });
  *slopes = all;
}

// The same of the last hidden layer: its slopes times the last weights to `to`, and for each sample
// the sum of its values times them over the warp's features to `energy`, if that is not null.
template <Activation kActivation, int kTiles, int kGroups>
__device__ __forceinline__ void activate_last(const Mlp& mlp, int n, int features,
                                              const float* bias, const float* last,
                                              const WarpSums<kTiles, kGroups>& sum, Bfloat16* to,
                                              int pitch, float* energy) {
  float energies[kTiles][2] = {};
  for_each_pair<kTiles, kGroups>(n, features, [&](int row, int f, int m, int h, int r) {
    const float2 b = *reinterpret_cast<const float2*>(bias + f);
    const float2 w = *reinterpret_cast<const float2*>(last + f);
    const float* z = &sum.v[m][h][2 * r];
    const auto first = lane::activate_roughly<kActivation>(z[0] + b.x, mlp.beta, mlp.threshold);
    const auto second = lane::activate_roughly<kActivation>(z[1] + b.y, mlp.beta, mlp.threshold);
    store_pair(to + row * pitch + f, bfloat16_pair(w.x * first.slope, w.y * second.slope));
    energies[m][r] = fma_rn(w.y, second.value, fma_rn(w.x, first.value, energies[m][r]));
  });
  if (!energy) return;
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float e = energies[m][r];
      e += __shfl_xor_sync(0xFFFFFFFFu, e, 1);
      e += __shfl_xor_sync(0xFFFFFFFFu, e, 2);
      if (threadIdx.x % 4 == 0) energy[16 * m + 8 * r + threadIdx.x % 32 / 4] = e;
    }
}

// All steps of x <- clamp(x - step * clip(grad E(x)) + sigma n), see mlp/chain/chain.h. x,
// values, slopes and gradients of layers are rounded to bfloat16 where they meet the weights, and
// the weights are; sums, biases, the last layer, and the x that is stepped are float32. A CUDA
// block takes 16 kTiles samples, a warp 16 kGroups features of each layer, a lane those of its mma
// fragments, whose slopes are kept for it; a barrier ends each product. All layers share the text
// of their loops: a step that leaves the instruction cache is fetched anew by each. Large networks
// (kGroups = 2), whose steps are long, look the activation up instead, and have two barriers more,
// as more shares its memory, see TensorTile. Noise and step go by blocks of four elements of one
// sample, a thread always to the same sample, the last warps first: they are idle while the first
// ones end the gradient. Memory moves 8 B an element of x for the whole chain, and the weights
// twice a CUDA block and step where they are not resident; a step reads each weight twice a CUDA
// block out of shared memory. Row biases, with which the first layer's sums begin, a base and a box
// of tensors are read in each step, 4 B a feature and sample and 16 B an element, and stay in the
// caches. x, and at the last step energy and gradient, are written by the threads that step them.
template <int kActivation, int kTiles, int kGroups>
__global__ void __launch_bounds__(kMostTensorThreads, 1)
    tensor_chain_kernel(const __grid_constant__ MlpChainParams p,
                        const __grid_constant__ ChainPlan plan) {
  constexpr int kSamples = 16 * kTiles;
  unsigned char* shared = dynamic_shared<unsigned char>();
  const TensorTile<kGroups> tile(plan, kSamples, shared + plan.weight_bytes());
  const int warp = threadIdx.x / 32, n = warp * kGroups * kGroupFeatures;
  const int s = threadIdx.x % kSamples;
  const int64_t first_row = int64_t{blockIdx.x} * kSamples;
  const SampleShare share = sample_share(
      p, first_row + s, tile.x + s * tile.x_pitch, tile.grad + s * tile.x_pitch, 4, 1,
      (tile.threads - 1 - static_cast<int>(threadIdx.x)) / kSamples, tile.threads / kSamples);
  Bfloat16* rounded = tile.rounded + s * tile.rounded_pitch;
  read_share(share, p.step.x, plan.columns[0]);
  round_share(share, rounded, plan.columns[0]);
  WeightStream<Bfloat16> weights(p.mlp, plan, p.scratch, shared);
  const float* last = reinterpret_cast<const float*>(shared + plan.last);
  const bool noisy = share.noisy && !p.noise_first;
  const int rounded_end = kGroups == 1 ? share.dim : plan.columns[0];  // zeros may be written over
  constexpr int kKept = kGroups == 1 ? 1 : kMaxHidden - 1;
  [[maybe_unused]] WarpSlopes<kTiles, kGroups> kept[kKept];  // of large networks

  const bool same = !p.step.step_sizes && !p.step.noise_stds;  // in all steps
  const RowCoefficients<float> of_all = chain_coefficients(p, 0, share.row, 1.0f);
  for (int64_t k = 0; k < p.n_steps; ++k) {
    RowCoefficients<float> c = same ? of_all : chain_coefficients(p, k, share.row, 1.0f);
    if (p.noise_first) {
      add_noise(share, k, c.sigma);
      round_share(share, rounded, rounded_end);
      c.sigma = 0;
    }
    __syncthreads();
    Bfloat16 *from = tile.second, *to = tile.first;
    const auto end_product = [&] {
      Bfloat16* done = to;
      to = from;
      from = done;
      __syncthreads();
    };
    const auto slopes_of = [&](int l) {
      if constexpr (kGroups > 1) return kept + l;
      return reinterpret_cast<WarpSlopes<kTiles, kGroups>*>(tile.slopes) + l * tile.threads +
             threadIdx.x;
    };
#pragma unroll 1
    for (int l = 0; l < plan.layers; ++l) {
      const float* bias = reinterpret_cast<const float*>(shared + plan.bias[l]);
      WarpSums<kTiles, kGroups> sum = {};
      if (l == 0 && p.row_bias) begin_with_row_bias(p, first_row, n, plan.rows[0], &sum);
      multiply<false>(weights, l, plan.columns[l], plan.rows[l], n, l == 0 ? tile.rounded : from,
                      l == 0 ? tile.rounded_pitch : tile.pitch, sum);
      if (l + 1 == plan.layers)
        with_activation<kActivation>(p.mlp, [&](auto activation) {
          activate_last<decltype(activation)::value>(
              p.mlp, n, plan.rows[l], bias, last, sum, to, tile.pitch,
              k + 1 == p.n_steps ? tile.energy + warp * kSamples : nullptr);
        });
      else
        with_activation<kActivation>(p.mlp, [&](auto activation) {
          activate_layer<decltype(activation)::value>(p.mlp, n, plan.rows[l], bias, sum,
                                                      slopes_of(l), to, tile.pitch);
        });
      end_product();
    }
#pragma unroll 1
    for (int l = plan.layers - 1; l > 0; --l) {
      WarpSums<kTiles, kGroups> sum = {};
      multiply<true>(weights, l, plan.rows[l], plan.columns[l], n, from, tile.pitch, sum);
      const WarpSlopes<kTiles, kGroups> slopes = *slopes_of(l - 1);
      for_each_pair<kTiles, kGroups>(n, plan.columns[l], [&](int row, int f, int m, int h, int r) {
        const uint32_t slope = slopes.v[m][h][r];
        const float* v = &sum.v[m][h][2 * r];
        store_pair(to + row * tile.pitch + f,
                   bfloat16_pair(v[0] * float_from_bits(slope << 16),
                                 v[1] * float_from_bits(slope & 0xFFFF0000u)));
      });
      end_product();
    }
    const Normals4 noise = noisy ? first_noise(share, k) : Normals4{};
    {
      WarpSums<kTiles, kGroups> sum = {};
      multiply<true>(weights, 0, plan.rows[0], plan.columns[0], n, from, tile.pitch, sum);
      if constexpr (kGroups > 1) __syncthreads();  // all have read what the gradient overwrites
      for_each_pair<kTiles, kGroups>(n, plan.columns[0], [&](int row, int f, int m, int h, int r) {
        const float* v = &sum.v[m][h][2 * r];
        *reinterpret_cast<float2*>(tile.grad + row * tile.x_pitch + f) = make_float2(v[0], v[1]);
      });
    }
    __syncthreads();
    // The sum of what the threads that share this one's sample give.
    const auto sum_of_sample = [&](double part) {
      tile.squares[threadIdx.x] = part;
      __syncthreads();
      double sum = 0;
      for (int i = s; i < tile.threads; i += kSamples) sum += tile.squares[i];
      return sum;
    };
    if (p.mlp.base_precision) add_base(p.mlp, share);
    if (k + 1 == p.n_steps) {
      if (p.grad) write_share(share, share.grad, p.grad);
      float e = 0;
      if (p.energy && p.mlp.base_precision) {
        e = static_cast<float>(sum_of_sample(share_of_base(p.mlp, share)));
        __syncthreads();  // the same memory is for squares
      }
      if (p.energy && threadIdx.x < kSamples && share.valid) {
        e += last[plan.rows[plan.layers - 1]];
        for (int w = 0; w < plan.warps; ++w) e += tile.energy[w * kSamples + s];
        p.energy[share.row] = e;
      }
    }
    if (p.step.grad_norm_clip - p.step.grad_norm_clip == 0) {
      double share_of_squares = 0;
#pragma unroll 1
      for (int b = share.first; 4 * b < share.dim; b += share.every)
        share_of_squares = add_squares(share, b, share_of_squares);
      c.scale = norm_clip_scale<float>(sum_of_sample(share_of_squares), p.step.grad_norm_clip);
    }
    take_step(p, share, c,
              [&](int b) { return b == share.first || !noisy ? noise : share_noise(share, k, b); });
    if constexpr (kGroups > 1) __syncthreads();  // all have read the gradient
    round_share(share, rounded, rounded_end);
  }
  weights.finish();
  write_share(share, share.x, p.step.out);
}

}  // namespace
}  // namespace fastebm
