// Swaps between replicas on a CPU, pair by pair: a scalar path, and one with AVX2 that gives the
// same bits.
#include "simd/simd.h"
#include "tempering/tempering.h"

namespace fastebm {
namespace {

template <class T>
FASTEBM_HD void swap_states(const SwapParams& p, const SwapPair& pair) {
  const auto row = [&](void* of, int64_t state) { return static_cast<T*>(of) + state * p.dim; };
  void* const states[2] = {p.x, p.grad};
  for (void* of : states) {
    T *low = row(of, pair.low), *high = row(of, pair.high);
    for (int64_t i = 0; i < p.dim; ++i) swap_elements(low + i, high + i);
  }
  if (!p.velocity) return;
  const auto scales = velocity_scales<Compute<T>>(p, pair);
  T *low = row(p.velocity, pair.low), *high = row(p.velocity, pair.high);
  for (int64_t i = 0; i < p.dim; ++i) swap_velocities(low + i, high + i, scales);
}

template <class T>
FASTEBM_HD void swap_pairs(const SwapParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const SwapPair pair = swap_pair(p, i);
    const float log_r = swap_log_ratio(p, pair);
    p.swaps[pair.low] += acceptance(log_r);
    if (!is_accepted(p, pair, log_r)) continue;
    swap_energies(p, pair);
    swap_states<T>(p, pair);
  }
}

#if defined(__x86_64__)
template <class T>
__attribute__((target("avx2,fma,f16c"))) void swap_pairs_avx2(const SwapParams& p, int64_t begin,
                                                              int64_t end) {
  swap_pairs<T>(p, begin, end);
}
#endif

}  // namespace

int replica_swap_cpu(const SwapParams& p, int64_t begin, int64_t end, void*) {
  return visit_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
#if defined(__x86_64__)
    if (simd_level() != Simd::kScalar) return swap_pairs_avx2<T>(p, begin, end), 0;
#endif
    swap_pairs<T>(p, begin, end);
    return 0;
  });
}

}  // namespace fastebm
