// The whole chain in float32, in two forms. Large batches: a warp has samples of its own and all
// features of them, and meets others only to share the weights. Small ones (kGroups = 1): the warps
// of a CUDA block share a tile of samples, each has 32 features of a layer, and one more warp draws
// the noise meanwhile.
#pragma once
#include "launch/sums_cuda.h"
#include "mlp/activation_cuda.h"
#include "mlp/chain/products_cuda.h"

namespace fastebm {
namespace {

// A lane's features f = begin + lane, + 32, ... below `end`: in slopes, z becomes act'(z), times
// the last layer's weights where they are given; act(z) goes to values.
template <Activation kActivation, int kSamples>
__device__ __forceinline__ void activate_rows(const Mlp& mlp, int begin, int end, const float* last,
                                              float* slopes, float* values) {
#pragma unroll 1
  for (int f = begin + threadIdx.x % 32; f < end; f += 32) {
    const float factor = last ? last[f] : 1.0f;
    Floats<kSamples> slope = load_floats<kSamples>(slopes + row_at<kSamples>(f)), value;
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
      const lane::Activated a = lane::activate<kActivation>(slope.v[s], mlp.beta, mlp.threshold);
      value.v[s] = a.value;
      slope.v[s] = factor * a.slope;
    }
    store_floats(slopes + row_at<kSamples>(f), slope);
    store_floats(values + row_at<kSamples>(f), value);
  }
}

template <int kSamples>
__device__ __forceinline__ void activate_layer(const Mlp& mlp, int begin, int end,
                                               const float* last, float* slopes, float* values) {
  switch (mlp.activation) {
    case Activation::kSilu:
      return activate_rows<Activation::kSilu, kSamples>(mlp, begin, end, last, slopes, values);
    case Activation::kTanh:
      return activate_rows<Activation::kTanh, kSamples>(mlp, begin, end, last, slopes, values);
    case Activation::kRelu:
      return activate_rows<Activation::kRelu, kSamples>(mlp, begin, end, last, slopes, values);
    case Activation::kSoftplus:
      return activate_rows<Activation::kSoftplus, kSamples>(mlp, begin, end, last, slopes, values);
    case Activation::kGelu:
      return activate_rows<Activation::kGelu, kSamples>(mlp, begin, end, last, slopes, values);
    default:
      return activate_rows<Activation::kGeluTanh, kSamples>(mlp, begin, end, last, slopes, values);
  }
}

// E of the tile's samples from the values of the last layer: each by one warp, whose lane has every
// 32nd feature in order.
template <int kSamples, bool kShared>
__device__ __forceinline__ void write_energy(const MlpChainParams& p, int64_t first_row,
                                             const float* last, int rows, const float* values) {
  const int lane = threadIdx.x % 32;
  for (int s = kShared ? threadIdx.x / 32 : 0; s < kSamples; s += kShared ? blockDim.x / 32 : 1) {
    float sum = 0;
    for (int f = lane; f < rows; f += 32)
      sum = fma_rn(last[f], values[row_at<kSamples>(f) + s], sum);
    sum = warp_sum(sum);
    if (lane == 0 && first_row + s < p.step.batch) p.energy[first_row + s] = sum + last[rows];
  }
}

// Of the threads that have the tile.
template <bool kShared>
__device__ __forceinline__ void tile_barrier() {
  if constexpr (kShared)
    __syncthreads();
  else
    __syncwarp();
}

// What the sample's gradient is multiplied by. Squares are summed by block of four elements, and
// the blocks in order, by each thread that has a part of the sample.
template <int kSamples, bool kShared>
__device__ __forceinline__ float clip_scale(const SampleShare& s, double bound, double* squares) {
  for (int b = s.first; 4 * b < s.dim; b += s.every) squares[b * kSamples] = add_squares(s, b, 0);
  tile_barrier<kShared>();
  double sum = 0;
  for (int b = 0; 4 * b < s.dim; ++b) sum += squares[b * kSamples];
  return norm_clip_scale<float>(sum, bound);
}

// All steps of x <- clamp(x - step * clip(grad E(x)) + sigma n), see mlp/chain/chain.h. A tile
// has kSamples samples. kGroups = 1: a CUDA block has one tile, warp w the features from 32 w on,
// and the last warp draws noise; a barrier ends each layer. Else a warp has a tile. A lane has
// kGroups features of each layer, or twice as many of half the tile, see lanes_of_feature(). Step
// (and noise, in a tile of a warp) go by blocks of four elements of one sample, a thread always to
// the same sample. Memory moves 8 B an element of x for the whole chain, and the weights once a
// CUDA block; a step reads each weight twice a tile out of shared memory and does two
// multiplications a weight and sample. x, and at the last step the gradient, are written by the
// threads that step them.
template <int kGroups, int kSamples>
__global__ void __launch_bounds__(kGroups == 1 ? 32 * kMostSharers : kChainThreads, 1)
    float_chain_kernel(const __grid_constant__ MlpChainParams p,
                       const __grid_constant__ ChainPlan plan) {
  constexpr bool kShared = kGroups == 1;
  constexpr int kParts = lanes_of_feature(kGroups, kSamples);
  constexpr int kFeatures = kGroups * kParts, kOwn = kSamples / kParts;
  using Tile = FloatTile<kSamples, kShared>;
  unsigned char* shared = dynamic_shared<unsigned char>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int member = kShared ? threadIdx.x : lane, members = kShared ? blockDim.x : 32;
  const int begin = kShared ? 32 * warp : 0, own = lane % kParts * kOwn;
  const Tile tile(plan, shared + plan.weight_bytes() + (kShared ? 0 : warp * plan.tile_bytes));
  const int64_t first_row =
      (kShared ? int64_t{blockIdx.x} : int64_t{blockIdx.x} * plan.tiles + warp) * kSamples;
  const SampleShare share = sample_share(
      p, first_row + member % kSamples, tile.x + member % kSamples, tile.first + member % kSamples,
      four_rows(kSamples), kSamples, member / kSamples, members / kSamples);
  const bool noisy = share.noisy && !p.noise_first, draws = kShared && warp + 1 == plan.warps;
  const float* last = reinterpret_cast<const float*>(shared + plan.last);
  read_share(share, p.step.x, plan.columns[0]);
  WeightStream<float> weights(p.mlp, plan, p.scratch, shared);

  const bool same = !p.step.step_sizes && !p.step.noise_stds;  // in all steps
  const RowCoefficients<float> of_all = chain_coefficients(p, 0, share.row, 1.0f);
  for (int64_t k = 0; k < p.n_steps; ++k) {
    RowCoefficients<float> c = same ? of_all : chain_coefficients(p, k, share.row, 1.0f);
    if (p.noise_first) {
      add_noise(share, k, c.sigma);
      c.sigma = 0;
    }
    tile_barrier<kShared>();
    const float* in = tile.x;
    float *to = tile.first, *spare = tile.second;
    for (int l = 0; l < plan.layers; ++l) {
      const float* bias = reinterpret_cast<const float*>(shared + plan.bias[l]);
      float* slopes = tile.slope(plan, l);
      float sum[kFeatures][kOwn];
#pragma unroll
      for (int i = 0; i < kFeatures; ++i) {
        const int f = feature<false, kFeatures, kParts>(begin, i);
        const float b = f < plan.rows[l] ? bias[f] : 0.0f;
#pragma unroll
        for (int s = 0; s < kOwn; ++s) sum[i][s] = b;
      }
      multiply<false, kSamples>(weights, l, plan.columns[l], begin, plan.rows[l], in + own, sum);
      if (draws && noisy && l + 1 == plan.layers)  // while the others multiply
        draw_noise(share, k, lane / kSamples, 32 / kSamples, tile.noise + lane % kSamples);
#pragma unroll
      for (int i = 0; i < kFeatures; ++i)
        if (const int f = feature<false, kFeatures, kParts>(begin, i); f < plan.rows[l]) {
          Floats<kOwn> z;
#pragma unroll
          for (int s = 0; s < kOwn; ++s) z.v[s] = sum[i][s];
          store_floats(slopes + row_at<kSamples>(f) + own, z);
        }
      if constexpr (!kShared || kParts > 1) __syncwarp();  // all have read `in`, which may be `to`
      activate_layer<kSamples>(
          p.mlp, begin, plan.rows[l] < begin + 32 * kGroups ? plan.rows[l] : begin + 32 * kGroups,
          l + 1 < plan.layers ? nullptr : last, slopes, to);
      tile_barrier<kShared>();
      in = to;
      to = spare;
      spare = const_cast<float*>(in);
    }
    if (k + 1 == p.n_steps && p.energy) {
      write_energy<kSamples, kShared>(p, first_row, last, plan.rows[plan.layers - 1], in);
      tile_barrier<kShared>();
    }
    for (int l = plan.layers - 1; l > 0; --l) {
      float* slopes = tile.slope(plan, l - 1);
      float sum[kFeatures][kOwn] = {};
      multiply<true, kSamples>(weights, l, plan.rows[l], begin, plan.columns[l],
                               tile.slope(plan, l) + own, sum);
#pragma unroll
      for (int i = 0; i < kFeatures; ++i)
        if (const int f = feature<true, kFeatures, kParts>(begin, i); f < plan.columns[l]) {
          float* at = slopes + row_at<kSamples>(f) + own;
          auto v = load_floats<kOwn>(at);
#pragma unroll
          for (int s = 0; s < kOwn; ++s) v.v[s] *= sum[i][s];
          store_floats(at, v);
        }
      if (l > 1 || plan.columns[0] > narrow(kShared))
        tile_barrier<kShared>();
      else
        __syncwarp();  // a chunk of the next product is the warp's own
    }
    input_gradient<kSamples, kShared>(weights, plan, tile.slope(plan, 0), tile.first);
    tile_barrier<kShared>();
    if (plan.columns[0] <= narrow(kShared)) add_chunks(share, plan);
    if (k + 1 == p.n_steps && p.grad) write_share(share, share.grad, p.grad);
    if (p.step.grad_norm_clip - p.step.grad_norm_clip == 0)
      c.scale = clip_scale<kSamples, kShared>(share, p.step.grad_norm_clip,
                                              tile.squares + member % kSamples);
    if constexpr (kShared)
      take_step(share, c, [&](int b) {
        Normals4 n{};
        for (int j = 0; j < 4 && noisy; ++j)
          n.v[j] = tile.noise[share.at(b, j) + member % kSamples];
        return n;
      });
    else
      take_step(share, c, [&](int b) { return noisy ? share_noise(share, k, b) : Normals4{}; });
  }
  weights.finish();
  write_share(share, share.x, p.step.out);
}

}  // namespace
}  // namespace fastebm
