// One way to write and to launch a kernel: for nvcc, and for g++ on the emulated device of simt/.
// Where the two differ is here and in launch/ptx_cuda.h.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>
#else
#include "simt/simt.h"
#endif

#include <cstddef>
#include <cstdint>

namespace fastebm {

// The 48 KB of shared memory that a block has without asking hold its static part too, which a
// launch does not know: this much of them is left to it.
constexpr size_t kStaticSharedBytes = 16 * 1024;

// Lets launches of the kernel have `bytes` of dynamic shared memory; returns 0 or a cudaError_t.
template <class... P>
int ask_for_shared(void (*kernel)(P...), size_t bytes) {
#ifdef __CUDACC__
  return static_cast<int>(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(bytes)));
#else
  return simt::ask_for_shared(kernel, bytes);
#endif
}

// Queues kernel(args...) on `stream` (a cudaStream_t) of the current device and returns 0 or the
// cudaError_t, which it takes off the runtime's record. Asks for the dynamic shared memory where
// that may be needed. An empty grid is an error, as in CUDA.
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
           A&&... args) {
  int error = 0;
  if (shared_bytes > 48 * 1024 - kStaticSharedBytes) error = ask_for_shared(kernel, shared_bytes);
#ifdef __CUDACC__
  if (error == 0) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    error = static_cast<int>(cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...));
  }
  if (error != 0) cudaGetLastError();
  return error;
#else
  static_cast<void>(stream);
  if (error != 0) return error;
  return simt::launch(kernel, grid, block, shared_bytes, std::forward<A>(args)...);
#endif
}

// Shared memory that one block may have on the current device, in bytes; 48 KB if it cannot be
// told.
inline int max_shared_bytes() {
#ifdef __CUDACC__
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
          cudaSuccess)
    return bytes;
  cudaGetLastError();
  return 48 * 1024;
#else
  return static_cast<int>(simt::kMaxSharedBytes);
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

// Declares `name`, static shared memory of the block, contents undefined: a variable or an array,
// as in FASTEBM_SHARED(float[32], sums). The only way to: the emulator has to know what there is.
template <class T>
using Same = T;
#ifdef __CUDACC__
#define FASTEBM_SHARED(type, name) __shared__ fastebm::Same<type> name
#else
#define FASTEBM_SHARED(type, name)                                  \
  static fastebm::Same<type> name;                                  \
  static simt::StaticVariable name##_variable(&name, sizeof(name)); \
  name##_variable.use()
#endif

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

}  // namespace fastebm
