// Nearest references on a CPU, in two ways: direct differences for small samples
// (neighbor/direct.h), scored tiles for larger ones (neighbor/tiles.h).
#include "neighbor/search.h"

namespace fastebm {
namespace {

bool is_direct(const NeighborParams& p) { return p.dim >= 1 && p.dim <= kSmallDim; }

}  // namespace

int64_t nearest_neighbor_scratch_cpu(const NeighborParams& p, int threads) {
  return is_direct(p) ? direct_search_scratch_cpu(p) : tile_search_scratch_cpu(p, threads);
}

int nearest_neighbor_cpu(const NeighborParams& p, int threads, const ParallelFor& parallel_for) {
  return is_direct(p) ? direct_search_cpu(p, parallel_for)
                      : tile_search_cpu(p, threads, parallel_for);
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
