// Scores of samples of at most kDirectDim elements: squared differences.
#pragma once
#include "launch/device.h"
#include "neighbor/blocks_cuda.h"
#include "random/philox.h"

namespace fastebm {
namespace {

__device__ inline float lesser(float a, float b) { return fminf(a, b); }  // ignores a NaN
__device__ inline double lesser(double a, double b) { return fmin(a, b); }

// Brings 32 references into a warp's tile, rows kPitch apart: `count` of them there are, infinities
// stand for the others. All loads come first.
template <class Y, int kDim, int kPitch, class C>
__device__ __forceinline__ void fill_tile(const NeighborParams& p, int64_t first, int count,
                                          C* tile) {
  const Y* y = static_cast<const Y*>(p.y) + first * kDim;
  C values[kDim];
#pragma unroll
  for (int e = 0; e < kDim; ++e) {
    const int i = threadIdx.x % 32 + 32 * e;
    const bool there = i / kDim < count;
    values[e] = static_cast<C>(there ? 0 : INFINITY);
    if (there && p.dim) values[e] = static_cast<C>(reference_value(y[i], p.y_scale, p.y_offset));
  }
#pragma unroll
  for (int e = 0; e < kDim; ++e) {
    const int i = threadIdx.x % 32 + 32 * e;
    tile[i / kDim * kPitch + i % kDim] = values[e];
  }
}

template <int kDim, int kPitch, class C>
__device__ __forceinline__ void fill_tile(const NeighborParams& p, int64_t first, int count,
                                          C* tile) {
  switch (p.y_dtype) {
    case Dtype::kFloat32:
      return fill_tile<float, kDim, kPitch>(p, first, count, tile);
    case Dtype::kFloat64:
      return fill_tile<double, kDim, kPitch>(p, first, count, tile);
    case Dtype::kBfloat16:
      return fill_tile<Bfloat16, kDim, kPitch>(p, first, count, tile);
    case Dtype::kFloat16:
      return fill_tile<Float16, kDim, kPitch>(p, first, count, tile);
    default:
      return fill_tile<uint8_t, kDim, kPitch>(p, first, count, tile);
  }
}

// Queries a lane holds in registers: as many as spill none.
template <class C, int kDim>
constexpr int lane_queries() {
  return sizeof(C) > 4 ? (kDim <= 4 ? 4 : 1) : (kDim <= 10 ? 4 : 2);
}

// scores[i][c] = min over chunk c of |x_i - y_j|^2. A warp takes one chunk, 32 references at a time
// through its own shared memory; a lane takes a few queries, so that a reference is read once for
// all: 2 dim + 1 instructions a pair. NaN pairs are ignored, a chunk of nothing else has infinity.
template <class C, int kDim>
__global__ void __launch_bounds__(32 * kDirectWarps)
    direct_score_kernel(NeighborParams p, ScoreBlock b) {
  constexpr int kQueries = lane_queries<C, kDim>();
  constexpr int kPitch = kDim <= 2 ? kDim : (kDim + 3) / 4 * 4;
  alignas(16) FASTEBM_SHARED(C[kDirectWarps][32 * kPitch], tiles);
  FASTEBM_SHARED(float[kDirectWarps][32 * kQueries + 4], minima);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_query = blockIdx.y * 32 * kQueries, first_column = blockIdx.x * kDirectWarps;
  C x[kQueries][kDim], least[kQueries];
#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    const int row = first_query + 32 * q + lane;
    const int64_t at = (b.first_query + (row < b.queries ? row : 0)) * p.dim;
#pragma unroll
    for (int e = 0; e < kDim; ++e) x[q][e] = p.dim ? static_cast<const C*>(p.x)[at + e] : C(0);
    least[q] = static_cast<C>(INFINITY);
  }
  C* tile = tiles[warp];
  const int64_t begin = static_cast<int64_t>(first_column + warp) * b.chunk;
  for (int64_t at = begin; at < begin + b.chunk && at < b.references; at += 32) {
    const int count = b.references - at < 32 ? static_cast<int>(b.references - at) : 32;
    fill_tile<kDim, kPitch>(p, b.first_reference + at, count, tile);
    __syncwarp();
#pragma unroll 8
    for (int r = 0; r < 32; ++r) {
      C y[kDim];
#pragma unroll
      for (int e = 0; e < kDim; ++e) y[e] = tile[r * kPitch + e];
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        C square = 0;
#pragma unroll
        for (int e = 0; e < kDim; ++e) {
          const C difference = x[q][e] - y[e];
          square = e == 0 ? difference * difference : fma_rn(difference, difference, square);
        }
        least[q] = lesser(least[q], square);
      }
    }
    __syncwarp();
  }
#pragma unroll
  for (int q = 0; q < kQueries; ++q) minima[warp][32 * q + lane] = static_cast<float>(least[q]);
  __syncthreads();
  for (int i = threadIdx.x; i < 32 * kQueries * kDirectWarps; i += 32 * kDirectWarps) {
    const int query = i / kDirectWarps, w = i % kDirectWarps;
    if (first_query + query < b.queries)  // columns after the last one are in the pitch
      b.scores[(first_query + query) * b.pitch + first_column + w] = minima[w][query];
  }
}

template <class C, int kDim = 1>
int launch_direct_score(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  if constexpr (kDim < kDirectDim)
    if (p.dim > kDim) return launch_direct_score<C, kDim + 1>(p, b, stream);
  const dim3 grid(static_cast<unsigned>(ceil_div(b.columns, kDirectWarps)),
                  static_cast<unsigned>(ceil_div(b.queries, 32 * lane_queries<C, kDim>())));
  return launch(direct_score_kernel<C, kDim>, grid, dim3(32 * kDirectWarps), 0, stream, p, b);
}

}  // namespace
}  // namespace fastebm
