// Nearest references on a CPU, in three ways: direct differences for small samples
// (neighbor/direct.h), products of bytes for larger ones (neighbor/bytes.h), and products of floats
// where bytes do not tell samples apart (neighbor/tiles.h).
#include "neighbor/search.h"

namespace fastebm {
namespace {

bool is_direct(const NeighborParams& p) { return p.dim >= 1 && p.dim <= kSmallDim; }

}  // namespace

int64_t nearest_neighbor_scratch_cpu(const NeighborParams& p, int threads) {
  if (is_direct(p)) return direct_search_scratch_cpu(p);
  return can_search_bytes(p) ? byte_search_scratch_cpu(p, threads)
                             : tile_search_scratch_cpu(p, threads);
}

int nearest_neighbor_cpu(const NeighborParams& p, int threads, const ParallelFor& parallel_for) {
  if (is_direct(p)) return direct_search_cpu(p, parallel_for);
  if (can_search_bytes(p)) return byte_search_cpu(p, threads, parallel_for);
  return tile_search_cpu(p, {0, p.n}, threads, p.scratch, parallel_for);
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
