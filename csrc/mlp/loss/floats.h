// Arrays of floats: where those of a tensor lie, a body for every row, and sums.
#pragma once
#include <algorithm>
#include <cmath>

#include "launch/ops.h"

namespace fastebm {
namespace {

const float* values(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
float* values(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

Tensor floats(const Tensor& like, int64_t n) {
  const int64_t one = 1;
  return empty_strided_on(like, &n, &one, 1, aoti_torch_dtype_float32());
}

constexpr int64_t kGrainElements = 16384;

template <class Body>  // body(row) for all rows
void for_rows(int64_t rows, int64_t dim, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrainElements / dim);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

// The sum of term(i), in four parts, so that additions need not wait for each other.
template <class Term>
double sum_of(int64_t n, const Term& term) {
  double sum[4] = {};
  for (int64_t i = 0; i < n; ++i) sum[i % 4] += static_cast<double>(term(i));
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

double dot(const float* a, const float* b, int64_t n) {
  return sum_of(n, [&](int64_t i) { return static_cast<double>(a[i]) * b[i]; });
}

double mean(const float* of, int64_t n) {
  return sum_of(n, [&](int64_t i) { return of[i]; }) / static_cast<double>(n);
}

// Mean, standard deviation and mean square of energies.
struct Moments {
  double mean, std, square;
  Moments(const float* e, int64_t n) : mean(fastebm::mean(e, n)) {
    const auto rows = static_cast<double>(n);
    std = std::sqrt(sum_of(n, [&](int64_t i) { return (e[i] - mean) * (e[i] - mean); }) / rows);
    square = dot(e, e, n) / rows;
  }
};

}  // namespace
}  // namespace fastebm
