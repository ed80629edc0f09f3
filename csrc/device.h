// One way to write and to launch a kernel: for nvcc, and for g++ with simt.h (tests).
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>
#else
#include "simt.h"
#endif

#include <cstddef>
#include <cstdint>

namespace fastebm {

// Queues kernel(args...) on `stream` (a cudaStream_t) of the current device and returns 0 or the
// cudaError_t, which it takes off the runtime's record. Asks for more than 48 KB of dynamic
// shared memory where that is needed. An empty grid is an error, as in CUDA.
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
           A&&... args) {
#ifdef __CUDACC__
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024)
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    error = cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
  }
  if (error != cudaSuccess) cudaGetLastError();
  return static_cast<int>(error);
#else
  static_cast<void>(stream);
  return simt::launch(kernel, grid, block, shared_bytes, std::forward<A>(args)...);
#endif
}

// What went wrong, for a non-zero code that launch() has just returned.
inline const char* error_text(int code) {
#ifdef __CUDACC__
  return cudaGetErrorString(static_cast<cudaError_t>(code));
#else
  static_cast<void>(code);
  return simt::last_error();
#endif
}

// The block's dynamic shared memory (shared_bytes of launch), 16-byte aligned, contents undefined.
// One array whatever T: a kernel that needs two lays them out itself.
template <class T>
__device__ inline T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char fastebm_dynamic_shared[];
  return reinterpret_cast<T*>(fastebm_dynamic_shared);
#else
  return reinterpret_cast<T*>(simt::machine->dynamic_shared.get());
#endif
}

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

// Computes: the sum of `value` over the kThreads threads of a one-dimensional block.
// Result:   in every thread, bit for bit the same.
// Needs:    all threads here; holds one barrier. Put __syncthreads() between two calls.
// Order:    warp_sum inside each warp, giving w[0 .. kThreads / 32); then the same tree over the
//           warps: for h = kThreads / 64, ..., 2, 1: for i < h: w[i] += w[i + h]; the sum is w[0].
template <int kThreads>
__device__ static inline double block_sum(double value) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kThreads % 32 == 0 && kWarps <= 32 && (kWarps & (kWarps - 1)) == 0,
                "a block of 32, 64, 128, 256, 512 or 1024 threads");
  __shared__ double warp_sums[kWarps];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = warp_sums[threadIdx.x % kWarps];
  for (int h = kWarps / 2; h > 0; h /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, h);
  return value;
}

}  // namespace fastebm
