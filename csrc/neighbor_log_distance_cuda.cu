// The entropy term's value and gradient on a CUDA device.
#include "device.h"
#include "neighbor_log_distance.h"

namespace fastebm {
namespace {

constexpr int kLogThreads = 256;

// A block takes one query, a thread every 256th element: 8 B read and 4 B written an element.
template <class X, class Y>
__global__ void __launch_bounds__(kLogThreads) pull_kernel(LogDistanceParams p) {
  const int64_t i = blockIdx.x;
  const double slope = 1.0 / (bounded_square<X>(p, i) * static_cast<double>(p.n));
  for (int64_t e = threadIdx.x; e < p.dim; e += kLogThreads)
    static_cast<X*>(p.grad)[i * p.dim + e] = log_distance_pull<X, Y>(p, i, e, slope);
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
    return launch(pull_kernel<X, Y>, dim3(static_cast<unsigned>(p.n)), block, 0, stream, p);
  });
}

}  // namespace fastebm
