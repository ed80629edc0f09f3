// Queries made ready for tensor cores, once for all references.
#pragma once
#include "launch/device.h"
#include "launch/ptx_cuda.h"
#include "neighbor/blocks_cuda.h"

namespace fastebm {
namespace {

constexpr int kCenterRows = 32, kSplitRows = 32, kSplitThreads = 256;

// Of the elements `at` and at + 1, at even, in a query's row: the place of their high parts. That
// of the low ones is kTileDepth / 2 further.
__device__ __forceinline__ int64_t split_place(int64_t at) {
  return at / kTileDepth * kTileDepth + at % kTileDepth / 2;
}

// Two floats as bfloat16 high and low parts.
__device__ __forceinline__ void split(float v0, float v1, uint32_t& high, uint32_t& low) {
  high = bfloat16_pair(v0, v1);
  low = bfloat16_pair(v0 - float_from_bits(high << 16), v1 - float_from_bits(high & 0xFFFF0000u));
}

// center[e], and x'_i = x_i - center in bfloat16 high and low parts: for each step of kTileDepth
// elements the pairs of high parts, then those of low ones; zeros after the sample's end.
// The centre is the mean of at most 32 queries: any would do, and the nearer to all samples the
// smaller is the error of scores. Every CUDA block that needs it sums it anew, in the same order.
// A CUDA block takes two steps' elements of kSplitRows queries: a lane two elements, a warp every
// eighth row. Memory moves 8 B an element, and as much again for the centre's rows out of L2.
template <class X>
__global__ void __launch_bounds__(kSplitThreads) split_kernel(NeighborParams p, ScoreBlock b) {
  constexpr int kWarps = kSplitThreads / 32, kEach = kSplitRows / kWarps;
  FASTEBM_SHARED(X[kWarps][2 * kTileDepth], sums);
  const int pair = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t element = blockIdx.x * int64_t{2 * kTileDepth} + 2 * pair;
  const int64_t first = blockIdx.y * int64_t{kSplitRows} + warp;
  const X* x = static_cast<const X*>(p.x);
  X centers[kCenterRows / kWarps][2], rows[kEach][2];
#pragma unroll
  for (int r = 0; r < kCenterRows / kWarps; ++r) {
    const int64_t at = r * kWarps + warp;
    const int64_t row = p.n < kCenterRows ? at : p.n * at / kCenterRows;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      centers[r][i] = row < p.n && element + i < p.dim ? x[row * p.dim + element + i] : X(0);
  }
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    const int64_t row = first + r * kWarps;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      rows[r][i] = row < b.queries && element + i < p.dim
                       ? x[(b.first_query + row) * p.dim + element + i]
                       : X(0);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    X sum = 0;
#pragma unroll
    for (int r = 0; r < kCenterRows / kWarps; ++r) sum += centers[r][i];
    sums[warp][2 * pair + i] = sum;
  }
  __syncthreads();
  float center[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    X sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][2 * pair + i];
    const float mean =
        static_cast<float>(sum / static_cast<X>(p.n < kCenterRows ? p.n : kCenterRows));
    center[i] = mean - mean == 0 && element + i < p.dim ? mean : 0;
  }
  const int64_t width = tile_steps(p.dim) * kTileDepth;
  for (int z = threadIdx.x; b.left_out && blockIdx.x + blockIdx.y == 0 && z < b.slices;
       z += kSplitThreads)
    b.left_out[z] = 0;
  if (element >= width) return;
  if (blockIdx.y == 0 && warp == 0)
    *reinterpret_cast<float2*>(b.center + element) = make_float2(center[0], center[1]);
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    const int64_t row = first + r * kWarps;
    if (row >= b.queries) return;
    uint32_t* to = b.x_parts + row * width + split_place(element);
    split(static_cast<float>(rows[r][0] - center[0]), static_cast<float>(rows[r][1] - center[1]),
          to[0], to[kTileDepth / 2]);
    if (b.grid_queries && element == 0) b.grid_queries[row] = GridQuery{};  // on it
  }
}

// For the queries of the block.
template <class X>
int launch_split(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.dim, 2 * kTileDepth)),
                  static_cast<unsigned>(ceil_div(b.queries, kSplitRows)));
  return launch(split_kernel<X>, grid, dim3(kSplitThreads), 0, stream, p, b);
}

}  // namespace
}  // namespace fastebm
