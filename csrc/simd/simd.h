// Which CPU instructions the kernels use, decided once at run time; tests may lower it.
#pragma once
#include <cstring>

namespace fastebm {

enum class Simd { kScalar, kAvx2, kAvx512 };
constexpr const char* kSimdNames[] = {"scalar", "avx2", "avx512"};

inline Simd detect_simd() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return __builtin_cpu_supports("avx512f") ? Simd::kAvx512 : Simd::kAvx2;
#endif
  return Simd::kScalar;
}

inline Simd& simd_level() {
  static Simd level = detect_simd();
  return level;
}

inline const char* simd_name(Simd level) { return kSimdNames[static_cast<int>(level)]; }

// The level of that name, or false where it is unknown or this CPU does not have it.
inline bool set_simd_level(const char* name) {
  for (int i = 0; i <= static_cast<int>(detect_simd()); ++i)
    if (std::strcmp(name, kSimdNames[i]) == 0) {
      simd_level() = static_cast<Simd>(i);
      return true;
    }
  return false;
}

}  // namespace fastebm
