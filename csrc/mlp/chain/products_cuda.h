// Samples of a tile in shared memory, and products of their float32 values with the weights. A tile
// is one warp's, or all warps of a CUDA block share it (kShared).
//
// Every sum is one thread's and its order is the same in both, so no result depends on how a batch
// is cut: z and the gradients of layers in order of the inner dimension, the gradient in x by sums
// of 32 of it, or 16 where inputs are many, added in order.
#pragma once
#include "mlp/chain/plan_cuda.h"
#include "mlp/chain/step_cuda.h"

namespace fastebm {
namespace {

constexpr int kChunk = 32;                     // of the inner dimension, at most
constexpr int kMostSharers = kLarge / 32 + 1;  // warps of a shared tile
constexpr int kMostSamples = 8;                // of a tile

// Threads of a CUDA block, and how many blocks registers leave a multiprocessor room for: small
// networks leave shared memory for two.
constexpr int tile_threads(bool shared) { return shared ? 32 * kMostSharers : kChainThreads; }
constexpr int blocks_beside(int groups, int samples, bool shared) {
  return groups * samples <= 16 && !shared ? 2 : 1;
}

// A slab of the smaller size has a chunk of many inputs.
FASTEBM_HD int chunk_rows(const ChainPlan& plan) {
  return plan.columns[0] > kLarge ? kChunk / 2 : kChunk;
}

// Inputs of a network whose chunks of the gradient in x have room beside each other.
FASTEBM_HD constexpr int narrow(bool shared) { return shared ? 2 * kChunk : kChunk; }

// Values lie by feature, kSamples for each, and features by four. After four of eight samples is a
// gap, so that lanes that have a feature, or four, each are in different banks.
FASTEBM_HD constexpr int four_rows(int samples) { return 4 * samples + (samples == 8 ? 4 : 0); }
template <int kSamples>
__device__ __forceinline__ int row_at(int f) {
  const unsigned row = static_cast<unsigned>(f);
  return row / 4 * four_rows(kSamples) + row % 4 * kSamples;
}

// kCount consecutive floats, moved at once.
template <int kCount>
struct alignas(kCount < 4 ? 4 * kCount : 16) Floats {
  float v[kCount];
};
template <int kCount>
__device__ __forceinline__ Floats<kCount> load_floats(const float* from) {
  return *reinterpret_cast<const Floats<kCount>*>(from);
}
template <int kCount>
__device__ __forceinline__ void store_floats(float* to, const Floats<kCount>& v) {
  *reinterpret_cast<Floats<kCount>*>(to) = v;
}

// Rows that the values of a layer may need, or all chunks of a narrow network in a pair of them.
FASTEBM_HD int most_rows(const ChainPlan& plan) {
  const int widest = round_up(plan.widest, kChunk);
  return widest < plan.columns[0] ? plan.columns[0] : widest;
}

inline int float_tile_bytes(const ChainPlan& plan, int samples, bool shared) {
  const int rows = (shared ? 2 : 1) * (plan.columns[0] + most_rows(plan)) + plan.last / 4;
  return rows / 4 * four_rows(samples) * 4 + round_up(plan.columns[0] / 4 * samples * 8, 16);
}

// What is held of a tile in shared memory: x, its noise (where the tile is shared), twice the
// values of a layer (once where not), and the slopes of all layers, each overwritten by the
// gradient in its inputs z. The values make room for the gradient in x, or for its chunks.
template <int kSamples, bool kShared>
struct FloatTile {
  float *x, *noise, *first, *second, *slopes;
  double* squares;  // of four elements of x and a sample

  __device__ FloatTile(const ChainPlan& plan, unsigned char* at)
      : x(reinterpret_cast<float*>(at)),
        noise(x + (kShared ? floats(plan.columns[0]) : 0)),
        first(noise + floats(plan.columns[0])),
        second(first + (kShared ? floats(most_rows(plan)) : 0)),
        slopes(second + floats(most_rows(plan))),
        squares(reinterpret_cast<double*>(slopes + floats(plan.last / 4))) {}
  __device__ float* slope(const ChainPlan& plan, int l) const {
    return slopes + floats(plan.bias[l] / 4);
  }
  __device__ static int floats(int rows) { return rows / 4 * four_rows(kSamples); }
};

// Neighbouring lanes that share features. Of eight samples two have four each, and of twice the
// features: that reads less than all samples of half of them.
constexpr int lanes_of_feature(int groups, int samples) {
  return groups <= 4 && samples == 8 ? 2 : 1;
}

// The features from `first` on whose sums a lane has in a product, kParts lanes each: of forward
// ones every 32nd or 16th, of kTransposed ones as many as it reads at once.
constexpr int read_at_once(int features) { return features < 4 ? features : 4; }
template <bool kTransposed, int kFeatures, int kParts>
__device__ __forceinline__ int feature(int first, int i) {
  constexpr int kAtOnce = kTransposed ? read_at_once(kFeatures) : 1, kLanes = 32 / kParts;
  return first + (i / kAtOnce * kLanes + threadIdx.x % 32 / kParts) * kAtOnce + i % kAtOnce;
}

// What a step of four of the inner dimension multiplies. Weights lie as they are read, four to a
// read: nvcc 13.0 would else move most of them once more.
template <bool kTransposed, int kFeatures, int kOwn>
struct Factors {
  float w[4 * kFeatures];
  float in[4 * kOwn];
  static constexpr int at(int feature, int j) {
    return kTransposed ? j * kFeatures + feature : 4 * feature + j;
  }
};

// sum[i][s] += sum_j W[f][j] in[j][s], or kTransposed W[j][f], for the features f = feature(first,
// i) below `limit`, the lane's own samples from `in` on and all of the inner dimension, with W of
// layer l. A weight is read once for kOwn products, a value once for kFeatures, and both kAhead
// steps before they are multiplied: a step of few products takes less time than a read.
template <bool kTransposed, int kSamples, int kFeatures, int kOwn>
__device__ __forceinline__ void multiply(WeightStream<float>& weights, int l, int inner, int first,
                                         int limit, const float* in,
                                         float (&sum)[kFeatures][kOwn]) {
  constexpr int kAtOnce = kTransposed ? read_at_once(kFeatures) : 1;
  constexpr int kProducts = kFeatures * kOwn;  // at eight, two steps fit into registers once
  constexpr int kAhead = kProducts < 4 ? 3 : kProducts < (kTransposed ? 8 : 16) ? 2 : 1;
  for (int from = 0; from < inner;) {
    const Slab<float> slab = weights.next<!kTransposed>(l);
    const float* w[kFeatures / kAtOnce];
#pragma unroll
    for (int i = 0; i < kFeatures / kAtOnce; ++i) {
      const int f = feature<kTransposed, kFeatures, kSamples / kOwn>(first, i * kAtOnce);
      const int inside = f < limit ? f : limit - kAtOnce;
      w[i] = slab.at + (kTransposed ? inside : inside * slab.pitch);
    }
    const float* rows = in + row_at<kSamples>(from);
    const auto load_next = [&](Factors<kTransposed, kFeatures, kOwn>& v) {
#pragma unroll
      for (int i = 0; i < kFeatures / kAtOnce; ++i) {
#pragma unroll
        for (int j = 0; j < (kTransposed ? 4 : 1); ++j) {
          const auto four = load_floats<kTransposed ? kAtOnce : 4>(w[i] + j * slab.pitch);
#pragma unroll
          for (int a = 0; a < (kTransposed ? kAtOnce : 4); ++a)
            v.w[kTransposed ? v.at(i * kAtOnce + a, j) : v.at(i, a)] = four.v[a];
        }
        w[i] += kTransposed ? 4 * slab.pitch : 4;
      }
#pragma unroll
      for (int q = 0; q < kOwn; ++q) {
        const auto four = load_floats<4>(rows + (kOwn < kSamples ? kSamples : 4) * q);
#pragma unroll
        for (int e = 0; e < 4; ++e) v.in[4 * q + e] = four.v[e];
      }
      rows += four_rows(kSamples);
    };
    const auto use = [&](const Factors<kTransposed, kFeatures, kOwn>& v) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < kFeatures; ++i)
#pragma unroll
          for (int s = 0; s < kOwn; ++s)
            sum[i][s] = fma_rn(v.w[v.at(i, j)], v.in[j * kOwn + s], sum[i][s]);
    };
    if (first < limit) {
      Factors<kTransposed, kFeatures, kOwn> steps[kAhead + 1];
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (4 * a < slab.count) load_next(steps[a]);
#pragma unroll kAhead + 1
      for (int k = 4 * kAhead; k < slab.count; k += 4) {
        load_next(steps[kAhead]);
        use(steps[0]);
#pragma unroll
        for (int a = 0; a < kAhead; ++a) steps[a] = steps[a + 1];
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (4 * a < slab.count) use(steps[a]);
    }
    from += slab.count;
  }
}

// Inputs that a lane sums the gradient of at once: where samples are few, so are the lanes.
constexpr int at_once(int samples) { return samples < 4 ? 1 : 4; }

// sum_j W[j][c] g[j] over a chunk of `rows` features j, for kInputs inputs c of one sample.
template <int kInputs, int kSamples>
__device__ __forceinline__ Floats<kInputs> chunk_sum(const float* w, int pitch, int rows,
                                                     const float* g) {
  Floats<kInputs> sum = {};
#pragma unroll kInputs == 1 ? 8 : 4
  for (int j = 0; j < rows; j += 4) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const auto read = load_floats<kInputs>(w + e * pitch);
      const float v = g[e * kSamples];
#pragma unroll
      for (int c = 0; c < kInputs; ++c) sum.v[c] = fma_rn(read.v[c], v, sum.v[c]);
    }
    w += 4 * pitch;
    g += four_rows(kSamples);
  }
  return sum;
}

// The gradient in x from that in z of layer 0, `g`, to `to`, some inputs of a sample at a time. Of
// a narrow network its chunks, a tile of x apart, for add_chunks(): in a shared tile those of a
// warp's features are its own, else a warp has all at once. Of others the whole, chunk after chunk,
// by all threads of the tile.
template <int kGroups, int kSamples, bool kShared>
__device__ __forceinline__ void input_gradient(WeightStream<float>& weights, const ChainPlan& plan,
                                               const float* g, float* to) {
  constexpr int kInputs = at_once(kSamples);
  const int warp = threadIdx.x / 32, parts = plan.columns[0] / kInputs * kSamples;
  const int chunk = chunk_rows(plan);
  const bool apart = plan.columns[0] <= narrow(kShared);
  const int first = kShared && !apart ? threadIdx.x : threadIdx.x % 32;
  const int every = kShared && !apart ? blockDim.x : 32;
  for (int from = 0; from < plan.rows[0];) {
    const Slab<float> slab = weights.next<false>(0);
    const int count = apart && !kShared ? slab.count : chunk;  // at a time
    for (int begin = 0; begin < slab.count; begin += count) {
      if (kShared && apart && (from + begin) / (kGroups * kChunk) != warp) continue;
      const int chunks = apart && !kShared ? (count + kChunk - 1) / kChunk : 1;
      for (int i = first; i < chunks * parts; i += every) {
        const int part = i % parts, s = part % kSamples, input = part / kSamples * kInputs;
        const int j = begin + i / parts * kChunk, left = slab.count - j;
        const Floats<kInputs> sum = chunk_sum<kInputs, kSamples>(
            slab.at + j * slab.pitch + input, slab.pitch, left < chunk ? left : chunk,
            g + row_at<kSamples>(from + j) + s);
        float* out = to + row_at<kSamples>(input) + s;
        if (apart) out += (from + j) / kChunk * (plan.columns[0] / 4) * four_rows(kSamples);
#pragma unroll
        for (int c = 0; c < kInputs; ++c)
          out[c * kSamples] = apart || from + j == 0 ? sum.v[c] : out[c * kSamples] + sum.v[c];
      }
    }
    from += slab.count;
  }
}

// Sums the gradient's chunks where the first is.
__device__ __forceinline__ void add_chunks(const SampleShare& s, const ChainPlan& plan) {
  const int chunks = (plan.rows[0] + kChunk - 1) / kChunk, tile = plan.columns[0] / 4 * s.block;
#pragma unroll 1
  for (int b = s.first; 4 * b < s.dim; b += s.every) {
    float sum[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] = s.grad[s.at(b, j)];
#pragma unroll 3
    for (int i = 1; i < chunks; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] += s.grad[i * tile + s.at(b, j)];
#pragma unroll
    for (int j = 0; j < 4; ++j) s.grad[s.at(b, j)] = sum[j];
  }
}

}  // namespace
}  // namespace fastebm
