// From scores to neighbours.
#pragma once
#include "device.h"
#include "neighbor_blocks_cuda.h"

namespace fastebm {
namespace {

constexpr int kFound = 2048;  // columns that are searched at a time, so that their list has room

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

// The exact square by one warp, in every lane: lane l has part l.
template <class X, class Y>
__device__ __forceinline__ double warp_square(const X* x, const Y* y, int64_t dim, float scale,
                                              float offset) {
  double part = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x % 32; i < dim; i += 32) {
    const double difference = static_cast<double>(x[i]) - reference_value(y[i], scale, offset);
    part += difference * difference;
  }
  return warp_sum(part);
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
//  1. Each column's bounds. The columns fall into 32 classes: the k-th least of the classes' least
//     upper bounds is not below the block's k-th least square, as each is that of another chunk.
//  2. Chunks whose lower bound is above it, or above the k-th square found before, are dropped. The
//     others' references get exact squares: a lane each where chunks are large (kChunks), a warp
//     each otherwise.
// A chunk with the skipped reference has no upper bound. A score that may have overflowed, or is
// NaN, bounds nothing. Reads a score twice, and x and y for the exact squares.
template <class X, class Y, int kThreads, bool kChunks>
__global__ void __launch_bounds__(kThreads) select_kernel(NeighborParams p, ScoreBlock b) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kFound % kThreads == 0, "a thread finds the lower bounds that it wrote");
  FASTEBM_SHARED(float[kThreads], minima);
  FASTEBM_SHARED(Neighbor[kWarps][kMaxNeighbors], lists);
  FASTEBM_SHARED(int[kFound], found);
  FASTEBM_SHARED(int, count);
  FASTEBM_SHARED(float, threshold);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int64_t row = blockIdx.x, query = b.first_query + row;
  const X* x = static_cast<const X*>(p.x) + query * p.dim;
  const Y* y = static_cast<const Y*>(p.y) + b.first_reference * p.dim;
  float* scores = b.scores + row * b.pitch;
  const int64_t slice_pitch = b.queries * b.pitch;
  const int64_t skip = p.skip ? p.skip[query] - b.first_reference : -1;
  const int64_t skip_column = skip < 0 ? -1 : skip / b.chunk;

  double x_square = 0;
  if constexpr (!kChunks) {
    for (int64_t e = thread; e < p.dim; e += kThreads) {
      const double v = static_cast<double>(x[e]) - b.center[e];
      x_square += v * v;
    }
    x_square = block_sum<kThreads>(x_square);
  }
  const int columns = x_square == x_square ? b.columns : 0;  // a NaN has no neighbours

  float least = INFINITY;
  const float x_bound = rounded_up(x_square), x_error = b.error.query * x_bound + b.error.absolute;
#pragma unroll 4
  for (int j = thread; j < columns; j += kThreads) {
    float score = scores[j], y_square = 0;
    if constexpr (!kChunks) {
      y_square = b.y_squares[j];
      for (int z = 1; z < b.slices; ++z) {
        score += scores[z * slice_pitch + j];
        y_square += b.y_squares[z * b.pitch + j];
      }
    }
    const float size = fabsf(score) + x_bound + y_square;
    const float error =
        size < 0x1p125f ? b.error.relative * score + b.error.reference * y_square + x_error : NAN;
    scores[j] = score - error;
    if (j != skip_column) least = fminf(least, score + error);
  }
  minima[thread] = least;
  if (lane == 0) clear_neighbors(lists[warp], p.k);
  if (thread == 0) threshold = INFINITY;
  __syncthreads();
  Neighbor* kept = b.lists + row * p.k;
  if (warp == 0) {
    for (int w = 1; w < kWarps; ++w) least = fminf(least, minima[32 * w + lane]);
    least = kth_least(least, p.k);
    if (least < INFINITY) threshold = least;
  }
  __syncthreads();
  float most = threshold;
  if (!b.first) {
    const double square = kept[p.k - 1].square, slack = static_cast<double>(p.dim) * 0x1p-52;
    most = fminf(most, rounded_up(square - x_square + (square + x_square) * slack));
  }

  const int pieces = kChunks ? b.chunk / 32 : 1;
  for (int from = 0; from < columns; from += kFound) {
    if (thread == 0) count = 0;
    __syncthreads();
    const int end = columns - from < kFound ? columns : from + kFound;
    for (int j = from + thread; j < end; j += kThreads)
      if (j == skip_column || !(scores[j] > most)) found[atomicAdd(&count, 1)] = j;
    __syncthreads();
    for (int item = warp; item < count * pieces; item += kWarps) {
      const int j = found[item / pieces];
      int64_t r = j;
      Neighbor candidate{NAN, 0};
      if constexpr (kChunks) {
        r = static_cast<int64_t>(j) * b.chunk + item % pieces * 32 + lane;
        if (r < b.references && r != skip)
          candidate.square =
              small_square(x, y + r * p.dim, static_cast<int>(p.dim), p.y_scale, p.y_offset);
      } else if (r != skip) {
        const double square = warp_square(x, y + r * p.dim, p.dim, p.y_scale, p.y_offset);
        if (lane == 0) candidate.square = square;
      }
      candidate.index = b.first_reference + r;
      add_lanes(lists[warp], p.k, candidate);
    }
    __syncthreads();
  }

  if (thread != 0) return;
  for (int w = 1; w < kWarps; ++w)
    for (int c = 0; c < p.k; ++c) add_neighbor(lists[0], p.k, lists[w][c]);
  if (!b.first)
    for (int c = 0; c < p.k; ++c) add_neighbor(lists[0], p.k, kept[c]);
  for (int c = 0; c < p.k; ++c) kept[c] = lists[0][c];
  if (b.last) store_neighbors<X>(p, query, lists[0]);
}

// Chunks are few and cheap to look at, so that a query gets two warps.
template <class X, class Y>
int launch_select(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  const dim3 grid(static_cast<unsigned>(b.queries));
  if (p.dim <= kDirectDim)
    return launch(select_kernel<X, Y, 64, true>, grid, dim3(64), 0, stream, p, b);
  return launch(select_kernel<X, Y, 256, false>, grid, dim3(256), 0, stream, p, b);
}

}  // namespace
}  // namespace fastebm
