// The entropy term's value and gradient on a CUDA device.
#include "launch/sums_cuda.h"
#include "neighbor/log_distance.h"
#include "neighbor/rows_cuda.h"

namespace fastebm {
namespace {

constexpr int kLogThreads = 1024;

// The gradient, see log_distance_pull: a thread an element, 8 B read and 4 B written.
template <class X, class Y>
__global__ void __launch_bounds__(kRowThreads) pull_kernel(LogDistanceParams p) {
  for_own_elements(p.n, p.dim, [&](int64_t i, int64_t e) {
    const double slope = 1.0 / (bounded_square<X>(p, i) * static_cast<double>(p.n));
    static_cast<X*>(p.grad)[i * p.dim + e] = log_distance_pull<X, Y>(p, i, e, slope);
  });
}

// The mean of log(d^2 + eps^2) / 2. One block takes all distances.
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
    const int error = launch(log_mean_kernel<X>, dim3(1), dim3(kLogThreads), 0, stream, p);
    if (error || p.n * p.dim == 0) return error;
    const auto [grid, block] = over_rows(p.n, p.dim);
    return launch(pull_kernel<X, Y>, grid, block, 0, stream, p);
  });
}

}  // namespace fastebm
