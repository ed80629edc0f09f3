// Search by bytes on a CPU, compiled for several instruction sets.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "neighbor/bytes.h"

namespace fastebm {
namespace {

using Rest = std::function<void(const Queries&)>;  // another search, for those that are left

// clang-format off
#if defined(__x86_64__)
namespace plain {
constexpr int kRows = 4;
#define FASTEBM_TARGET
#include "simd/plain.h"
#include "neighbor/simd.h"
#include "neighbor/words_simd.h"
#include "neighbor/add_square_simd.h"
#include "neighbor/registers_simd.h"
#include "neighbor/bytes_simd.h"
#include "neighbor/byte_sample_simd.h"
#include "neighbor/byte_search_simd.h"
#undef FASTEBM_TARGET
}  // namespace plain
namespace avx2 {
constexpr int kRows = 4;
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "neighbor/simd.h"
#include "neighbor/words_simd.h"
#include "neighbor/add_square_simd.h"
#include "neighbor/registers_simd.h"
#include "neighbor/bytes_simd.h"
#include "neighbor/byte_sample_simd.h"
#include "neighbor/byte_search_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2
namespace avx2_vnni {
constexpr int kRows = 6;
#define FASTEBM_TARGET __attribute__((target("avxvnni,avx2,fma,f16c")))
#include "simd/avx2.h"
#include "simd/avx2_vnni.h"
#include "neighbor/simd.h"
#include "neighbor/vnni_simd.h"
#include "neighbor/add_square_simd.h"
#include "neighbor/registers_simd.h"
#include "neighbor/bytes_simd.h"
#include "neighbor/byte_sample_simd.h"
#include "neighbor/byte_search_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2_vnni
namespace avx512_vnni {
constexpr int kRows = 12;
#define FASTEBM_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "simd/avx512_vnni.h"
#include "neighbor/simd.h"
#include "neighbor/vnni_simd.h"
#include "neighbor/add_square_simd.h"
#include "neighbor/registers_simd.h"
#include "neighbor/bytes_simd.h"
#include "neighbor/byte_sample_simd.h"
#include "neighbor/byte_search_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512_vnni
namespace amx {
constexpr int kRows = 32;
#define FASTEBM_TARGET \
  __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "simd/avx512_vnni.h"
#include "neighbor/simd.h"
#include "neighbor/vnni_simd.h"
#include "neighbor/add_square_simd.h"
#include "neighbor/amx_simd.h"
#include "neighbor/bytes_simd.h"
#include "neighbor/byte_sample_simd.h"
#include "neighbor/byte_search_simd.h"
#undef FASTEBM_TARGET
}  // namespace amx
#endif
// clang-format on

int word_bytes() { return cpu_level().products == Products::kWords ? 2 : 1; }

}  // namespace

#if defined(__x86_64__)
bool can_search_bytes(const NeighborParams& p) {
  const CpuLevel& level = cpu_level();
  if (level.simd == Simd::kAvx512 && level.products == Products::kWords) return false;
  const bool fits = byte_width(p.dim) * word_bytes() * kBytePanel <= kMostPacked;
  return fits && p.y_dtype != Dtype::kFloat64 && bytes_may_pay(p, level, 1);
}
#else
bool can_search_bytes(const NeighborParams&) { return false; }  // not tried
#endif

int64_t byte_search_scratch_cpu(const NeighborParams& p, int threads) {
  Carver carver(nullptr);
  const ByteScratch scratch = byte_scratch(p, threads, word_bytes(), carver);
  return std::max(carver.bytes(),
                  reinterpret_cast<int64_t>(scratch.rest) + tile_search_scratch_cpu(p, threads));
}

int byte_search_cpu(const NeighborParams& p, int threads, const ParallelFor& parallel_for) {
  Carver carver(p.scratch);
  ByteScratch scratch = byte_scratch(p, threads, word_bytes(), carver);
  const Rest rest = [&](const Queries& queries) {
    tile_search_cpu(p, queries, threads, scratch.rest, parallel_for);
  };
#if defined(__x86_64__)
  return visit_types(p, [&](auto x, auto y) {
    using X = decltype(x);
    using Y = decltype(y);
    if constexpr (!std::is_same_v<Y, double>) {
      const auto [name, simd, products] = cpu_level();
      if (products == Products::kAmx)
        amx::byte_search<X, Y>(p, scratch, rest, parallel_for);
      else if (products == Products::kVnni && simd == Simd::kAvx512)
        avx512_vnni::byte_search<X, Y>(p, scratch, rest, parallel_for);
      else if (products == Products::kVnni)
        avx2_vnni::byte_search<X, Y>(p, scratch, rest, parallel_for);
      else if (simd != Simd::kScalar)
        avx2::byte_search<X, Y>(p, scratch, rest, parallel_for);
      else
        plain::byte_search<X, Y>(p, scratch, rest, parallel_for);
    }
    return 0;
  });
#else
  rest({0, p.n});
  return 0;
#endif
}

}  // namespace fastebm
