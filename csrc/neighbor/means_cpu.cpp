// Means of neighbours on a CPU.
#include "neighbor/means.h"

namespace fastebm {

int chosen_samples_cpu(const NeighborMeansParams& p, int64_t begin, int64_t end, void*) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t e = 0; e < p.dim; ++e) copy_chosen(p, i, e);
  return 0;
}

int neighbor_means_cpu(const NeighborMeansParams& p, int64_t begin, int64_t end, void*) {
  for (int64_t i = begin; i < end; ++i) {
    double squares = 0;
    for (int64_t e = 0; e < p.dim; ++e) squares += mean_of_neighbors(p, i, e);
    p.scales[i] = scale_of_neighbors(p, squares);
  }
  return 0;
}

}  // namespace fastebm
