// Sums over a warp, a group of threads or a block, each in an order that a sequential twin can
// keep.
#pragma once
#include <cstdint>

#include "launch/device.h"

namespace fastebm {

// Computes: the sum of `value` over the 32 lanes of a warp.
// Result:   in every lane, bit for bit the same.
// Needs:    all 32 lanes here. No barrier, no shared memory.
// Order:    for h = 16, 8, 4, 2, 1: v[l] = v[l] + v[l ^ h]. A sequential twin gets the same bits
//           from: for h = 16, 8, 4, 2, 1: for l < h: v[l] += v[l + h]; the sum is v[0].
template <class T>
__device__ inline T warp_sum(T value) {
  for (int h = 16; h > 0; h /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, h);
  return value;
}

// Threads of a block in groups of 2^shift, each group for one row: as many threads as a row has
// items, but at most all. Rows past the last one have groups too.
template <int kThreads>
struct RowGroups {
  int shift = 0;
  explicit RowGroups(int64_t items) {
    while ((1 << shift) < items && (1 << shift) < kThreads) ++shift;
  }
  dim3 grid(int64_t rows) const {
    const int64_t of_a_block = kThreads >> shift;
    return dim3(static_cast<unsigned>((rows + of_a_block - 1) / of_a_block));
  }
  __device__ int lanes() const { return 1 << shift; }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) & (lanes() - 1); }
  __device__ int64_t row() const {
    return blockIdx.x * (int64_t{kThreads} >> shift) + (threadIdx.x >> shift);
  }
};

// Computes: the sums of the values over each group of `lanes` neighbouring threads of a block of
//           kThreads; a power of two, the same for all.
// Result:   in every thread of the group, bit for bit the same.
// Needs:    all threads here; holds a barrier if lanes > 32. Put __syncthreads() between two calls.
// Order:    as warp_sum inside each warp, giving w[0 .. lanes / 32); then the same tree over the
//           warps: for h = lanes / 64, ..., 2, 1: for i < h: w[i] += w[i + h]; the sum is w[0]. So
//           more lanes give the same bits if theirs are +0 and no other is -0.
template <int kThreads, class T, int kCount>
__device__ static inline void group_sums(T (&values)[kCount], int lanes) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kThreads % 32 == 0 && kWarps <= 32 && (kWarps & (kWarps - 1)) == 0,
                "a block of 32, 64, 128, 256, 512 or 1024 threads");
  FASTEBM_SHARED(T[kWarps * kCount], warp_sums);
  const int warps = lanes / 32;
  for (T& value : values)
    for (int h = (lanes < 32 ? lanes : 32) / 2; h > 0; h /= 2)
      value += __shfl_xor_sync(0xFFFFFFFFu, value, h);
  if (warps <= 1) return;
  if (threadIdx.x % 32 == 0)
    for (int i = 0; i < kCount; ++i) warp_sums[threadIdx.x / 32 * kCount + i] = values[i];
  __syncthreads();
  const int first = static_cast<int>(threadIdx.x / 32) & -warps;
  const int mine = first + (static_cast<int>(threadIdx.x) & (warps - 1));
  for (int i = 0; i < kCount; ++i) {
    values[i] = warp_sums[mine * kCount + i];
    for (int h = warps / 2; h > 0; h /= 2) values[i] += __shfl_xor_sync(0xFFFFFFFFu, values[i], h);
  }
}

// The same of one value.
template <int kThreads>
__device__ static inline double group_sum(double value, int lanes) {
  double values[1] = {value};
  group_sums<kThreads>(values, lanes);
  return values[0];
}

// The same over all threads of a one-dimensional block.
template <int kThreads>
__device__ static inline double block_sum(double value) {
  return group_sum<kThreads>(value, kThreads);
}

}  // namespace fastebm
