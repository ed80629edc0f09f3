// Which CPU instructions the kernels use, decided once at run time; tests may lower it.
#pragma once

namespace fastebm {

enum class Simd { kScalar, kAvx2 };

inline Simd detect_simd() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return Simd::kAvx2;
#endif
  return Simd::kScalar;
}

inline Simd& simd_level() {
  static Simd level = detect_simd();
  return level;
}

}  // namespace fastebm
