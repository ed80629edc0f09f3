// Nearest references on a CPU.
#include "neighbor.h"

namespace fastebm {

int64_t nearest_neighbor_scratch_cpu(const NeighborParams&, int) { return 64; }

int nearest_neighbor_cpu(const NeighborParams& p, int, const ParallelFor& parallel_for) {
  return visit_reference(p.y_dtype, [&](auto y_type) {
    using Y = decltype(y_type);
    const auto search = [&](auto x_type) {
      using X = decltype(x_type);
      parallel_for(p.n, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          Neighbor list[kMaxNeighbors];
          clear_neighbors(list, p.k);
          for (int64_t j = 0; j < p.m; ++j)
            if (!p.skip || p.skip[i] != j)
              add_neighbor(list, p.k,
                           {exact_square(static_cast<const X*>(p.x) + i * p.dim,
                                         static_cast<const Y*>(p.y) + j * p.dim, p.dim, p.y_scale,
                                         p.y_offset),
                            j});
          store_neighbors<X>(p, i, list);
        }
      });
      return 0;
    };
    return p.x_dtype == Dtype::kFloat64 ? search(double{}) : search(float{});
  });
}

}  // namespace fastebm
