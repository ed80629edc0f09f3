// Swaps between replicas on a CUDA device.
#include "launch/element_blocks_cuda.h"
#include "launch/sums_cuda.h"
#include "tempering/tempering.h"

namespace fastebm {
namespace {

using Groups = RowGroups<kBlockThreads>;

// Two rows exchange what they hold where log r > log u. A group of threads, one for each block of
// four elements, up to kBlockThreads, takes a pair: all of them come to the same verdict, and the
// first one writes it. A pair that is swapped moves 32 B an element in float32, or 48 B with
// velocities; one that is not reads two energies.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kBlockThreads) replica_swap_kernel(SwapParams p, Groups groups) {
  const bool there = groups.row() < pairs_of(p);
  const SwapPair pair = swap_pair(p, there ? groups.row() : 0);
  const float log_r = swap_log_ratio(p, pair);
  const bool accepted = there && is_accepted(p, pair, log_r);
  __syncthreads();  // all have read the energies
  if (there && groups.lane() == 0) {
    p.swaps[pair.low] += acceptance(log_r);
    if (accepted) swap_energies(p, pair);
  }
  if (!accepted) return;
  const auto scales = velocity_scales<Compute<T>>(p, pair);
  for (int64_t b = groups.lane(); 4 * b < p.dim; b += groups.lanes()) {
    const int count = block_size(p.dim, b);
    const auto rows = [&](void* of, T** low, T** high) {
      *low = static_cast<T*>(of) + pair.low * p.dim + 4 * b;
      *high = static_cast<T*>(of) + pair.high * p.dim + 4 * b;
    };
    T *low, *high;
    void* const states[2] = {p.x, p.grad};
    for (void* of : states) {
      rows(of, &low, &high);
      const Quad<T> kept = load_quad<kWhole>(static_cast<const T*>(low), count);
      store_quad<kWhole>(load_quad<kWhole>(static_cast<const T*>(high), count), low, count);
      store_quad<kWhole>(kept, high, count);
    }
    if (!p.velocity) continue;
    rows(p.velocity, &low, &high);
    Compute<T> to_low[4], to_high[4];
    widen_quad(load_quad<kWhole>(static_cast<const T*>(high), count), to_low);
    widen_quad(load_quad<kWhole>(static_cast<const T*>(low), count), to_high);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to_low[i] = mul_rn(scales.to_low, to_low[i]);
      to_high[i] = mul_rn(scales.to_high, to_high[i]);
    }
    store_quad<kWhole>(narrow_quad<T>(to_low), low, count);
    store_quad<kWhole>(narrow_quad<T>(to_high), high, count);
  }
}

}  // namespace

int replica_swap_cuda(const SwapParams& p, int64_t, int64_t, void* stream) {
  return visit_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    const Groups groups((p.dim + 3) / 4);
    const bool whole = are_quads<T>(p.dim, p.x, p.grad, p.velocity);
    return launch(whole ? replica_swap_kernel<T, true> : replica_swap_kernel<T, false>,
                  groups.grid(pairs_of(p)), dim3(kBlockThreads), 0, stream, p, groups);
  });
}

}  // namespace fastebm
