// Swaps between replicas on a CPU, pair by pair.
#include "tempering/tempering.h"

namespace fastebm {
namespace {

template <class T>
void swap_states(const SwapParams& p, const SwapPair& pair) {
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

}  // namespace

int replica_swap_cpu(const SwapParams& p, int64_t begin, int64_t end, void*) {
  return visit_dtype(p.dtype, [&](auto t) {
    for (int64_t i = begin; i < end; ++i) {
      const SwapPair pair = swap_pair(p, i);
      const float log_r = swap_log_ratio(p, pair);
      p.swaps[pair.low] += acceptance(log_r);
      if (!is_accepted(p, pair, log_r)) continue;
      swap_energies(p, pair);
      swap_states<decltype(t)>(p, pair);
    }
    return 0;
  });
}

}  // namespace fastebm
