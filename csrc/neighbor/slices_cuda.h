// Scores of a query from their parts in the slices of its elements.
#pragma once
#include "launch/device.h"
#include "neighbor/blocks_cuda.h"

namespace fastebm {
namespace {

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

// Adds up the slices first, first + every, ... of columns j .. j + 3, for kQuads of j `apart`
// apart. Reads those of kBatch slices before it uses one; kBatch 1: there is one.
template <int kQuads, int kBatch, class Score>
__device__ __forceinline__ void add_slices(const ScoreBlock& b, int64_t row, int j, int apart,
                                           int first, int every, Score (&sum)[kQuads][4]) {
  const int slices = kBatch == 1 ? 1 : b.slices;
#pragma unroll 1
  for (int z = first; z < slices; z += kBatch * every) {
    const float* from = b.scores + (z * int64_t{b.queries} + row) * b.pitch + j;
    float4 some[kBatch][kQuads];
#pragma unroll
    for (int i = 0; i < kBatch; ++i, from += every * b.queries * b.pitch)
#pragma unroll
      for (int q = 0; q < kQuads; ++q)
        some[i][q] = four_at(from + q * apart, z + i * every < slices && j + q * apart < b.columns);
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
#pragma unroll
      for (int q = 0; q < kQuads; ++q) add_four(sum[q], some[i][q]);
  }
}

// Of four columns that lanes l, l ^ 8, l ^ 16 and l ^ 24 have parts of the sums of: the sum of
// column l / 8 % 2 * 2 + l / 16.
template <class T>
__device__ __forceinline__ T sum_of_own(const T (&part)[4]) {
  const bool second = threadIdx.x & 8, odd = threadIdx.x & 16;
  T half[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    half[i] = (second ? part[i + 2] : part[i]) +
              __shfl_xor_sync(0xFFFFFFFFu, second ? part[i] : part[i + 2], 8);
  return (odd ? half[1] : half[0]) + __shfl_xor_sync(0xFFFFFFFFu, odd ? half[0] : half[1], 16);
}

}  // namespace
}  // namespace fastebm
