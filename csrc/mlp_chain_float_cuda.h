// The whole chain in float32, in two forms. Large batches: a warp has samples of its own and all
// features of them, and meets others only to share the weights. Small ones (kGroups = 1): the warps
// of a CUDA block share a tile of samples, each has 32 features of a layer, and one more warp draws
// the noise meanwhile.
//
// Every sum is one thread's and its order is the same in all forms, so no result depends on the
// batch: z and the gradients of layers in order of the inner dimension; the gradient in x by sums
// of 32 of it, added in order; the energy as one warp sums it.
#pragma once
#include "mlp_activation_cuda.h"
#include "mlp_chain_plan_cuda.h"
#include "mlp_chain_step_cuda.h"

namespace fastebm {
namespace {

constexpr int kChunk = 32;   // of the inner dimension: a warp's features
constexpr int kNarrow = 64;  // inputs of a network whose gradient chunks are shared out
constexpr int kMostSharers = kMaxWidth / 32 + 1;  // warps of a shared tile
constexpr int kMostSamples = 8;                   // of a tile

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

// The features from `first` on whose sums a lane has in a product: of forward ones every 32nd, of
// kTransposed ones as many as it reads at once.
constexpr int read_at_once(int groups) { return groups < 4 ? groups : 4; }
template <bool kTransposed, int kGroups>
__device__ __forceinline__ int feature(int first, int i) {
  constexpr int kAtOnce = kTransposed ? read_at_once(kGroups) : 1;
  return first + i / kAtOnce * 32 * kAtOnce + threadIdx.x % 32 * kAtOnce + i % kAtOnce;
}

// What a step of four of the inner dimension multiplies.
template <int kGroups, int kSamples>
struct Factors {
  float w[kGroups][4];
  float in[4 * kSamples];
};

// sum[i][s] += sum_j W[f][j] in[j][s], or kTransposed W[j][f], for the features f = feature(first,
// i) below `limit` and all of the inner dimension. A weight is read once for kSamples products, a
// value once for kGroups, and both a step before they are multiplied.
template <bool kTransposed, int kGroups, int kSamples>
__device__ __forceinline__ void multiply(WeightStream<float>& weights, int inner, int first,
                                         int limit, const float* in,
                                         float (&sum)[kGroups][kSamples]) {
  constexpr int kAtOnce = kTransposed ? read_at_once(kGroups) : 1;
  for (int from = 0; from < inner;) {
    const Slab<float> slab = weights.next();
    const float* w[kGroups / kAtOnce];
#pragma unroll
    for (int i = 0; i < kGroups / kAtOnce; ++i) {
      const int f = feature<kTransposed, kGroups>(first, i * kAtOnce);
      const int inside = f < limit ? f : limit - kAtOnce;
      w[i] = slab.at + (kTransposed ? inside : inside * slab.pitch);
    }
    const float* rows = in + row_at<kSamples>(from);
    const auto load_next = [&](Factors<kGroups, kSamples>& v) {
#pragma unroll
      for (int i = 0; i < kGroups / kAtOnce; ++i) {
#pragma unroll
        for (int j = 0; j < (kTransposed ? 4 : 1); ++j) {
          const auto four = load_floats<kTransposed ? kAtOnce : 4>(w[i] + j * slab.pitch);
#pragma unroll
          for (int a = 0; a < (kTransposed ? kAtOnce : 4); ++a)
            (kTransposed ? v.w[i * kAtOnce + a][j] : v.w[i][a]) = four.v[a];
        }
        w[i] += kTransposed ? 4 * slab.pitch : 4;
      }
#pragma unroll
      for (int q = 0; q < kSamples; ++q) {
        const auto four = load_floats<4>(rows + 4 * q);
#pragma unroll
        for (int e = 0; e < 4; ++e) v.in[4 * q + e] = four.v[e];
      }
      rows += four_rows(kSamples);
    };
    const auto use = [&](const Factors<kGroups, kSamples>& v) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < kGroups; ++i)
#pragma unroll
          for (int s = 0; s < kSamples; ++s)
            sum[i][s] = fma_rn(v.w[i][j], v.in[j * kSamples + s], sum[i][s]);
    };
    if (first < limit) {
      Factors<kGroups, kSamples> now, next;
      load_next(now);
#pragma unroll(kGroups* kSamples >= 16 ? 2 : 4)
      for (int k = 4; k < slab.count; k += 4) {
        load_next(next);
        use(now);
        now = next;
      }
      use(now);
    }
    from += slab.count;
  }
}

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

// to[c][s] = sum_j W[j][c] g[j][s] over a chunk of `rows` features j, added to what is there where
// `add`, for the warp's inputs c: 32 from `begin` on, and again every `step`.
template <int kSamples>
__device__ __forceinline__ void input_chunk(const float* w, int pitch, int rows, int begin,
                                            int columns, int step, const float* g, float* to,
                                            bool add) {
  const int lane = threadIdx.x % 32;
  if (columns * kSamples <= kNarrow) {  // a lane has an input of one sample
    for (int o = lane; o < columns * kSamples; o += 32) {
      const int c = o / kSamples, s = o % kSamples;
      float sum = 0;
#pragma unroll 4
      for (int j = 0; j < rows; j += 4)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sum = fma_rn(w[(j + e) * pitch + c], g[row_at<kSamples>(j) + e * kSamples + s], sum);
      float& out = to[row_at<kSamples>(c) + s];
      out = add ? out + sum : sum;
    }
    return;
  }
  for (int c = begin + lane; c < columns; c += step) {
    Floats<kSamples> sum = {};
#pragma unroll 2
    for (int j = 0; j < rows; j += 4)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float v = w[(j + e) * pitch + c];
        const auto row = load_floats<kSamples>(g + row_at<kSamples>(j) + e * kSamples);
#pragma unroll
        for (int s = 0; s < kSamples; ++s) sum.v[s] = fma_rn(v, row.v[s], sum.v[s]);
      }
    float* out = to + row_at<kSamples>(c);
    if (add) {
      const auto before = load_floats<kSamples>(out);
#pragma unroll
      for (int s = 0; s < kSamples; ++s) sum.v[s] = before.v[s] + sum.v[s];
    }
    store_floats(out, sum);
  }
}

// The gradient in x from that in z of layer 0, `g`, to `to`. Of a shared tile whose network is
// narrow, chunk w only, by warp w, and to `to` + w tiles of x; where it is not, some inputs of all
// chunks. A warp of its own has all of both.
template <int kSamples, bool kShared>
__device__ __forceinline__ void input_gradient(WeightStream<float>& weights, const ChainPlan& plan,
                                               const float* g, float* to) {
  const int warp = kShared ? threadIdx.x / 32 : 0, columns = plan.columns[0];
  const bool split = kShared && columns <= kNarrow;
  const int tile = columns / 4 * four_rows(kSamples);
  for (int from = 0; from < plan.rows[0];) {
    const Slab<float> slab = weights.next();
    for (int j = 0; j < slab.count; j += kChunk) {
      const int chunk = (from + j) / kChunk, left = slab.count - j;
      if (!split || chunk == warp)
        input_chunk<kSamples>(
            slab.at + j * slab.pitch, slab.pitch, left < kChunk ? left : kChunk,
            split ? 0 : 32 * warp, columns, kShared && !split ? static_cast<int>(blockDim.x) : 32,
            g + row_at<kSamples>(from + j), to + (split ? chunk * tile : 0), !split && chunk > 0);
    }
    from += slab.count;
  }
}

// E of the tile's samples from the values of the last layer: each by one warp, whose lane has every
// 32nd feature.
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

// Sums the gradient's chunks, one for each warp that has features of layer 0, where the first is.
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

// All steps of x <- clamp(x - step * clip(grad E(x)) + sigma n), see mlp_chain.h. A tile has
// kSamples samples. kGroups = 1: a CUDA block has one tile, warp w the features from 32 w on, a
// lane one of each layer, and the last warp draws noise; a barrier ends each layer. Else
// a warp has a tile, and a lane up to kGroups features of each layer. Step (and noise, in a tile of
// a warp) go by blocks of four elements of one sample, a thread always to the same sample. Memory
// moves 8 B an element of x for the whole chain, and the weights once a CUDA block; a step reads
// each weight twice a tile out of shared memory and does two multiplications a weight and sample.
// x, and at the last step the gradient, are written by the threads that step them.
template <int kGroups, int kSamples>
__global__ void __launch_bounds__(kGroups == 1 ? 32 * kMostSharers : kChainThreads, 1)
    float_chain_kernel(const __grid_constant__ MlpChainParams p,
                       const __grid_constant__ ChainPlan plan) {
  constexpr bool kShared = kGroups == 1;
  using Tile = FloatTile<kSamples, kShared>;
  unsigned char* shared = dynamic_shared<unsigned char>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int member = kShared ? threadIdx.x : lane, members = kShared ? blockDim.x : 32;
  const int begin = kShared ? 32 * warp : 0;
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

  for (int64_t k = 0; k < p.n_steps; ++k) {
    RowCoefficients<float> c = chain_coefficients(p, k, share.row, 1.0f);
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
      float sum[kGroups][kSamples];
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int f = feature<false, kGroups>(begin, i);
        const float b = f < plan.rows[l] ? bias[f] : 0.0f;
#pragma unroll
        for (int s = 0; s < kSamples; ++s) sum[i][s] = b;
      }
      multiply<false>(weights, plan.columns[l], begin, plan.rows[l], in, sum);
      if (draws && noisy && l + 1 == plan.layers)  // this layer takes the others long
        draw_noise(share, k, lane / kSamples, 32 / kSamples, tile.noise + lane % kSamples);
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        if (const int f = feature<false, kGroups>(begin, i); f < plan.rows[l]) {
          Floats<kSamples> z;
#pragma unroll
          for (int s = 0; s < kSamples; ++s) z.v[s] = sum[i][s];
          store_floats(slopes + row_at<kSamples>(f), z);
        }
      if constexpr (!kShared) __syncwarp();  // all have read `in`, which is `to`
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
      float sum[kGroups][kSamples] = {};
      multiply<true>(weights, plan.rows[l], begin, plan.columns[l], tile.slope(plan, l), sum);
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        if (const int f = feature<true, kGroups>(begin, i); f < plan.columns[l]) {
          auto v = load_floats<kSamples>(slopes + row_at<kSamples>(f));
#pragma unroll
          for (int s = 0; s < kSamples; ++s) v.v[s] *= sum[i][s];
          store_floats(slopes + row_at<kSamples>(f), v);
        }
      if (l > 1 || plan.columns[0] > kNarrow)
        tile_barrier<kShared>();
      else
        __syncwarp();  // a chunk of the next product is the warp's own
    }
    input_gradient<kSamples, kShared>(weights, plan, tile.slope(plan, 0), tile.first);
    tile_barrier<kShared>();
    if constexpr (kShared)
      if (plan.columns[0] <= kNarrow) add_chunks(share, plan);
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
