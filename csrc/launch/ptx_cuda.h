// Instructions that CUDA C++ has no function for, in PTX: asynchronous copies, tensor cores, quick
// approximations.
#pragma once
#ifndef __CUDACC__
#include <cmath>

#include "simt/tensor.h"
#endif

#include <cstdint>

#include "launch/device.h"

namespace fastebm {

// Asks for a copy of 16, 8 or 4 bytes from global into shared memory, both aligned to as much; of
// zeros where !valid. It is there for this thread once wait_copies() has returned, for others after
// a barrier.
template <int kBytes = 16>
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
#ifdef __CUDACC__
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16)  // not through L1
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
#else
  simt::copy_async(shared, valid ? global : nullptr, kBytes);
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
//           mma_bfloat16 wants them; kTransposed: of column g. Of rows of 16 bytes these are the
//           four that mma_bytes wants.
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

// Computes: c += a b on tensor cores, for kTiles matrices b: a 16 x 32 and b 32 x 8 of bytes
// without
//           a sign, c 16 x 8 of int32.
// Layout:   lane 4 g + t of the warp holds rows g and g + 8 of a, column g of b, and of both the
//           elements 4 t .. 4 t + 3, the first one lowest (a[0], a[1]; b[0]), and 4 t + 16 ..
//           4 t + 19 (a[2], a[3]; b[1]); of c columns 2 t, 2 t + 1 of rows g (c[0], c[1]) and g + 8
//           (c[2], c[3]).
// Needs:    all 32 lanes here; sm_80.
// Rounding: none, modulo 2^32.
template <int kTiles>
__device__ inline void mma_bytes(int32_t (&c)[kTiles][4], const uint32_t (&a)[4],
                                 const uint32_t (&b)[kTiles][2]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[i][0]), "+r"(c[i][1]), "+r"(c[i][2]), "+r"(c[i][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[i][0]), "r"(b[i][1]));
#else
  simt::mma_bytes(c, a, b, kTiles);
#endif
}

// sum + the squares of the four bytes of v.
__device__ inline uint32_t add_squares(uint32_t v, uint32_t sum) {
#ifdef __CUDACC__
  return __dp4a(v, v, sum);
#else
  for (int i = 0; i < 32; i += 8) sum += (v >> i & 255) * (v >> i & 255);
  return sum;
#endif
}

}  // namespace fastebm
