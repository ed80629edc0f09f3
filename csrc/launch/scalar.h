// The types of stored samples, and the type each is computed in.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define FASTEBM_HD __host__ __device__ __forceinline__
#else
// Forced inline, so that a caller compiled for AVX2 + FMA gets FMA instructions too.
#define FASTEBM_HD inline __attribute__((always_inline))
#endif

namespace fastebm {

enum class Dtype { kFloat32, kFloat64, kBfloat16, kFloat16, kUint8 };

// Storage only: 16 bits, converted on load and store.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FASTEBM_HD uint32_t float_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
FASTEBM_HD float float_from_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// The upper half of a product. (Taken out of a 64-bit one, nvcc 13 adds 0 to it.)
FASTEBM_HD uint32_t mul_high(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
#endif
}

// Compute<T> is float for every type but double.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

FASTEBM_HD float widen(float v) { return v; }
FASTEBM_HD double widen(double v) { return v; }
FASTEBM_HD float widen(Bfloat16 v) { return float_from_bits(static_cast<uint32_t>(v.bits) << 16); }
FASTEBM_HD float widen(Float16 v) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(v.bits));
#else
  const uint32_t sign = (v.bits & 0x8000u) << 16, rest = v.bits & 0x7fffu;
  if (rest >= 0x7c00u) {  // infinity, or NaN made quiet as the hardware does
    const uint32_t quiet = rest > 0x7c00u ? 0x400000u : 0u;
    return float_from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13 | quiet);
  }
  if (rest < 0x400u)  // zero or subnormal: rest * 2^-24, exact
    return float_from_bits(float_bits(static_cast<float>(rest) * 5.9604644775390625e-8f) | sign);
  return float_from_bits(sign | ((rest << 13) + 0x38000000u));
#endif
}

// narrow<T>(v): round to nearest, ties to even; NaN stays NaN.
template <class T>
FASTEBM_HD T narrow(Compute<T> v);
template <>
FASTEBM_HD float narrow<float>(float v) {
  return v;
}
template <>
FASTEBM_HD double narrow<double>(double v) {
  return v;
}
template <>
FASTEBM_HD Bfloat16 narrow<Bfloat16>(float v) {
  const uint32_t u = float_bits(v);
  if (v != v) return Bfloat16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  return Bfloat16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
template <>
FASTEBM_HD Float16 narrow<Float16>(float v) {
#ifdef __CUDA_ARCH__
  return Float16{__half_as_ushort(__float2half_rn(v))};
#else
  const uint32_t u = float_bits(v), rest = u & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  uint32_t h;
  if (rest > 0x7f800000u) {
    h = 0x7e00u | ((rest >> 13) & 0x3ffu);
  } else if (rest >= 0x477ff000u) {  // rounds past 65504
    h = 0x7c00u;
  } else if (rest < 0x38800000u) {  // subnormal: adding 1/2 lets the FPU do the rounding
    h = float_bits(float_from_bits(rest) + 0.5f) - 0x3f000000u;
  } else {
    h = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  }
  return Float16{static_cast<uint16_t>(h | sign)};
#endif
}

// Returns f(T{}) for the floating-point type T that `dtype` names.
template <class F>
int visit_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBfloat16:
      return f(Bfloat16{});
    default:
      return f(Float16{});
  }
}

}  // namespace fastebm
