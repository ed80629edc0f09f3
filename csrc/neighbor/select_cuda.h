// From scores to neighbours.
#pragma once
#include "launch/device.h"
#include "launch/sums_cuda.h"
#include "neighbor/quantize_cuda.h"

namespace fastebm {
namespace {

// Exact squares of this many take about as long as scores of floats of all references.
constexpr int kMostCandidates = 128;
static_assert(kMaxColumns <= 1 << 16, "a column's number has 16 bits");

// The exact square by one thread, without the parts that are zero: dim <= kDirectDim.
template <class X, class Y>
__device__ __forceinline__ double small_square(const X* x, const Y* y, int dim, float scale,
                                               float offset) {
  double part[kDirectDim];
#pragma unroll
  for (int i = 0; i < kDirectDim; ++i) {
    part[i] = 0;
    if (i < dim) {
      const double difference = static_cast<double>(x[i]) - reference_value(y[i], scale, offset);
      part[i] = difference * difference;
    }
  }
#pragma unroll
  for (int h = kDirectDim / 2; h > 0; h /= 2)
#pragma unroll
    for (int l = 0; l < kDirectDim / 2; ++l)
      if (l < h) part[l] += part[l + h];
  return part[0];
}

// The exact square by one warp, in every lane: lane l has part l. Reads 32 kBatch elements before
// it uses one.
template <int kBatch, class X, class Y>
__device__ __forceinline__ double warp_square(const X* x, const Y* y, int64_t dim, float scale,
                                              float offset) {
  double part = 0;
  for (int64_t at = threadIdx.x % 32; at < dim; at += 32 * kBatch) {
    X own[kBatch] = {};
    Y other[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (at + 32 * i < dim) own[i] = x[at + 32 * i], other[i] = y[at + 32 * i];
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (at + 32 * i < dim) {
        const double difference =
            static_cast<double>(own[i]) - reference_value(other[i], scale, offset);
        part += difference * difference;
      }
  }
  return warp_sum(part);
}

// |x'|^2 by a CUDA block, in every thread.
template <int kThreads, class X>
__device__ __forceinline__ double block_square(const X* x, const float* center, int64_t dim) {
  constexpr int kBatch = 8;
  double sum = 0;
  for (int64_t at = threadIdx.x; at < dim; at += kThreads * kBatch) {
    double v[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (at + kThreads * i < dim)
        v[i] = static_cast<double>(x[at + kThreads * i]) - center[at + kThreads * i];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) sum += v[i] * v[i];
  }
  return block_sum<kThreads>(sum);
}

__device__ __forceinline__ float4 four_at(const float* from, bool valid) {
  float4 v = make_float4(0, 0, 0, 0);
  if (valid) v = __ldg(reinterpret_cast<const float4*>(from));
  return v;
}

__device__ __forceinline__ void add_four(float (&sum)[4], float4 v) {
  sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
}

// Of integers, whose bits the floats hold.
template <class Integer>
__device__ __forceinline__ void add_four(Integer (&sum)[4], float4 v) {
  sum[0] += static_cast<int32_t>(float_bits(v.x)), sum[1] += static_cast<int32_t>(float_bits(v.y));
  sum[2] += static_cast<int32_t>(float_bits(v.z)), sum[3] += static_cast<int32_t>(float_bits(v.w));
}

// Adds up the slices of columns j .. j + 3, for kQuads of j kApart apart: scores and, if kSquares,
// |y'|^2. Reads those of kBatch slices before it uses one.
template <int kQuads, int kBatch, int kApart, bool kSquares, class Score>
__device__ __forceinline__ void add_slices(const ScoreBlock& b, int64_t row, int j,
                                           Score (&score)[kQuads][4], float (&square)[kQuads][4]) {
  const int64_t apart = b.queries * b.pitch;
  const float *scores = b.scores + row * b.pitch + j, *squares = b.y_squares + j;
  for (int z = 0; z < b.slices; z += kBatch) {
    float4 some[kBatch][kQuads], more[kBatch][kQuads];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const bool valid = z + i < b.slices && j + q * kApart < b.columns;
        some[i][q] = four_at(scores + q * kApart, valid);
        if constexpr (kSquares) more[i][q] = four_at(squares + q * kApart, valid);
      }
      scores += apart;
      squares += b.pitch;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        add_four(score[q], some[i][q]);
        if constexpr (kSquares) add_four(square[q], more[i][q]);
      }
  }
}

// Adds the candidates of all lanes to the warp's list in shared memory.
__device__ inline void add_lanes(Neighbor* list, int k, Neighbor candidate) {
  unsigned waiting = __ballot_sync(0xFFFFFFFFu, nearer(candidate, list[k - 1]));
  for (; waiting; waiting &= waiting - 1) {
    if (static_cast<int>(threadIdx.x % 32) == __ffs(waiting) - 1) add_neighbor(list, k, candidate);
    __syncwarp();
  }
}

// The k-th least of the 32 lanes' values, in its lane; others hold infinity.
__device__ inline float kth_least(float value, int k) {
  const int lane = threadIdx.x % 32;
  int rank = 0;
#pragma unroll
  for (int l = 0; l < 32; ++l) {
    const float other = __shfl_sync(0xFFFFFFFFu, value, l);
    rank += other < value || (other == value && l < lane);
  }
  return rank == k - 1 ? value : INFINITY;
}

__device__ inline float rounded_up(double v) {
  return static_cast<float>(v + fabs(v) * 0x1p-22 + 0x1p-140);
}

// The k nearest of a query among the references of a block and those found in blocks before: a
// CUDA block takes one query.
//  1. Each column's bounds, four columns a thread at a time; the lower ones stay in shared memory.
//     The columns fall into 32 classes: the k-th least of the classes' least upper bounds is not
//     below the block's k-th least square, as each is that of another chunk. Of a query on the grid
//     bounds are those of |qh - q_j|^2, and what they say of squares is in neighbor/grid_cuda.h.
//  2. Chunks whose lower bound is above it, or above the k-th square found before, are dropped. The
//     others' references get exact squares: a lane each where chunks are large (kChunks), a warp
//     each otherwise.
// A chunk with the skipped reference has no upper bound. A score that may have overflowed, or is
// NaN, bounds nothing. kBytes: of queries on the grid; the other kernel is for the others. A query
// with too many candidates leaves the grid, which is where scores of floats tell more.
// Memory moves 4 B a score, and 4 B for its |y'|^2, which all queries share,
// but not on the grid; and x and y for the exact squares.
template <class X, class Y, int kThreads, bool kChunks, bool kBytes>
__global__ void __launch_bounds__(kThreads, kChunks ? 16 : 2)
    select_kernel(NeighborParams p, ScoreBlock b) {
  constexpr int kWarps = kThreads / 32;
  FASTEBM_SHARED(float[kThreads], minima);
  FASTEBM_SHARED(Neighbor[kWarps][kMaxNeighbors], lists);
  FASTEBM_SHARED(int, count);
  FASTEBM_SHARED(float, threshold);
  float* bounds = dynamic_shared<float>();  // of each column
  uint16_t* found = reinterpret_cast<uint16_t*>(bounds + b.pitch);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int64_t row = blockIdx.x, query = b.first_query + row;
  const X* x = static_cast<const X*>(p.x) + query * p.dim;
  const Y* y = static_cast<const Y*>(p.y) + b.first_reference * p.dim;
  const int64_t skip = p.skip ? p.skip[query] - b.first_reference : -1;
  const int64_t skip_column = skip < 0 ? -1 : skip / b.chunk;

  GridQuery on_grid{};
  if constexpr (std::is_same_v<Y, uint8_t>)
    if (b.grid_queries) {
      on_grid = b.grid_queries[row];
      if (is_off_grid(on_grid) == kBytes) return;
    }
  double x_square = kBytes ? on_grid.residual : 0;
  if constexpr (!kChunks && !kBytes) x_square = block_square<kThreads>(x, b.center, p.dim);
  const int columns = x_square == x_square ? b.columns : 0;  // a NaN has no neighbours

  float least = INFINITY;
  const float x_bound = rounded_up(x_square), x_error = b.error.query * x_bound + b.error.absolute;
  const auto find_bounds = [&](auto quads, auto batch, auto zero) {
    constexpr int kQuads = decltype(quads)::value, kBatch = decltype(batch)::value;
    using Score = decltype(zero);
    for (int from = 4 * thread; from < columns; from += 4 * kThreads * kQuads) {
      Score sum[kQuads][4] = {};
      float y_square[kQuads][4] = {};
      add_slices<kQuads, kBatch, 4 * kThreads, !kBytes && !kChunks>(b, row, from, sum, y_square);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const int j = from + 4 * kThreads * q;
        float low[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float score, error;
          if constexpr (!kBytes) {
            score = sum[q][c];
            const float size = fabsf(score) + x_bound + y_square[q][c];
            error = size < 0x1p125f
                        ? b.error.relative * score + b.error.reference * y_square[q][c] + x_error
                        : NAN;
          } else {
            score = static_cast<float>(sum[q][c] + static_cast<Score>(on_grid.square));
            error = score * 0x1p-22f;  // of its rounding to float32
          }
          low[c] = score - error;
          if (j + c < columns && j + c != skip_column) least = fminf(least, score + error);
        }
        if (j < columns)
          *reinterpret_cast<float4*>(bounds + j) = make_float4(low[0], low[1], low[2], low[3]);
      }
    }
  };
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  using Four = std::integral_constant<int, 4>;
  using Eight = std::integral_constant<int, 8>;
  static_assert(255 * 255 * 4 * kMaxSlice <= INT32_MAX);
  if constexpr (kBytes) {
    if (b.slices <= 4)
      find_bounds(Four(), Four(), int32_t{0});
    else
      find_bounds(Two(), Eight(), int64_t{0});
  } else if (kChunks) {
    find_bounds(Two(), One(), 0.0f);
  } else if (b.slices <= 4) {
    find_bounds(Two(), Four(), 0.0f);
  } else {
    find_bounds(One(), Eight(), 0.0f);
  }
  minima[thread] = least;
  if (lane == 0) clear_neighbors(lists[warp], p.k);
  if (thread == 0) {
    threshold = INFINITY;
    count = 0;
  }
  __syncthreads();
  Neighbor* kept = b.lists + row * p.k;
  if (warp == 0) {
    for (int w = 1; w < kWarps; ++w) least = fminf(least, minima[32 * w + lane]);
    const float kth = kth_least(least, p.k);
    if (kth < INFINITY) threshold = kth;
  }
  __syncthreads();
  float most = threshold;
  if (kBytes) most = rounded_up(most_beside(most, on_grid));
  if (!b.first) {
    const double square = kept[p.k - 1].square, slack = static_cast<double>(p.dim) * 0x1p-52;
    most = fminf(most, rounded_up(!kBytes ? square - x_square + (square + x_square) * slack
                                          : most_within(square, on_grid, b.grid)));
  }

  for (int from = 4 * thread; from < columns; from += 4 * kThreads) {
    const float4 low = *reinterpret_cast<const float4*>(bounds + from);
    const auto look = [&](int j, float bound) {
      if (j < columns && (j == skip_column || !(bound > most)))
        found[atomicAdd(&count, 1)] = static_cast<uint16_t>(j);
    };
    look(from, low.x), look(from + 1, low.y), look(from + 2, low.z), look(from + 3, low.w);
  }
  __syncthreads();
  if constexpr (kBytes)
    if (count > kMostCandidates + 2 * p.k) {
      if (thread == 0) b.grid_queries[row].residual = HUGE_VAL;
      return split_query<kThreads, X>(p, b, row);
    }
  const int pieces = kChunks ? b.chunk / 32 : 1, items = count * pieces;
  for (int item = warp; item < items; item += kWarps) {
    const int j = found[item / pieces];
    int64_t r = j;
    Neighbor candidate{NAN, 0};
    if constexpr (kChunks) {
      r = static_cast<int64_t>(j) * b.chunk + item % pieces * 32 + lane;
      if (r < b.references && r != skip)
        candidate.square =
            small_square(x, y + r * p.dim, static_cast<int>(p.dim), p.y_scale, p.y_offset);
    } else if (r != skip) {
      constexpr int kBatch = sizeof(X) > 4 ? 16 : 32;
      const Y* other = y + r * p.dim;
      const double square = p.dim > 256
                                ? warp_square<kBatch>(x, other, p.dim, p.y_scale, p.y_offset)
                                : warp_square<8>(x, other, p.dim, p.y_scale, p.y_offset);
      if (lane == 0) candidate.square = square;
    }
    candidate.index = b.first_reference + r;
    add_lanes(lists[warp], p.k, candidate);
  }
  __syncthreads();

  if (thread != 0) return;
  for (int w = 1; w < kWarps; ++w)
    for (int c = 0; c < p.k; ++c) add_neighbor(lists[0], p.k, lists[w][c]);
  if (!b.first)
    for (int c = 0; c < p.k; ++c) add_neighbor(lists[0], p.k, kept[c]);
  for (int c = 0; c < p.k; ++c) kept[c] = lists[0][c];
  if (b.last) store_neighbors<X>(p, query, lists[0]);
}

// Chunks are few and cheap to look at, so that a query gets two warps.
template <class X, class Y, bool kBytes>
int launch_select(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  const dim3 grid(static_cast<unsigned>(b.queries));
  const size_t bytes = b.pitch * (sizeof(float) + sizeof(uint16_t));
  if constexpr (!kBytes)
    if (p.dim <= kDirectDim)
      return launch(select_kernel<X, Y, 64, true, false>, grid, dim3(64), bytes, stream, p, b);
  return launch(select_kernel<X, Y, 256, false, kBytes>, grid, dim3(256), bytes, stream, p, b);
}

}  // namespace
}  // namespace fastebm
