// CUDA's thread model on a CPU, for tests: the text of the kernels, run by a C++ compiler.
//
// A thread is a fiber; __syncthreads and the warp collectives are the only places where one stops
// and another goes on, so the order of threads is ours: seeded, random, and different in every
// block, which makes a missing barrier a wrong or seed-dependent result. Blocks run one after
// another. Shared memory starts as 0xFF bytes (NaN) in every block, and has CUDA's limits. What
// CUDA leaves undefined (a barrier that some thread never reaches, lanes that disagree about a
// mask) is an error. Not modelled: speed, threads that interleave between two collectives, TMA.
// Not seen: a read of device memory that no one wrote. compute-sanitizer's initcheck sees it, on a
// GPU, and so found padding of packed weights that was copied along (2026-11-27).
//
// Here are CUDA's own words. Behind them: the fibers (simt/fibers.h), where they meet
// (simt/collectives.h), their order (simt/schedule.h), shared memory (simt/shared.h), and launches
// (simt/launch.h). Tensor cores and asynchronous copies: simt/tensor.h.
#pragma once
#include <cstdint>

#include "simt/collectives.h"
#include "simt/launch.h"

#define __host__
#define __device__
#define __global__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

inline void __syncthreads() { simt::sync_block(); }
inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu) { simt::meet(mask, 0); }

template <class T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return simt::exchange(mask, value, static_cast<unsigned>(source));
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask) {
  return simt::exchange(mask, value, simt::lane() ^ static_cast<unsigned>(lane_mask));
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta) {
  const unsigned source = simt::lane() + delta;
  return simt::exchange(mask, value, source < 32 ? source : simt::lane());
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  const auto& votes = simt::meet(mask, predicate != 0);
  uint32_t bits = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) bits |= static_cast<uint32_t>(votes[l]) << l;
  return bits;
}

// A thread is only ever stopped in a collective, so plain code is atomic.
template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

template <class T>
T atomicMax(T* address, T value) {
  const T old = *address;
  *address = old < value ? value : old;
  return old;
}

inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
