// Samples of a CUDA block in shared memory, products of them with bfloat16 weights on tensor cores,
// and where a lane has its sums.
#pragma once
#include "launch/ptx_cuda.h"
#include "mlp/chain/plan_cuda.h"

namespace fastebm {
namespace {

constexpr int kGroupFeatures = 16;  // a warp has one group of them of a layer, or two
constexpr int kMostTensorThreads = kLarge / kGroupFeatures * 32;

// What a CUDA block holds in shared memory. A row for each sample: x and the gradient in float32,
// x rounded, and twice the values, or gradients, of a layer. Rows are odd numbers of quads. For
// each thread: a quad of slopes of each 16 samples and hidden layer but the last, in the gradient's
// place, which is written when the last of them has been read.
//
// Of two groups to a warp there is less room: slopes are in a thread's local memory, x rounded is
// where values are that all have read when it is written, and the gradient in the place of both
// layers' values.
template <int kGroups>
struct TensorTile {
  int threads, x_pitch, rounded_pitch, pitch;  // pitches in elements
  float *x, *grad;
  uint4* slopes;
  double* squares;  // of each thread
  float* energy;    // of each warp and sample
  Bfloat16 *rounded, *first, *second;

  __device__ TensorTile(const ChainPlan& plan, int samples, unsigned char* at)
      : threads(32 * plan.warps),
        x_pitch((plan.columns[0] / 4 | 1) * 4),
        rounded_pitch(rounded_quads(plan) * 8),
        pitch(value_quads(plan) * 8) {
    x = reinterpret_cast<float*>(at);
    grad = x + samples * x_pitch;
    slopes = reinterpret_cast<uint4*>(grad);
    squares = reinterpret_cast<double*>(slopes + shared_quads(plan, samples));
    energy = reinterpret_cast<float*>(squares + threads);
    rounded = reinterpret_cast<Bfloat16*>(energy + plan.warps * samples);
    first = kGroups == 1 ? rounded + samples * rounded_pitch : rounded;
    second = first + samples * pitch;
    if (kGroups == 1) return;
    rounded = second;
    grad = reinterpret_cast<float*>(first);
  }
  FASTEBM_HD static int value_quads(const ChainPlan& plan) {
    return (kGroups == 1 || plan.columns[0] < plan.widest ? plan.widest : plan.columns[0]) / 8 | 1;
  }
  FASTEBM_HD static int rounded_quads(const ChainPlan& plan) {
    return kGroups == 1 ? plan.columns[0] / 8 | 1 : value_quads(plan);
  }
  // Of slopes, or of the gradient.
  FASTEBM_HD static int shared_quads(const ChainPlan& plan, int samples) {
    if (kGroups > 1) return 0;
    const int slopes = (plan.layers - 1) * samples / 16 * 32 * plan.warps;
    const int grad = samples * (plan.columns[0] / 4 | 1);
    return slopes < grad ? grad : slopes;
  }
  static int bytes(const ChainPlan& plan, int samples) {
    const int rounded = kGroups == 1 ? rounded_quads(plan) : 0;
    const int quads = (plan.columns[0] / 4 | 1) + rounded + 2 * value_quads(plan);
    return samples * (16 * quads + 4 * plan.warps) + 16 * shared_quads(plan, samples) +
           32 * plan.warps * 8;
  }
};

// Sums of a warp: of 16-row tile m and 8-column half h of a group, as mma_bfloat16 has them.
template <int kTiles, int kGroups>
struct WarpSums {
  float v[kTiles][2 * kGroups][4];
};

// Fragments of a step of 16 of the inner dimension.
template <int kTiles, int kGroups>
struct WarpFragments {
  uint32_t in[kTiles][4], w[kGroups][4];
};

// sum += in W^T, or kTransposed in W, with W of layer l, for all samples and the features from n
// on; the inner dimension is that of `in`. Fragments are loaded one step before they are
// multiplied.
template <bool kTransposed, int kTiles, int kGroups>
__device__ __forceinline__ void multiply(WeightStream<Bfloat16>& weights, int l, int inner,
                                         int features, int n, const Bfloat16* in, int pitch,
                                         WarpSums<kTiles, kGroups>& sum) {
  const int lane = threadIdx.x % 32;
  in += lane % 16 * pitch + lane / 16 * 8;
  for (int from = 0; from < inner;) {
    const Slab<Bfloat16> slab = weights.next<!kTransposed>(l);
    const int along = kTransposed ? slab.pitch : 1, across = kTransposed ? 1 : slab.pitch;
    const Bfloat16* w =
        slab.at + (kTransposed ? lane % 16 * slab.pitch + n + lane / 16 * 8
                               : (n + lane % 8 + lane / 16 * 8) * slab.pitch + lane / 8 % 2 * 8);
    const auto load = [&](int k, WarpFragments<kTiles, kGroups>& f) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m)
        load_matrices<false>(f.in[m], in + 16 * m * pitch + from + k);
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
        load_matrices<kTransposed>(f.w[g], w + k * along + g * kGroupFeatures * across);
    };
    const auto use = [&](const WarpFragments<kTiles, kGroups>& f) {
      uint32_t b[2 * kGroups][2];
#pragma unroll
      for (int h = 0; h < 2 * kGroups; ++h)
#pragma unroll
        for (int i = 0; i < 2; ++i) b[h][i] = f.w[h / 2][h % 2 * 2 + i];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) mma_bfloat16(sum.v[m], f.in[m], b);
    };
    if (n < features) {
      WarpFragments<kTiles, kGroups> even, odd;
      load(0, even);
#pragma unroll 1
      for (int k = 0; k < slab.count; k += 32) {
        load(k + 16, odd);
        use(even);
        load(k + 32 < slab.count ? k + 32 : k, even);  // no branch: the last is not used
        use(odd);
      }
    }
    from += slab.count;
  }
}

// Calls f(row, feature, m, h, r) for each pair of features that a lane has sums of, in v[m][h]
// elements 2 r and 2 r + 1: those of sample `row`, in a warp whose features start at n.
template <int kTiles, int kGroups, class F>
__device__ __forceinline__ void for_each_pair(int n, int features, F&& f) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;  // see mma_bfloat16()
  if (n < features)
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int h = 0; h < 2 * kGroups; ++h)
#pragma unroll
        for (int r = 0; r < 2; ++r) f(16 * m + 8 * r + g, n + 8 * h + 2 * t, m, h, r);
}

__device__ __forceinline__ void store_pair(Bfloat16* to, uint32_t pair) {
  *reinterpret_cast<uint32_t*>(to) = pair;
}

}  // namespace
}  // namespace fastebm
