// Energy and gradient of the samples of a tile: the passes through the network, forward and back,
// what every chain in float32 does at its points.
#pragma once
#include "launch/sums_cuda.h"
#include "mlp/activation_cuda.h"
#include "mlp/chain/products_cuda.h"
#include "mlp/chain/step_cuda.h"

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
  visit_activation(mlp.activation, [&](auto activation) {
    activate_rows<decltype(activation)::value, kSamples>(mlp, begin, end, last, slopes, values);
    return 0;
  });
}

// E of the tile's samples `first`, `first` + `every`, ..., of those below `samples`, to to[s], from
// the values of the last layer, and x for the base: of each by one warp, whose lane has every 32nd
// feature and element in order.
template <int kSamples>
__device__ __forceinline__ void write_energy(const Mlp& mlp, int first, int every, int64_t samples,
                                             const float* last, int rows, const float* values,
                                             const float* x, float* to) {
  const int lane = threadIdx.x % 32;
  for (int s = first; s < kSamples; s += every) {
    float sum = 0;
    for (int f = lane; f < rows; f += 32)
      sum = fma_rn(last[f], values[row_at<kSamples>(f) + s], sum);
    for (int d = lane; mlp.base_precision && d < mlp.dim; d += 32)
      sum += base_energy_at(mlp, d, x[row_at<kSamples>(d) + s]);
    sum = warp_sum(sum);
    if (lane == 0 && s < samples) to[s] = sum + last[rows];
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

// The features and samples of a tile that a lane has in the passes, and which they are.
template <int kGroups, int kSamples, bool kShared>
struct LaneOfTile {
  static constexpr int kParts = lanes_of_feature(kGroups, kSamples);
  static constexpr int kFeatures = kGroups * kParts, kOwn = kSamples / kParts;
  int begin, own;  // the first feature of its warp, the first sample

  __device__ LaneOfTile()
      : begin(kShared ? threadIdx.x / 32 * 32 * kGroups : 0),
        own(threadIdx.x % 32 % kParts * kOwn) {}
};

// From the samples in tile.x, the first of which is the batch's first_row: the slopes of all
// layers, those of the last times its weights, and the values of the last layer, where they are
// returned. Warps that have no features, or have
// theirs, do meanwhile() as the others multiply the last layer. Ends with a barrier.
template <int kGroups, int kSamples, bool kShared, class F>
__device__ __forceinline__ const float* forward_pass(const MlpChainParams& p, const ChainPlan& plan,
                                                     WeightStream<float>& weights,
                                                     const FloatTile<kSamples, kShared>& tile,
                                                     int64_t first_row, const unsigned char* shared,
                                                     F&& meanwhile) {
  using Lane = LaneOfTile<kGroups, kSamples, kShared>;
  constexpr int kFeatures = Lane::kFeatures, kParts = Lane::kParts, kOwn = Lane::kOwn;
  const Lane lane;
  const float* in = tile.x;
  float *to = tile.first, *spare = tile.second;
  for (int l = 0; l < plan.layers; ++l) {
    const float* bias = reinterpret_cast<const float*>(shared + plan.bias[l]);
    float* slopes = tile.slope(plan, l);
    float sum[kFeatures][kOwn];
#pragma unroll
    for (int i = 0; i < kFeatures; ++i) {
      const int f = feature<false, kFeatures, kParts>(lane.begin, i);
      const float b = f < plan.rows[l] ? bias[f] : 0.0f;
#pragma unroll
      for (int s = 0; s < kOwn; ++s) sum[i][s] = b;
    }
    if (l == 0 && p.row_bias)
#pragma unroll
      for (int i = 0; i < kFeatures; ++i)
#pragma unroll
        for (int s = 0; s < kOwn; ++s)
          sum[i][s] = row_bias_at(p, first_row, lane.own + s,
                                  feature<false, kFeatures, kParts>(lane.begin, i));
    multiply<false, kSamples>(weights, l, plan.columns[l], lane.begin, plan.rows[l], in + lane.own,
                              sum);
    if (l + 1 == plan.layers) meanwhile();
#pragma unroll
    for (int i = 0; i < kFeatures; ++i)
      if (const int f = feature<false, kFeatures, kParts>(lane.begin, i); f < plan.rows[l]) {
        Floats<kOwn> z;
#pragma unroll
        for (int s = 0; s < kOwn; ++s) z.v[s] = sum[i][s];
        store_floats(slopes + row_at<kSamples>(f) + lane.own, z);
      }
    if constexpr (!kShared || kParts > 1) __syncwarp();  // all have read `in`, maybe `to`
    const int end = lane.begin + 32 * kGroups;
    activate_layer<kSamples>(
        p.mlp, lane.begin, plan.rows[l] < end ? plan.rows[l] : end,
        l + 1 < plan.layers ? nullptr : reinterpret_cast<const float*>(shared + plan.last), slopes,
        to);
    tile_barrier<kShared>();
    in = to;
    to = spare;
    spare = const_cast<float*>(in);
  }
  return in;
}

// From the slopes: the gradient in the samples, to tile.first, of which this thread may then read
// its share. Overwrites the values; where they are in use, all warps are waited for before.
template <int kGroups, int kSamples, bool kShared>
__device__ __forceinline__ void backward_pass(const ChainPlan& plan, WeightStream<float>& weights,
                                              const FloatTile<kSamples, kShared>& tile,
                                              const SampleShare& share, bool values_in_use) {
  using Lane = LaneOfTile<kGroups, kSamples, kShared>;
  constexpr int kFeatures = Lane::kFeatures, kParts = Lane::kParts, kOwn = Lane::kOwn;
  const Lane lane;
  const bool apart = plan.columns[0] <= narrow(kShared);
  for (int l = plan.layers - 1; l > 0; --l) {
    float* slopes = tile.slope(plan, l - 1);
    float sum[kFeatures][kOwn] = {};
    multiply<true, kSamples>(weights, l, plan.rows[l], lane.begin, plan.columns[l],
                             tile.slope(plan, l) + lane.own, sum);
#pragma unroll
    for (int i = 0; i < kFeatures; ++i)
      if (const int f = feature<true, kFeatures, kParts>(lane.begin, i); f < plan.columns[l]) {
        float* at = slopes + row_at<kSamples>(f) + lane.own;
        auto v = load_floats<kOwn>(at);
#pragma unroll
        for (int s = 0; s < kOwn; ++s) v.v[s] *= sum[i][s];
        store_floats(at, v);
      }
    if (l > 1 || !apart || values_in_use)
      tile_barrier<kShared>();
    else
      __syncwarp();  // a chunk of the next product is the warp's own
  }
  if (values_in_use && plan.layers == 1) tile_barrier<kShared>();
  input_gradient<kGroups, kSamples, kShared>(weights, plan, tile.slope(plan, 0), tile.first);
  tile_barrier<kShared>();
  if (apart) add_chunks(share, plan);
}

}  // namespace
}  // namespace fastebm
