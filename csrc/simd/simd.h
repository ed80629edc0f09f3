// Which CPU instructions the kernels use, decided once at run time; tests may lower it.
#pragma once
#include <cstring>
#include <iterator>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastebm {

enum class Simd { kScalar, kAvx2, kAvx512 };
// How bytes are multiplied: as 16-bit words, by the instructions of VNNI, on AMX's tiles.
enum class Products { kWords, kVnni, kAmx };

struct CpuLevel {
  const char* name;
  Simd simd;
  Products products;
};

// Slower ones first.
constexpr CpuLevel kCpuLevels[] = {
    {"scalar", Simd::kScalar, Products::kWords},     {"avx2", Simd::kAvx2, Products::kWords},
    {"avx2_vnni", Simd::kAvx2, Products::kVnni},     {"avx512", Simd::kAvx512, Products::kWords},
    {"avx512_vnni", Simd::kAvx512, Products::kVnni}, {"amx", Simd::kAvx512, Products::kAmx}};

inline bool has_simd(Simd simd) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  return simd == Simd::kScalar ||
         (avx2 && (simd == Simd::kAvx2 || __builtin_cpu_supports("avx512f")));
#else
  return simd == Simd::kScalar;
#endif
}

// What simd/ needs is there: asked of a level whose vectors are.
inline bool has_products(const CpuLevel& level) {
  if (level.products == Products::kWords) return true;
#if defined(__x86_64__) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0, more = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned subleaves = a;
  if (level.simd == Simd::kAvx2)
    return subleaves >= 1 && __get_cpuid_count(7, 1, &more, &b, &c, &d) && (more >> 4 & 1);
  const bool vnni = b >> 30 & 1 && b >> 31 & 1 && c >> 11 & 1;  // BW, VL and VNNI
  if (level.products == Products::kVnni) return vnni;
  // The kernel hands out the tiles' registers on demand (ARCH_REQ_XCOMP_PERM, XTILEDATA).
  return vnni && d >> 24 & 1 && d >> 25 & 1 && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

inline bool has_level(const CpuLevel& level) { return has_simd(level.simd) && has_products(level); }

inline const CpuLevel& detect_level() {
  int best = static_cast<int>(std::size(kCpuLevels)) - 1;
  while (best > 0 && !has_level(kCpuLevels[best])) --best;
  return kCpuLevels[best];
}

inline CpuLevel& cpu_level() {
  static CpuLevel level = detect_level();
  return level;
}

inline Simd simd_level() { return cpu_level().simd; }

// The level of that name, or false where it is unknown or this CPU does not have it.
inline bool set_cpu_level(const char* name) {
  for (const CpuLevel& level : kCpuLevels)
    if (std::strcmp(name, level.name) == 0 && has_level(level)) {
      cpu_level() = level;
      return true;
    }
  return false;
}

}  // namespace fastebm
