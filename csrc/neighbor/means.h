// Means of the neighbours of some samples, and how far apart these are: launchers and the
// arithmetic, in float64 and rounded once.
#pragma once
#include <cmath>

#include "launch/scalar.h"

namespace fastebm {

constexpr float kLeastScale = 1e-6f;

// All arrays are dense. Samples are of dim elements.
struct NeighborMeansParams {
  int64_t n, m, dim;
  int k;
  const float* y;         // (m, dim)
  const int64_t* chosen;  // (n,): whose neighbours
  const int64_t* index;   // (n, k): the neighbours, -1 where there is none
  float* means;           // (n, dim)
  float* scales;          // (n,)
};

// means = the chosen samples; then, of these neighbours, means and scales. The CPU launchers work
// on rows [begin, end), the CUDA ones on all, on `stream`, and return 0 or a cudaError_t.
using NeighborMeansLauncher = int(const NeighborMeansParams&, int64_t begin, int64_t end,
                                  void* stream);
NeighborMeansLauncher chosen_samples_cpu, chosen_samples_cuda, neighbor_means_cpu,
    neighbor_means_cuda;

// The row of y that an index stands for; one out of range, which a device does not look at, for the
// first or the last.
FASTEBM_HD int64_t row_within(int64_t index, int64_t m) {
  return index < 0 ? 0 : index < m ? index : m - 1;
}

FASTEBM_HD void copy_chosen(const NeighborMeansParams& p, int64_t i, int64_t element) {
  p.means[i * p.dim + element] = p.y[row_within(p.chosen[i], p.m) * p.dim + element];
}

// Sets the mean of an element; returns the sum of squares around it.
FASTEBM_HD double mean_of_neighbors(const NeighborMeansParams& p, int64_t i, int64_t element) {
  const auto value = [&](int j) {
    return static_cast<double>(p.y[row_within(p.index[i * p.k + j], p.m) * p.dim + element]);
  };
  double sum = 0, squares = 0;
  for (int j = 0; j < p.k; ++j) sum += value(j);
  const double mean = sum / p.k;
  for (int j = 0; j < p.k; ++j) squares += (value(j) - mean) * (value(j) - mean);
  p.means[i * p.dim + element] = static_cast<float>(mean);
  return squares;
}

// From the squares of all elements; NaN stays NaN. One neighbour says nothing of it: 1.
FASTEBM_HD float scale_of_neighbors(const NeighborMeansParams& p, double squares) {
  if (p.k == 1) return 1.0f;
  const auto scale =
      static_cast<float>(std::sqrt(squares / static_cast<double>((p.k - 1) * p.dim)));
  return scale < kLeastScale ? kLeastScale : scale;
}

}  // namespace fastebm
