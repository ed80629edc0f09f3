// One way to write and to launch a kernel: for nvcc, and for g++ with simt/simt.h (tests).
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>
#else
#include "simt/tensor.h"
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

// Computes: the sum of `value` over each group of `lanes` neighbouring threads of a block of
//           kThreads; a power of two, the same for all.
// Result:   in every thread of the group, bit for bit the same.
// Needs:    all threads here; holds a barrier if lanes > 32. Put __syncthreads() between two calls.
// Order:    as warp_sum inside each warp, giving w[0 .. lanes / 32); then the same tree over the
//           warps: for h = lanes / 64, ..., 2, 1: for i < h: w[i] += w[i + h]; the sum is w[0]. So
//           more lanes give the same bits if theirs are +0 and no other is -0.
template <int kThreads>
__device__ static inline double group_sum(double value, int lanes) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kThreads % 32 == 0 && kWarps <= 32 && (kWarps & (kWarps - 1)) == 0,
                "a block of 32, 64, 128, 256, 512 or 1024 threads");
  FASTEBM_SHARED(double[kWarps], warp_sums);
  const int warps = lanes / 32;
  for (int h = (lanes < 32 ? lanes : 32) / 2; h > 0; h /= 2)
    value += __shfl_xor_sync(0xFFFFFFFFu, value, h);
  if (warps <= 1) return value;
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  const int first = static_cast<int>(threadIdx.x / 32) & -warps;
  value = warp_sums[first + (static_cast<int>(threadIdx.x) & (warps - 1))];
  for (int h = warps / 2; h > 0; h /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, h);
  return value;
}

// The same over all threads of a one-dimensional block.
template <int kThreads>
__device__ static inline double block_sum(double value) {
  return group_sum<kThreads>(value, kThreads);
}

// Asks for a copy of 16 bytes from global into shared memory, both 16-byte aligned; of zeros where
// !valid. It is there for this thread once wait_copies() has returned, for others after a barrier.
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
#ifdef __CUDACC__
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(valid ? 16 : 0));
#else
  simt::copy_async(shared, valid ? global : nullptr);
#endif
}

// Closes a group of copies: those of this thread since the last group.
__device__ inline void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;");
#else
  simt::commit_copies();
#endif
}

// Waits for all groups of this thread but the last kLeft.
template <int kLeft>
__device__ inline void wait_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#else
  simt::wait_copies(kLeft);
#endif
}

// Two floats rounded to bfloat16, `low` in the low half.
__device__ inline uint32_t bfloat16_pair(float low, float high) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return simt::bfloat16_pair(low, high);
#endif
}

// tanh(v) within 2^-11 of its size: one instruction of sm_75.
__device__ inline float tanh_approximate(float v) {
#ifdef __CUDACC__
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
#else
  return std::tanh(v);
#endif
}

// a / b within 2 units in the last place, 0 where b is above 2^126. No branch, which the exact
// quotient has.
__device__ inline float ratio_approximate(float a, float b) {
#ifdef __CUDACC__
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
  return a * inverse;
#else
  return a / b;
#endif
}

// Computes: four 8 x 8 matrices of 16-bit elements out of shared memory; kTransposed: transposed.
// Layout:   lane 8 i + j gives the address of row j of matrix i, eight elements, 16-byte aligned.
//           Lane 4 g + t gets in r[i] elements 2 t (low) and 2 t + 1 of row g of matrix i, as
//           mma_bfloat16 wants them; kTransposed: of column g.
// Needs:    all 32 lanes here; sm_75.
template <bool kTransposed>
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
#else
  simt::load_matrices(r, row, kTransposed);
#endif
}

// Computes: c += a b on tensor cores, for kTiles matrices b: a 16 x 16 and b 16 x 8 of bfloat16, c
//           16 x 8 of float.
// Layout:   lane 4 g + t of the warp holds rows g and g + 8 of a, column g of b, and of both the
//           elements 2 t, 2 t + 1 (a[0], a[1]; b[0]) and 2 t + 8, 2 t + 9 (a[2], a[3]; b[1]); of c
//           columns 2 t, 2 t + 1 of rows g (c[0], c[1]) and g + 8 (c[2], c[3]).
// Needs:    all 32 lanes here; sm_80.
// Rounding: not documented. Products are exact, sums lose low bits.
template <int kTiles>
__device__ inline void mma_bfloat16(float (&c)[kTiles][4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[kTiles][2]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[i][0]), "r"(b[i][1]));
#else
  simt::mma_bfloat16(c, a, b, kTiles);
#endif
}

}  // namespace fastebm
