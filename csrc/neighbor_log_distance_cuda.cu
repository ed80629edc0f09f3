// The entropy term's value and gradient on a CUDA device.
#include "element_blocks_cuda.h"
#include "neighbor_log_distance.h"

namespace fastebm {
namespace {

constexpr int kLogThreads = 256;

// A group of threads takes a query, a thread every block of four elements that is its own: 8 B read
// and 4 B written an element.
template <class X, class Y, bool kWhole>
__global__ void __launch_bounds__(kLogThreads)
    pull_kernel(LogDistanceParams p, RowGroups<kLogThreads> groups) {
  const int64_t i = groups.row();
  if (i >= p.n) return;
  const double slope = 1.0 / (bounded_square<X>(p, i) * static_cast<double>(p.n));
  const X* x = static_cast<const X*>(p.x) + i * p.dim;
  const Y* y = static_cast<const Y*>(p.y) + nearest_of(p, i) * p.dim;
  X* grad = static_cast<X*>(p.grad) + i * p.dim;
  for (int64_t e = 4 * groups.lane(); e < p.dim; e += 4 * groups.lanes()) {
    const int count = block_size(p.dim, e / 4);
    X from[4], out[4];
    Y to[4];
    unpack(load_quad<kWhole>(x + e, count), from);
    unpack(load_quad<kWhole>(y + e, count), to);
#pragma unroll
    for (int j = 0; j < 4; ++j) out[j] = log_distance_pull(p, from[j], to[j], slope);
    store_quad<kWhole>(pack(out), grad + e, count);
  }
}

// One block takes all distances.
template <class X>
__global__ void __launch_bounds__(kLogThreads) log_mean_kernel(LogDistanceParams p) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < p.n; i += kLogThreads) sum += log(bounded_square<X>(p, i));
  sum = block_sum<kLogThreads>(sum);
  if (threadIdx.x == 0)
    *static_cast<X*>(p.value) = static_cast<X>(sum / 2 / static_cast<double>(p.n));
}

}  // namespace

int log_distance_cuda(const LogDistanceParams& p, void* stream) {
  return visit_types(p, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    const dim3 block(kLogThreads);
    const int error = launch(log_mean_kernel<X>, dim3(1), block, 0, stream, p);
    if (error || p.n * p.dim == 0) return error;
    const RowGroups<kLogThreads> groups((p.dim + 3) / 4);
    const bool whole = are_quads<X>(p.dim, p.x, p.grad) && are_quads<Y>(p.dim, p.y);
    return launch(whole ? pull_kernel<X, Y, true> : pull_kernel<X, Y, false>, groups.grid(p.n),
                  block, 0, stream, p, groups);
  });
}

}  // namespace fastebm
