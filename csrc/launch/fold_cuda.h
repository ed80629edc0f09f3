// Values of any kind folded over a group of threads, in the order of launch/sums_cuda.h.
#pragma once
#include <cstring>

#include "launch/sums_cuda.h"

namespace fastebm {

// What the lane whose number differs by the bit h has, of 32-bit words.
template <class V>
__device__ inline V shuffle_xor(const V& value, int h) {
  static_assert(sizeof(V) % 4 == 0, "of 32-bit words");
  uint32_t words[sizeof(V) / 4];
  memcpy(words, &value, sizeof(V));
  for (uint32_t& w : words) w = __shfl_xor_sync(0xFFFFFFFFu, w, h);
  V other;
  memcpy(&other, words, sizeof(V));
  return other;
}

// Computes: f(a, b) over the values of each group of `lanes` neighbouring threads of a block of
//           kThreads; a power of two, the same for all. f(a, b) is f(b, a), to the bit.
// Result:   in every thread of the group, the same.
// Needs:    all threads here; holds barriers if lanes > 32.
// Order:    that of group_sum().
template <int kThreads, class V, class F>
__device__ static inline V group_fold(V value, int lanes, F f) {
  constexpr int kWarps = kThreads / 32;
  FASTEBM_SHARED(V[kWarps], of_warps);
  const int warps = lanes / 32;
  for (int h = (lanes < 32 ? lanes : 32) / 2; h > 0; h /= 2)
    value = f(value, shuffle_xor(value, h));
  if (warps <= 1) return value;
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  const int first = static_cast<int>(threadIdx.x / 32) & -warps;
  value = of_warps[first + (static_cast<int>(threadIdx.x) & (warps - 1))];
  __syncthreads();  // before the next fold writes there
  for (int h = warps / 2; h > 0; h /= 2) value = f(value, shuffle_xor(value, h));
  return value;
}

}  // namespace fastebm
