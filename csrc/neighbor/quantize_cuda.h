// Queries put on the grid of uint8 references, once for all references.
#pragma once
#include "launch/device.h"
#include "launch/sums_cuda.h"
#include "neighbor/split_cuda.h"

namespace fastebm {
namespace {

constexpr int kQuantizeThreads = 256;

__device__ __forceinline__ float middle_of(const ReferenceGrid& grid) {
  return static_cast<float>(grid.offset + 127.5 * grid.scale);
}

// The query of that row split as by split_kernel, about the middle of the grid, by a CUDA block.
template <class X>
__device__ __forceinline__ void split_query(const NeighborParams& p, const ScoreBlock& b,
                                            int64_t row) {
  const X* x = static_cast<const X*>(p.x) + (b.first_query + row) * p.dim;
  const int dim = static_cast<int>(p.dim), width = static_cast<int>(tile_steps(dim)) * kTileDepth;
  const float middle = middle_of(b.grid);
  for (int at = 2 * threadIdx.x; at < width; at += 2 * blockDim.x) {
    float v[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) v[i] = at + i < dim ? static_cast<float>(x[at + i] - middle) : 0;
    uint32_t* parts = b.x_parts + row * width + split_place(at);
    split(v[0], v[1], parts[0], parts[kTileDepth / 2]);
  }
}

// qh, |qh|^2 and the residual of a query: see neighbor/grid_cuda.h. One that is off the grid is
// split.
// A CUDA block takes a query, a thread four elements at a time. Memory moves 5 B an element. Which
// grid point is taken of two that are as near does not matter, so that one is chosen in X.
template <class X>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_kernel(NeighborParams p, ScoreBlock b) {
  constexpr int kBatch = 3;  // fours that are read before one is used
  constexpr int kApart = 4 * kQuantizeThreads;
  const int dim = static_cast<int>(p.dim),
            bytes = static_cast<int>(byte_steps(p.dim)) * kByteStepDepth;
  const int64_t row = blockIdx.x;
  const X* x = static_cast<const X*>(p.x) + (b.first_query + row) * p.dim;
  uint32_t* to = reinterpret_cast<uint32_t*>(b.x_bytes + row * bytes);
  const X offset = static_cast<X>(b.grid.offset), inverse = static_cast<X>(b.grid.inverse);
  double residual = 0;
  uint64_t square = 0;
  for (int at = 4 * threadIdx.x; at < bytes; at += kApart * kBatch) {
    X v[kBatch][4];
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        v[i][e] = at + kApart * i + e < dim ? x[at + kApart * i + e] : X(0);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      uint32_t four = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float step = static_cast<float>((v[i][e] - offset) * inverse);
        const int q = static_cast<int>(fminf(fmaxf(step, 0.0f), 255.0f) + 0.5f);  // 0 for a NaN
        const double left = v[i][e] - (b.grid.offset + b.grid.scale * q);
        if (at + kApart * i + e >= dim) continue;
        residual += left * left;
        four |= static_cast<uint32_t>(q) << 8 * e;
      }
      square += add_squares(four, 0);
      if (at + kApart * i < bytes) to[(at + kApart * i) / 4] = four;
    }
  }
  residual = sqrt(block_sum<kQuantizeThreads>(residual)) * fabs(b.grid.inverse);
  residual = residual * (1 + 0x1p-29) + b.grid.rounding;
  if (residual > b.grid.most) residual = HUGE_VAL;
  __syncthreads();
  const double sum = block_sum<kQuantizeThreads>(static_cast<double>(square));  // exact
  if (threadIdx.x == 0) b.grid_queries[row] = GridQuery{sum, residual};

  if (residual == HUGE_VAL) split_query<X>(p, b, row);
  for (int at = threadIdx.x; row == 0 && at < tile_steps(p.dim) * kTileDepth;
       at += kQuantizeThreads)
    b.center[at] = at < dim ? middle_of(b.grid) : 0;
}

// For the queries of the block.
template <class X>
int launch_quantize(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  return launch(quantize_kernel<X>, dim3(static_cast<unsigned>(b.queries)), dim3(kQuantizeThreads),
                0, stream, p, b);
}

}  // namespace
}  // namespace fastebm
