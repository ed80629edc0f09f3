// Search by tiles on a CPU, compiled for several instruction sets.
#include <algorithm>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "neighbor/tiles.h"
#include "simd/simd.h"

namespace fastebm {
namespace {

// clang-format off
namespace plain {
constexpr int kRows = 4;
#define FASTEBM_TARGET
#include "simd/plain.h"
#include "neighbor/simd.h"
#include "neighbor/tiles_simd.h"
#undef FASTEBM_TARGET
}  // namespace plain
#if defined(__x86_64__)
namespace avx2 {
constexpr int kRows = 6;
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "neighbor/simd.h"
#include "neighbor/tiles_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2
namespace avx512 {
constexpr int kRows = 12;
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "neighbor/simd.h"
#include "neighbor/tiles_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
#endif
// clang-format on

}  // namespace

int64_t tile_search_scratch_cpu(const NeighborParams& p, int threads) {
  Carver carver(nullptr);
  tile_scratch(p, p.n, threads, carver);
  return carver.bytes();
}

int tile_search_cpu(const NeighborParams& p, const Queries& queries, int threads, void* memory,
                    const ParallelFor& parallel_for) {
  return visit_types(p, [&](auto x, auto y) {
    using X = decltype(x);
    using Y = decltype(y);
    Carver carver(memory);
    const auto scratch = tile_scratch(p, queries.count, threads, carver);
#if defined(__x86_64__)
    if (simd_level() == Simd::kAvx512)
      avx512::tile_search<X, Y>(p, queries, scratch, parallel_for);
    else if (simd_level() == Simd::kAvx2)
      avx2::tile_search<X, Y>(p, queries, scratch, parallel_for);
    else
#endif
      plain::tile_search<X, Y>(p, queries, scratch, parallel_for);
    return 0;
  });
}

}  // namespace fastebm
