// Exact squares of candidates, and the nearest of these.
#pragma once
#include "launch/device.h"
#include "launch/ptx_cuda.h"
#include "launch/sums_cuda.h"
#include "neighbor/blocks_cuda.h"

namespace fastebm {
namespace {

__device__ inline Neighbor no_neighbor() { return {HUGE_VAL, INT64_MAX}; }

// The exact square by one thread, without the parts that are zero: dim <= kDim.
template <int kDim, class X, class Y>
__device__ __forceinline__ double small_square(const X* x, const Y* y, int dim, float scale,
                                               float offset) {
  double part[kDim];
#pragma unroll
  for (int i = 0; i < kDim; ++i) {
    part[i] = 0;
    if (i < dim) {
      const double difference = static_cast<double>(x[i]) - reference_value(y[i], scale, offset);
      part[i] = difference * difference;
    }
  }
#pragma unroll
  for (int h = kDim / 2; h > 0; h /= 2)
#pragma unroll
    for (int l = 0; l < kDim / 2; ++l)
      if (l < h) part[l] += part[l + h];
  return part[0];
}

template <class X, class Y>
__device__ __forceinline__ double small_square(const X* x, const Y* y, int dim, float scale,
                                               float offset) {
  if (dim <= 2) return small_square<2>(x, y, dim, scale, offset);
  if (dim <= 4) return small_square<4>(x, y, dim, scale, offset);
  return small_square<kDirectDim>(x, y, dim, scale, offset);
}

// Brings elements of a reference into a warp's shared memory, 16-byte aligned. All of them are
// asked for before one is needed, in copies that take no registers, where rows are aligned.
template <class Y>
__device__ __forceinline__ void copy_row(const Y* from, int count, Y* to) {
  constexpr int kPer = 16 / static_cast<int>(sizeof(Y)), kBatch = 8;
  const int lane = threadIdx.x % 32;
  __syncwarp();  // what was there has been read
  if (count % kPer == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll 4
    for (int at = kPer * lane; at < count; at += 32 * kPer) copy_async(to + at, from + at, true);
    commit_copies();
    wait_copies<0>();
  } else {
    for (int at = lane; at < count; at += 32 * kBatch) {
      Y some[kBatch] = {};
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        if (at + 32 * i < count) some[i] = from[at + 32 * i];
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        if (at + 32 * i < count) to[at + 32 * i] = some[i];
    }
  }
  __syncwarp();
}

// Adds kBatch elements to a lane's part of an exact square, in order: `at`, at + 32, ... Unless
// kWhole, those that are not below `count` add zeros, which change no bit.
template <bool kWhole, class X, class Y>
__device__ __forceinline__ double add_batch(double part, const X* x, const Y* y, int at, int count,
                                            float scale, float offset) {
  constexpr int kBatch = 8;
  double square[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    square[i] = 0;
    if (kWhole || at + 32 * i < count) {
      const double difference =
          static_cast<double>(x[at + 32 * i]) - reference_value(y[at + 32 * i], scale, offset);
      square[i] = difference * difference;
    }
  }
#pragma unroll
  for (int i = 0; i < kBatch; ++i) part += square[i];
  return part;
}

// The same for the elements lane, lane + 32, ... < count.
template <class X, class Y>
__device__ __forceinline__ double add_elements(double part, const X* x, const Y* y, int count,
                                               float scale, float offset) {
  int at = threadIdx.x % 32;
  for (; (at | 31) + 224 < count; at += 256)
    part = add_batch<true>(part, x, y, at, count, scale, offset);
  return at < count ? add_batch<false>(part, x, y, at, count, scale, offset) : part;
}

// The nearest of the lanes' neighbours, in every lane.
__device__ inline Neighbor warp_nearest(Neighbor nearest) {
#pragma unroll
  for (int h = 16; h > 0; h /= 2) {
    const Neighbor other{__shfl_xor_sync(0xFFFFFFFFu, nearest.square, h),
                         __shfl_xor_sync(0xFFFFFFFFu, nearest.index, h)};
    if (nearer(other, nearest)) nearest = other;
  }
  return nearest;
}

// Adds the candidates of all lanes to the warp's list in shared memory.
__device__ inline void add_lanes(Neighbor* list, int k, Neighbor candidate) {
  unsigned waiting = __ballot_sync(0xFFFFFFFFu, nearer(candidate, list[k - 1]));
  for (; waiting; waiting &= waiting - 1) {
    if (static_cast<int>(threadIdx.x % 32) == __ffs(waiting) - 1) add_neighbor(list, k, candidate);
    __syncwarp();
  }
}

// How many neighbours in `count` sorted lists of k each are nearer than number `own` of these.
__device__ inline int rank_in_lists(const Neighbor* lists, int count, int k, int own) {
  int rank = own % k;
  for (int l = 0; l < count; ++l)
    if (l != own / k)
      for (int i = 0; i < k && nearer(lists[l * k + i], lists[own]); ++i) ++rank;
  return rank;
}

}  // namespace
}  // namespace fastebm
