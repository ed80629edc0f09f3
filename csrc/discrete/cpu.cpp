// Gibbs with gradients on a CPU, sample by sample: a scalar path, and AVX2 and AVX-512 paths that
// give the same bits.
#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "discrete/row.h"
#include "simd/simd.h"

namespace fastebm {
namespace {

#if defined(__x86_64__)
// clang-format off
namespace avx2 {
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "random/philox_simd.h"
#include "random/log_simd.h"
#include "simd/exp.h"
#include "discrete/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2

namespace avx512 {
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "random/philox_simd.h"
#include "random/log_simd.h"
#include "simd/exp.h"
#include "discrete/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
// clang-format on
#endif

}  // namespace

int gwg_step_cpu(const GwgParams& p, int64_t begin, int64_t end, void*) {
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx512) return avx512::step(p, begin, end), 0;
  if (simd_level() == Simd::kAvx2) return avx2::step(p, begin, end), 0;
#endif
  const NoiseKey key = noise_key(p, kSiteTag);
  for (; begin < end; ++begin) gwg_row(p, begin, PlainWeights{key});
  return 0;
}

}  // namespace fastebm
