// Direct search on a CPU, compiled for several instruction sets.
#include <algorithm>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "neighbor/direct.h"
#include "simd/simd.h"

namespace fastebm {
namespace {

// clang-format off
namespace plain {
#define FASTEBM_TARGET
#include "simd/plain.h"
#include "neighbor/direct_simd.h"
#undef FASTEBM_TARGET
}  // namespace plain
#if defined(__x86_64__)
namespace avx2 {
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "neighbor/direct_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2
namespace avx512 {
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "neighbor/direct_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
#endif
// clang-format on

}  // namespace

int64_t direct_search_scratch_cpu(const NeighborParams& p) {
  Carver carver(nullptr);
  if (p.x_dtype == Dtype::kFloat64)
    direct_scratch<double>(p, carver);
  else
    direct_scratch<float>(p, carver);
  return carver.bytes();
}

int direct_search_cpu(const NeighborParams& p, const ParallelFor& parallel_for) {
  return visit_types(p, [&](auto x, auto y) {
    using X = decltype(x);
    using Y = decltype(y);
    Carver carver(p.scratch);
    const auto scratch = direct_scratch<X>(p, carver);
#if defined(__x86_64__)
    if (simd_level() == Simd::kAvx512)
      avx512::direct_search<X, Y>(p, scratch, parallel_for);
    else if (simd_level() == Simd::kAvx2)
      avx2::direct_search<X, Y>(p, scratch, parallel_for);
    else
#endif
      plain::direct_search<X, Y>(p, scratch, parallel_for);
    return 0;
  });
}

}  // namespace fastebm
