// The whole chain in float32. A warp has samples of its own and all features of them, so that
// warps never meet but to share the weights.
#pragma once
#include "mlp_activation_cuda.h"
#include "mlp_chain_plan_cuda.h"
#include "mlp_chain_step_cuda.h"

namespace fastebm {
namespace {

// kSamples consecutive floats, which all lanes of a warp read at once.
template <int kSamples>
struct alignas(kSamples < 4 ? 4 * kSamples : 16) SampleRow {
  float v[kSamples];
};

// What a warp holds in shared memory, rows of kSamples values: x, the values of a layer (later the
// gradient), and the slopes of all layers, each overwritten by the gradient in its inputs z.
template <int kSamples>
struct FloatTile {
  SampleRow<kSamples>*x, *h, *slopes;

  __device__ FloatTile(const ChainPlan& plan, unsigned char* at)
      : x(reinterpret_cast<SampleRow<kSamples>*>(at)),
        h(x + plan.columns[0]),
        slopes(h + most_rows(plan)) {}
  __device__ SampleRow<kSamples>* slope(const ChainPlan& plan, int l) const {
    return slopes + plan.bias[l] / 4;
  }
  FASTEBM_HD static int most_rows(const ChainPlan& plan) {
    return plan.widest < plan.columns[0] ? plan.columns[0] : plan.widest;
  }
  static int bytes(const ChainPlan& plan) {
    return (plan.columns[0] + most_rows(plan) + plan.last / 4) * 4 * kSamples;
  }
};

// sum[i][s] += sum_j W[f][j] in[j][s], or kTransposed W[j][f], for the features f = lane + 32 i
// below `limit` and all of the inner dimension. A weight is read once for kSamples products.
template <bool kTransposed, int kGroups, int kSamples>
__device__ __forceinline__ void multiply(WeightStream<float>& weights, int inner, int limit,
                                         const SampleRow<kSamples>* in,
                                         float (&sum)[kGroups][kSamples]) {
  const int lane = threadIdx.x % 32;
  for (int from = 0; from < inner;) {
    const Slab<float> slab = weights.next();
    int at[kGroups];
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int f = lane + 32 * i < limit ? lane + 32 * i : limit - 1;
      at[i] = kTransposed ? f : f * slab.pitch;
    }
#pragma unroll 2
    for (int k = 0; k < slab.count; k += 4) {
      float w[kGroups][4];
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        if constexpr (kTransposed) {
#pragma unroll
          for (int j = 0; j < 4; ++j) w[i][j] = slab.at[at[i] + (k + j) * slab.pitch];
        } else {
          const float4 v = *reinterpret_cast<const float4*>(slab.at + at[i] + k);
          w[i][0] = v.x, w[i][1] = v.y, w[i][2] = v.z, w[i][3] = v.w;
        }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const SampleRow<kSamples> a = in[from + k + j];
#pragma unroll
        for (int i = 0; i < kGroups; ++i)
#pragma unroll
          for (int s = 0; s < kSamples; ++s) sum[i][s] = fma_rn(w[i][j], a.v[s], sum[i][s]);
      }
    }
    from += slab.count;
  }
}

// A lane's features f = lane, lane + 32, ... below `rows`: in slopes, z becomes act'(z); act(z)
// goes to values. Of the last layer (last != null) the slopes are times its weights, and the energy
// is summed instead.
template <Activation kActivation, int kSamples>
__device__ __forceinline__ void activate_rows(const Mlp& mlp, int rows, const float* last,
                                              SampleRow<kSamples>* slopes,
                                              SampleRow<kSamples>* values,
                                              float (&energy)[kSamples]) {
#pragma unroll 1
  for (int f = threadIdx.x % 32; f < rows; f += 32) {
    SampleRow<kSamples> slope = slopes[f], value;
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
      const lane::Activated a = lane::activate<kActivation>(slope.v[s], mlp.beta, mlp.threshold);
      value.v[s] = a.value;
      slope.v[s] = last ? last[f] * a.slope : a.slope;
      if (last) energy[s] = fma_rn(last[f], a.value, energy[s]);
    }
    slopes[f] = slope;
    if (!last) values[f] = value;
  }
}

template <int kSamples>
__device__ __forceinline__ void activate_layer(const Mlp& mlp, int rows, const float* last,
                                               SampleRow<kSamples>* slopes,
                                               SampleRow<kSamples>* values,
                                               float (&energy)[kSamples]) {
  switch (mlp.activation) {
    case Activation::kSilu:
      return activate_rows<Activation::kSilu>(mlp, rows, last, slopes, values, energy);
    case Activation::kTanh:
      return activate_rows<Activation::kTanh>(mlp, rows, last, slopes, values, energy);
    case Activation::kRelu:
      return activate_rows<Activation::kRelu>(mlp, rows, last, slopes, values, energy);
    case Activation::kSoftplus:
      return activate_rows<Activation::kSoftplus>(mlp, rows, last, slopes, values, energy);
    case Activation::kGelu:
      return activate_rows<Activation::kGelu>(mlp, rows, last, slopes, values, energy);
    default:
      return activate_rows<Activation::kGeluTanh>(mlp, rows, last, slopes, values, energy);
  }
}

// The gradient in x of a tile whose last slopes are those of layer 0, into tile.h.
template <int kGroups, int kSamples>
__device__ __forceinline__ void input_gradient(WeightStream<float>& weights, const ChainPlan& plan,
                                               const FloatTile<kSamples>& tile) {
  float sum[kGroups][kSamples] = {};
  multiply<true>(weights, plan.rows[0], plan.columns[0], tile.slope(plan, 0), sum);
#pragma unroll
  for (int i = 0; i < kGroups; ++i)
    if (const int f = threadIdx.x % 32 + 32 * i; f < plan.columns[0])
#pragma unroll
      for (int s = 0; s < kSamples; ++s) tile.h[f].v[s] = sum[i][s];
}

// All steps of x <- clamp(x - step * clip(grad E(x)) + sigma n), see mlp_chain.h. A warp takes
// kSamples samples, a lane every 32nd feature of each layer, at most kGroups of them; noise and
// step go by blocks of four elements of one sample, a lane always to the same sample. Memory moves
// 8 B an element of x for the whole chain; a step reads each weight twice a warp out of shared
// memory and does two multiplications a weight and sample. Sums are in order of the inner
// dimension. x, and at the last step energy and gradient, are written by the lanes that step them.
template <int kGroups, int kSamples>
__global__ void __launch_bounds__(kChainThreads)
    float_chain_kernel(const __grid_constant__ MlpChainParams p,
                       const __grid_constant__ ChainPlan plan) {
  using Row = SampleRow<kSamples>;
  unsigned char* shared = dynamic_shared<unsigned char>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const FloatTile<kSamples> tile(plan, shared + plan.weight_bytes() + warp * plan.tile_bytes);
  const int64_t first = (int64_t{blockIdx.x} * plan.warps + warp) * kSamples;
  const SampleShare share =
      sample_share(p, first + lane % kSamples, &tile.x[0].v[lane % kSamples],
                   &tile.h[0].v[lane % kSamples], kSamples, lane / kSamples, 32 / kSamples);
  read_share(share, p.step.x, plan.columns[0]);
  WeightStream<float> weights(plan, p.scratch, shared);

  for (int64_t k = 0; k < p.n_steps; ++k) {
    RowCoefficients<float> c = chain_coefficients(p, k, share.row, 1.0f);
    if (p.noise_first) {
      add_noise(share, k, c.sigma);
      c.sigma = 0;
    }
    __syncwarp();
    float energy[kSamples] = {};
    const Row* in = tile.x;
    for (int l = 0; l < plan.layers; ++l) {
      const float* bias = reinterpret_cast<const float*>(shared + plan.bias[l]);
      Row* slopes = tile.slope(plan, l);
      float sum[kGroups][kSamples];
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
#pragma unroll
        for (int s = 0; s < kSamples; ++s)
          sum[i][s] = lane + 32 * i < plan.rows[l] ? bias[lane + 32 * i] : 0.0f;
      multiply<false>(weights, plan.columns[l], plan.rows[l], in, sum);
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        if (lane + 32 * i < plan.rows[l])
#pragma unroll
          for (int s = 0; s < kSamples; ++s) slopes[lane + 32 * i].v[s] = sum[i][s];
      __syncwarp();  // all have read tile.h
      activate_layer(
          p.mlp, plan.rows[l],
          l + 1 < plan.layers ? nullptr : reinterpret_cast<const float*>(shared + plan.last),
          slopes, tile.h, energy);
      __syncwarp();
      in = tile.h;
    }
    for (int l = plan.layers - 1; l > 0; --l) {
      Row* slopes = tile.slope(plan, l - 1);
      float sum[kGroups][kSamples] = {};
      multiply<true>(weights, plan.rows[l], plan.columns[l], tile.slope(plan, l), sum);
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        if (lane + 32 * i < plan.columns[l])
#pragma unroll
          for (int s = 0; s < kSamples; ++s) slopes[lane + 32 * i].v[s] *= sum[i][s];
      __syncwarp();
    }
    if (plan.columns[0] <= 32)
      input_gradient<1>(weights, plan, tile);
    else
      input_gradient<kGroups>(weights, plan, tile);
    __syncwarp();
    if (k + 1 == p.n_steps) {
      if (p.grad) write_share(share, share.grad, p.grad);
      if (p.energy)
        for (int s = 0; s < kSamples; ++s) {
          const float sum = warp_sum(energy[s]);
          if (lane == s && share.valid)
            p.energy[share.row] = sum + reinterpret_cast<const float*>(
                                            shared + plan.last)[plan.rows[plan.layers - 1]];
        }
    }
    if (p.step.grad_norm_clip - p.step.grad_norm_clip == 0) {
      double squares = share_of_squares(share);
      for (int h = 16; h >= kSamples; h /= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, h);
      c.scale = norm_clip_scale<float>(squares, p.step.grad_norm_clip);
    }
    const bool noisy = share.noisy && !p.noise_first;
    take_step(share, k, noisy, noisy ? first_noise(share, k) : Normals4{}, c);
  }
  weights.finish();
  write_share(share, share.x, p.step.out);
}

}  // namespace
}  // namespace fastebm
