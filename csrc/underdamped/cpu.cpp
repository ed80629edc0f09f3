// The underdamped step on a CPU: a scalar path, and AVX2 and AVX-512 paths that give the same bits.
// Mapping: blocks of four elements, numbered through the batch; a thread owns a range of them.
#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "simd/simd.h"
#include "underdamped/underdamped.h"

namespace fastebm {
namespace {

bool needs_noise(const UnderdampedParams& p) { return p.noise_stds || p.noise_std != 0; }

template <class T>
void step_scalar(const UnderdampedParams& p, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const int64_t blocks = blocks_per_row(p.dim);
  const NoiseKey key = noise_key(p);
  const bool noisy = needs_noise(p);
  for (; begin < end; ++begin) {
    const int64_t row = begin / blocks, block = begin - row * blocks;
    const auto c = underdamped_coefficients<C>(p, row);
    Normals4 n{};
    if (noisy) n = normals4(key, sample_id(p, row), static_cast<uint32_t>(block));
    for (int64_t i = 4 * block; i < std::min(4 * block + 4, p.dim); ++i) {
      const int64_t at = row * p.dim + i;
      C x = widen(static_cast<const T*>(p.x)[at]), v = widen(static_cast<const T*>(p.v)[at]);
      const C grad = widen(static_cast<const T*>(p.grad)[at]);
      underdamped_element<C>(&x, &v, grad, n.v[i % 4], c, faces_of<C>(p, row, i));
      static_cast<T*>(p.x)[at] = narrow<T>(x);
      static_cast<T*>(p.v)[at] = narrow<T>(v);
    }
  }
}

#if defined(__x86_64__)
// clang-format off
namespace avx2 {
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "random/philox_simd.h"
#include "random/batch_simd.h"
#include "underdamped/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2

namespace avx512 {
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "random/philox_simd.h"
#include "random/batch_simd.h"
#include "underdamped/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
// clang-format on
#endif

}  // namespace

int underdamped_step_cpu(const UnderdampedParams& p, int64_t begin, int64_t end, void*) {
  return visit_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (begin == end) return 0;
#if defined(__x86_64__)
    if (simd_level() == Simd::kAvx512) return avx512::step<T>(p, begin, end);
    if (simd_level() == Simd::kAvx2) return avx2::step<T>(p, begin, end);
#endif
    step_scalar<T>(p, begin, end);
    return 0;
  });
}

}  // namespace fastebm
