// Means of neighbours on a CUDA device.
#include "launch/sums_cuda.h"
#include "neighbor/means.h"
#include "neighbor/rows_cuda.h"

namespace fastebm {
namespace {

constexpr int kMeansThreads = 128;

// A thread an element, 4 B read and written.
__global__ void __launch_bounds__(kRowThreads) chosen_kernel(NeighborMeansParams p) {
  for_own_elements(p.n, p.dim, [&](int64_t i, int64_t e) { copy_chosen(p, i, e); });
}

// A block takes one sample, whose k rows it reads twice, the second time from its cache.
__global__ void __launch_bounds__(kMeansThreads) neighbor_means_kernel(NeighborMeansParams p) {
  const int64_t i = blockIdx.x;
  double squares = 0.0;
  for (int64_t e = threadIdx.x; e < p.dim; e += kMeansThreads)
    squares += mean_of_neighbors(p, i, e);
  squares = block_sum<kMeansThreads>(squares);
  if (threadIdx.x == 0) p.scales[i] = scale_of_neighbors(p, squares);
}

}  // namespace

int chosen_samples_cuda(const NeighborMeansParams& p, int64_t, int64_t, void* stream) {
  const auto [grid, block] = over_rows(p.n, p.dim);
  return launch(chosen_kernel, grid, block, 0, stream, p);
}

int neighbor_means_cuda(const NeighborMeansParams& p, int64_t, int64_t, void* stream) {
  return launch(neighbor_means_kernel, dim3(static_cast<unsigned>(p.n)), dim3(kMeansThreads), 0,
                stream, p);
}

}  // namespace fastebm
