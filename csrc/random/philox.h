// Noise that is a pure function of (key, step, sample id, element, tag): the Philox4x32-10 counter
// generator (Salmon et al., SC 2011) followed by a Box-Muller transform made of exactly rounded
// operations only, so that every path (scalar, AVX2, CUDA, emulated CUDA) gives the same bits.
//
// One Philox call gives four words, hence the four normals of elements 4*block .. 4*block+3 of one
// sample. Counter: (step, block, sample id low, sample id bits 32..55 | tag << 24); key: 64 bits.
// A tag is never 0, because torch's own generators use such counters under key = seed.
#pragma once
#include <cmath>

#include "launch/scalar.h"

namespace fastebm {

constexpr uint32_t kPhiloxMul0 = 0xD2511F53u, kPhiloxMul1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct Words4 {
  uint32_t v[4];
};
struct Normals4 {
  float v[4];
};

// One operation, rounded once, on host and device.
FASTEBM_HD float fma_rn(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
FASTEBM_HD double fma_rn(double a, double b, double c) {
#ifdef __CUDA_ARCH__
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}
FASTEBM_HD float mul_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;  // compiled with -ffp-contract=off
#endif
}
FASTEBM_HD double mul_rn(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}
// Of an `a` in [2^-100, 2^100]: there __fsqrt_rn is these operations, and a branch around a call
// for the rest, over which nvcc moves no load.
FASTEBM_HD float sqrt_rn(float a) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
  const float root = __fmul_rn(a, y);
  return __fmaf_rn(__fmaf_rn(-root, root, a), __fmul_rn(y, 0.5f), root);
#else
  return __builtin_sqrtf(a);
#endif
}
FASTEBM_HD float uint_to_float_rn(uint32_t w) {
#ifdef __CUDA_ARCH__
  return __uint2float_rn(w);
#else
  return static_cast<float>(w);
#endif
}

// Of kCount counters at once, which share the keys of the rounds.
template <int kCount>
FASTEBM_HD void philox4x32(Words4 (&c)[kCount], uint32_t k0, uint32_t k1) {
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int r = 0; r < kPhiloxRounds; ++r) {
    for (Words4& w : c)
      w = Words4{{mul_high(kPhiloxMul1, w.v[2]) ^ w.v[1] ^ k0, kPhiloxMul1 * w.v[2],
                  mul_high(kPhiloxMul0, w.v[0]) ^ w.v[3] ^ k1, kPhiloxMul0 * w.v[0]}};
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
}

FASTEBM_HD Words4 philox4x32(Words4 c, uint32_t k0, uint32_t k1) {
  Words4 one[1] = {c};
  philox4x32(one, k0, k1);
  return one[0];
}

// Coefficients of the Box-Muller transform; random/philox_simd.h reads the same ones.
namespace box_muller {
constexpr float kTwoM32 = 2.3283064365386963e-10f, kTwoM33 = 1.1641532182693481e-10f;
constexpr int32_t kSqrtHalfBits = 0x3f3504f3;  // mantissas are taken in [sqrt(1/2), sqrt(2))
constexpr float kMinus2Ln2 = -1.3862943611198906f, kTwoM23 = 1.1920928955078125e-07f;
// -2 log(1 + t) / t on [sqrt(1/2) - 1, sqrt(2) - 1], minimax of degree 7, absolute error 7e-8
constexpr float kLog7 = 0.20206281542778015f, kLog6 = -0.32838883996009827f,
                kLog5 = 0.3466584384441376f, kLog4 = -0.3974624276161194f,
                kLog3 = 0.4991881251335144f, kLog2 = -0.6667235493659973f,
                kLog1 = 1.0000133514404297f, kLog0 = -1.9999996423721313f;
constexpr float kMinRadius2 = 1e-10f;
// sin(pi/2 f) / f and cos(pi/2 f) in f^2 on [-1/2, 1/2], absolute error 3e-8
constexpr float kSin3 = -0.004602177068591118f, kSin2 = 0.07968022674322128f,
                kSin1 = -0.6459634900093079f, kSin0 = 1.5707963705062866f;
constexpr float kCos3 = -0.020408352836966515f, kCos2 = 0.2535986304283142f,
                kCos1 = -1.2336970567703247f, kCos0 = 1.0f;
constexpr float kTwoM30 = 9.3132257461547852e-10f;
}  // namespace box_muller

// Two words -> two independent standard normals, (r cos, r sin). u = (w0 + 1/2) / 2^32 is never 0;
// the quadrant comes from the top bits of w1 and the angle inside it from the rest.
FASTEBM_HD void normal_pair(uint32_t w0, uint32_t w1, float* n0, float* n1) {
  using namespace box_muller;
  const float u = fma_rn(uint_to_float_rn(w0), kTwoM32, kTwoM33);
  const int32_t u_bits = static_cast<int32_t>(float_bits(u));
  const int32_t e = (u_bits - kSqrtHalfBits) & ~0x7fffff;  // the exponent, times 2^23
  const float t = float_from_bits(static_cast<uint32_t>(u_bits - e)) - 1.0f;
  float p = kLog7;
  p = fma_rn(p, t, kLog6);
  p = fma_rn(p, t, kLog5);
  p = fma_rn(p, t, kLog4);
  p = fma_rn(p, t, kLog3);
  p = fma_rn(p, t, kLog2);
  p = fma_rn(p, t, kLog1);
  p = fma_rn(p, t, kLog0);
  const float r2 = fma_rn(static_cast<float>(e), kMinus2Ln2 * kTwoM23, mul_rn(p, t));
  const float r = sqrt_rn(r2 > kMinRadius2 ? r2 : kMinRadius2);

  const int32_t q = static_cast<int32_t>(w1 + 0x20000000u) >> 30;
  const float f = mul_rn(
      static_cast<float>(static_cast<int32_t>(w1 - (static_cast<uint32_t>(q) << 30))), kTwoM30);
  const float z = mul_rn(f, f);
  const float s = mul_rn(f, fma_rn(fma_rn(fma_rn(kSin3, z, kSin2), z, kSin1), z, kSin0));
  const float c = fma_rn(fma_rn(fma_rn(kCos3, z, kCos2), z, kCos1), z, kCos0);
  const uint32_t sin_sign = (static_cast<uint32_t>(q) << 30) & 0x80000000u;
  const uint32_t cos_sign = (static_cast<uint32_t>(q + 1) << 30) & 0x80000000u;
  const float sin_q = float_from_bits(float_bits(q & 1 ? c : s) ^ sin_sign);
  const float cos_q = float_from_bits(float_bits(q & 1 ? s : c) ^ cos_sign);
  *n0 = mul_rn(r, cos_q);
  *n1 = mul_rn(r, sin_q);
}

// A word -> a uniform number in [0, 1), of 24 bits.
FASTEBM_HD float uniform_of(uint32_t word) {
  return mul_rn(static_cast<float>(word >> 8), 5.9604644775390625e-8f);
}

// Which stream of noise: the words of one step that all samples share.
struct NoiseKey {
  uint64_t key;
  uint32_t step;
  uint32_t tag;
};

FASTEBM_HD Words4 noise_counter(const NoiseKey& k, uint64_t sample_id, uint32_t block) {
  return Words4{{k.step, block, static_cast<uint32_t>(sample_id),
                 (static_cast<uint32_t>(sample_id >> 32) & 0x00ffffffu) | k.tag << 24}};
}

FASTEBM_HD Normals4 normals_of_words(const Words4& w) {
  Normals4 n;
  normal_pair(w.v[0], w.v[1], &n.v[0], &n.v[1]);
  normal_pair(w.v[2], w.v[3], &n.v[2], &n.v[3]);
  return n;
}

FASTEBM_HD Normals4 normals4(const NoiseKey& k, uint64_t sample_id, uint32_t block) {
  return normals_of_words(philox4x32(noise_counter(k, sample_id, block),
                                     static_cast<uint32_t>(k.key),
                                     static_cast<uint32_t>(k.key >> 32)));
}

}  // namespace fastebm
