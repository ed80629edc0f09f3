// Blocks of four consecutive elements of one sample, what one Philox call serves, on a CUDA device:
// how threads find theirs, and how they move them.
#pragma once
#include "launch/device.h"
#include "launch/ptx_cuda.h"
#include "launch/scalar.h"

namespace fastebm {

// n / divisor for n < 2^31 by one multiplication (Granlund and Montgomery 1994).
struct Divider {
  uint32_t divisor, multiplier, shift;
  explicit Divider(uint32_t d) : divisor(d), multiplier(0), shift(0) {
    while ((uint64_t{1} << shift) < d) ++shift;
    multiplier =
        static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }
  __host__ __device__ uint32_t operator()(uint32_t n) const {
    return (mul_high(n, multiplier) + n) >> shift;
  }
};

// Four values as stored, moved at once (float64 by two moves). In words, which stand for values of
// any type: 16-bit members are taken apart one by one by nvcc.
template <class T>
struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) [[gnu::may_alias]] Quad {
  uint32_t words[sizeof(T)];
};

// Are samples of `dim` elements whole quads in each of these arrays, some of which may be null?
template <class T, class... P>
bool are_quads(int64_t dim, const P*... arrays) {
  return dim % 4 == 0 && ((reinterpret_cast<uintptr_t>(arrays) % alignof(Quad<T>) == 0) && ...);
}

template <class T>
__device__ __forceinline__ void unpack(const Quad<T>& q, T (&v)[4]) {
  memcpy(v, &q, sizeof(q));
}
template <class T>
__device__ __forceinline__ Quad<T> pack(const T (&v)[4]) {
  Quad<T> q;
  memcpy(&q, v, sizeof(q));
  return q;
}

// How many elements a block of a sample of `dim` has.
__device__ __forceinline__ int block_size(int64_t dim, int64_t block) {
  return dim - 4 * block < 4 ? static_cast<int>(dim - 4 * block) : 4;
}

// The first `count` values at p, zeros after them; kWhole: count is 4 or 0, and p is aligned.
template <bool kWhole, class T>
__device__ __forceinline__ Quad<T> load_quad(const T* p, int count) {
  Quad<T> q{};
  if (kWhole) {
    if (count) q = *reinterpret_cast<const Quad<T>*>(p);
  } else {
    T v[4]{};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) v[i] = p[i];
    q = pack(v);
  }
  return q;
}

template <bool kWhole, class T>
__device__ __forceinline__ void store_quad(const Quad<T>& q, T* p, int count) {
  if (kWhole) {
    if (count) *reinterpret_cast<Quad<T>*>(p) = q;
  } else {
    T v[4];
    unpack(q, v);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) p[i] = v[i];
  }
}

template <class T>
__device__ __forceinline__ void widen_quad(const Quad<T>& q, Compute<T> (&to)[4]) {
  T v[4];
  unpack(q, v);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = widen(v[i]);
}
template <>
__device__ __forceinline__ void widen_quad<Bfloat16>(const Quad<Bfloat16>& q, float (&to)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    to[2 * i] = float_from_bits(q.words[i] << 16);
    to[2 * i + 1] = float_from_bits(q.words[i] & 0xffff0000u);
  }
}

// Four values rounded as by narrow(); NaN becomes the one NaN that the device's arithmetic gives.
template <class T>
__device__ __forceinline__ Quad<T> narrow_quad(const Compute<T> (&from)[4]) {
  T v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = narrow<T>(from[i]);
  return pack(v);
}
template <>
__device__ __forceinline__ Quad<Bfloat16> narrow_quad<Bfloat16>(const float (&from)[4]) {
  return {{bfloat16_pair(from[0], from[1]), bfloat16_pair(from[2], from[3])}};
}

// Calls f(first sample, samples, blocks of a sample) for runs of samples whose blocks, numbered
// through them, fit one launch.
template <class F>
int for_each_launch(int64_t batch, int64_t dim, F&& f) {
  const int64_t blocks = (dim + 3) / 4, most = (int64_t{1} << 31) / blocks - 1;
  for (int64_t first = 0; first < batch; first += most) {
    const int64_t rows = batch - first < most ? batch - first : most;
    const int error = f(first, static_cast<uint32_t>(rows), static_cast<uint32_t>(blocks));
    if (error) return error;
  }
  return 0;
}

// A thread takes one block, or two that are kBlockThreads apart: so a warp moves memory that lies
// together, and what the noise of both has in common is made once.
constexpr int kBlockThreads = 256, kThreadBlocks = 2;

inline dim3 block_grid(uint32_t n_blocks, unsigned of_a_thread) {
  const unsigned of_a_group = kBlockThreads * of_a_thread;
  return dim3((n_blocks + of_a_group - 1) / of_a_group);
}

}  // namespace fastebm
