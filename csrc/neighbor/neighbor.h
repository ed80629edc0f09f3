// Nearest references of each query, over raw memory: what a caller fills in, the launchers, and
// what every path agrees on: the square of a distance, summed from differences in float64 in one
// order, and the order of neighbours. Paths may choose candidates as they like, by scores with a
// proven error bound; they all return the same neighbours, the same bits.
#pragma once
#include <cmath>
#include <functional>
#include <type_traits>

#include "launch/scalar.h"

namespace fastebm {

constexpr int kMaxNeighbors = 16;
constexpr int kSquareParts = 32;  // partial sums of a square: one per lane of a warp

// All arrays are dense. A pair whose square is NaN is no pair of neighbours.
struct NeighborParams {
  Dtype x_dtype;  // float32 or float64
  Dtype y_dtype;  // float32, bfloat16, float16, uint8; float64 with a float64 x
  int64_t n, m, dim;
  int k;                    // 1 .. kMaxNeighbors, at most m
  const void* x;            // (n, dim)
  const void* y;            // (m, dim)
  float y_scale, y_offset;  // a uint8 q stands for q * y_scale + y_offset
  const int64_t* skip;      // null, or (n,): the reference that a query may not choose, -1: none
  void* distance;           // (n, k) of x_dtype, nearest first; NaN where there is none
  int64_t* index;           // (n, k), -1 where there is none
  void* scratch;            // as many bytes as the path asks for, 64-byte aligned
};

// The gradient: grad_x_i = sum over c of grad_ic / distance_ic (x_i - winner_ic), a term being zero
// where its distance is. The winners are kept apart from y, which may have changed since.
struct NeighborBackwardParams {
  Dtype x_dtype, y_dtype;
  int64_t n, dim;
  int k;
  const void* grad;      // (n, k) of x_dtype: the loss's derivative in the distance
  const void* distance;  // (n, k) of x_dtype
  const void* x;         // (n, dim)
  const void* winners;   // (n, k, dim) of y_dtype
  float y_scale, y_offset;
  void* grad_x;  // (n, dim)
};

// Calls body(begin, end) for ranges that make up [0, n), on any threads, and waits.
using ParallelFor =
    std::function<void(int64_t n, const std::function<void(int64_t begin, int64_t end)>& body)>;

int64_t nearest_neighbor_scratch_cpu(const NeighborParams&, int threads);
int nearest_neighbor_cpu(const NeighborParams&, int threads, const ParallelFor&);
// Queues the work on `stream` (a cudaStream_t); returns 0 or a cudaError_t.
int64_t nearest_neighbor_scratch_cuda(const NeighborParams&);
int nearest_neighbor_cuda(const NeighborParams&, void* stream);

// The CPU launcher works on queries [begin, end), the CUDA one on all.
int nearest_neighbor_backward_cpu(const NeighborBackwardParams&, int64_t begin, int64_t end, void*);
int nearest_neighbor_backward_cuda(const NeighborBackwardParams&, int64_t, int64_t, void* stream);

// The value that an element of y stands for: float32, or float64 if it is one.
template <class Y>
FASTEBM_HD Compute<Y> reference_value(Y v, float, float) {
  return widen(v);
}
template <>
FASTEBM_HD float reference_value<uint8_t>(uint8_t v, float scale, float offset) {
  const float product = static_cast<float>(v) * scale;  // not contracted: see CMakeLists.txt
  return product + offset;
}

// Folds the partial sums: for h = 16, 8, 4, 2, 1: part[l] += part[l + h] for l < h, as warp_sum().
FASTEBM_HD double fold_parts(double* part) {
  for (int h = kSquareParts / 2; h; h /= 2)
    for (int l = 0; l < h; ++l) part[l] += part[l + h];
  return part[0];
}

// The square of the distance of two samples: element i goes to partial sum i % 32, in order. No
// FMA.
template <class X, class Y>
FASTEBM_HD double exact_square(const X* x, const Y* y, int64_t dim, float scale, float offset) {
  double part[kSquareParts] = {};
  for (int64_t i = 0; i < dim; ++i) {
    const double difference = static_cast<double>(x[i]) - reference_value(y[i], scale, offset);
    part[i % kSquareParts] += difference * difference;
  }
  return fold_parts(part);
}

// The nearest so far: nearer first, of equally near the lower index first.
struct Neighbor {
  double square;
  int64_t index;  // -1: none
};

FASTEBM_HD bool nearer(const Neighbor& a, const Neighbor& b) {
  return a.square < b.square || (a.square == b.square && a.index < b.index);
}

FASTEBM_HD void clear_neighbors(Neighbor* list, int k) {
  for (int i = 0; i < k; ++i) list[i] = Neighbor{HUGE_VAL, INT64_MAX};
}

// Puts a candidate into a sorted list of k, where it belongs there. False for a NaN.
FASTEBM_HD void add_neighbor(Neighbor* list, int k, Neighbor candidate) {
  if (!nearer(candidate, list[k - 1])) return;
  int i = k - 1;
  for (; i > 0 && nearer(candidate, list[i - 1]); --i) list[i] = list[i - 1];
  list[i] = candidate;
}

// Writes query i's result c.
template <class X>
FASTEBM_HD void store_neighbor(const NeighborParams& p, int64_t i, int c, Neighbor neighbor) {
  const bool found = neighbor.index != INT64_MAX;
  static_cast<X*>(p.distance)[i * p.k + c] =
      found ? static_cast<X>(sqrt(neighbor.square)) : static_cast<X>(NAN);
  p.index[i * p.k + c] = found ? neighbor.index : -1;
}

template <class X>
FASTEBM_HD void store_neighbors(const NeighborParams& p, int64_t i, const Neighbor* list) {
  for (int c = 0; c < p.k; ++c) store_neighbor<X>(p, i, c, list[c]);
}

// One element of query i's gradient.
template <class X, class Y>
FASTEBM_HD X neighbor_gradient(const NeighborBackwardParams& p, int64_t i, int64_t element) {
  const X x = static_cast<const X*>(p.x)[i * p.dim + element];
  X sum = 0;
  for (int64_t c = i * p.k; c < (i + 1) * p.k; ++c) {
    const X distance = static_cast<const X*>(p.distance)[c];
    const X slope = distance == 0 ? X(0) : static_cast<const X*>(p.grad)[c] / distance;
    const Y winner = static_cast<const Y*>(p.winners)[c * p.dim + element];
    sum += slope * (x - static_cast<X>(reference_value(winner, p.y_scale, p.y_offset)));
  }
  return sum;
}

// Returns f(T{}) for the type T of the references.
template <class F>
int visit_reference(Dtype dtype, F&& f) {
  return dtype == Dtype::kUint8 ? f(uint8_t{}) : visit_dtype(dtype, f);
}

// Returns f(X{}, Y{}) for the types of the queries and the references.
template <class Params, class F>
int visit_types(const Params& p, F&& f) {
  return visit_reference(p.y_dtype, [&](auto y) {
    if (p.x_dtype == Dtype::kFloat64) return f(double{}, y);
    if constexpr (!std::is_same_v<decltype(y), double>) return f(float{}, y);
    return 0;  // checked: y is not wider than x
  });
}

}  // namespace fastebm
