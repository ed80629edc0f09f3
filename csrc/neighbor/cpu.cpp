// Nearest references on a CPU, in two ways, each compiled for several instruction sets: direct
// differences for small samples (neighbor/direct.h), scored tiles for larger ones
// (neighbor/tiles.h).
#include <algorithm>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "neighbor/direct.h"
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
#include "neighbor/direct_simd.h"
#include "neighbor/tiles_simd.h"
#undef FASTEBM_TARGET
}  // namespace plain
#if defined(__x86_64__)
namespace avx2 {
constexpr int kRows = 6;
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "neighbor/simd.h"
#include "neighbor/direct_simd.h"
#include "neighbor/tiles_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2
namespace avx512 {
constexpr int kRows = 12;
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "neighbor/simd.h"
#include "neighbor/direct_simd.h"
#include "neighbor/tiles_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
#endif
// clang-format on

bool is_direct(const NeighborParams& p) { return p.dim >= 1 && p.dim <= kSmallDim; }

}  // namespace

int64_t nearest_neighbor_scratch_cpu(const NeighborParams& p, int threads) {
  Carver carver(nullptr);
  if (!is_direct(p))
    tile_scratch(p, threads, carver);
  else if (p.x_dtype == Dtype::kFloat64)
    direct_scratch<double>(p, carver);
  else
    direct_scratch<float>(p, carver);
  return carver.bytes();
}

int nearest_neighbor_cpu(const NeighborParams& p, int threads, const ParallelFor& parallel_for) {
  return visit_types(p, [&](auto x, auto y) {
    using X = decltype(x);
    using Y = decltype(y);
    Carver carver(p.scratch);
    const auto search = [&](auto direct, auto tiles) {
      if (is_direct(p))
        direct(p, direct_scratch<X>(p, carver), parallel_for);
      else
        tiles(p, tile_scratch(p, threads, carver), parallel_for);
      return 0;
    };
#if defined(__x86_64__)
    if (simd_level() == Simd::kAvx512)
      return search(avx512::direct_search<X, Y>, avx512::tile_search<X, Y>);
    if (simd_level() == Simd::kAvx2)
      return search(avx2::direct_search<X, Y>, avx2::tile_search<X, Y>);
#endif
    return search(plain::direct_search<X, Y>, plain::tile_search<X, Y>);
  });
}

int nearest_neighbor_backward_cpu(const NeighborBackwardParams& p, int64_t begin, int64_t end,
                                  void*) {
  return visit_types(p, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t e = 0; e < p.dim; ++e)
        static_cast<X*>(p.grad_x)[i * p.dim + e] = neighbor_gradient<X, Y>(p, i, e);
    return 0;
  });
}

}  // namespace fastebm
