// The entropy term's value and gradient on a CPU.
#include "neighbor/log_distance.h"

namespace fastebm {

int log_distance_gradient_cpu(const LogDistanceParams& p, int64_t begin, int64_t end) {
  return visit_types(p, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    for (int64_t i = begin; i < end; ++i) {
      const double slope = 1.0 / (bounded_square<X>(p, i) * static_cast<double>(p.n));
      for (int64_t e = 0; e < p.dim; ++e)
        static_cast<X*>(p.grad)[i * p.dim + e] = log_distance_pull<X, Y>(p, i, e, slope);
    }
    return 0;
  });
}

int log_distance_value_cpu(const LogDistanceParams& p) {
  return visit_types(p, [&](auto x_type, auto) {
    using X = decltype(x_type);
    double sum = 0.0;
    for (int64_t i = 0; i < p.n; ++i) sum += std::log(bounded_square<X>(p, i));
    *static_cast<X*>(p.value) = static_cast<X>(sum / 2 / static_cast<double>(p.n));
    return 0;
  });
}

}  // namespace fastebm
