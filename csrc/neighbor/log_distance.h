// What the entropy term makes of the nearest references: the mean of log(d^2 + eps^2) / 2 and its
// gradient in the queries, (x - y*) / (d^2 + eps^2) / n. Launchers and the arithmetic.
#pragma once
#include "neighbor/neighbor.h"

namespace fastebm {

// All arrays are dense. Where there is no neighbour the distance is NaN, and so is what follows.
struct LogDistanceParams {
  Dtype x_dtype, y_dtype;
  int64_t n, m, dim;
  const void* x;            // (n, dim)
  const void* y;            // (m, dim)
  float y_scale, y_offset;  // of uint8
  const void* distance;     // (n,) of x_dtype
  const int64_t* index;     // (n,)
  double eps;
  void* value;  // one of x_dtype
  void* grad;   // (n, dim) of x_dtype
};

// The CPU launcher of the gradient works on queries [begin, end), that of the value on all; the
// CUDA one queues both on `stream` and returns 0 or a cudaError_t.
int log_distance_gradient_cpu(const LogDistanceParams&, int64_t begin, int64_t end);
int log_distance_value_cpu(const LogDistanceParams&);
int log_distance_cuda(const LogDistanceParams&, void* stream);

template <class X>
FASTEBM_HD double bounded_square(const LogDistanceParams& p, int64_t i) {
  const double distance = static_cast<const X*>(p.distance)[i];
  return distance * distance + p.eps * p.eps;
}

// One element of query i's gradient; slope is 1 / (bounded_square n).
template <class X, class Y>
FASTEBM_HD X log_distance_pull(const LogDistanceParams& p, int64_t i, int64_t element,
                               double slope) {
  const int64_t nearest = p.index[i] < 0 ? 0 : p.index[i];
  const Y y = static_cast<const Y*>(p.y)[nearest * p.dim + element];
  const X x = static_cast<const X*>(p.x)[i * p.dim + element];
  const X apart = x - static_cast<X>(reference_value(y, p.y_scale, p.y_offset));
  return static_cast<X>(static_cast<double>(apart) * slope);
}

}  // namespace fastebm
