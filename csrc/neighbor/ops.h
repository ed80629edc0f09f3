// What other operators take of those on nearest neighbours, on a CPU.
#pragma once
#include "launch/ops.h"

namespace fastebm {

// What that operator asks of its arguments.
void check_log_distance(const Tensor& x, const Tensor& y, const OptionalTensor& skip, double eps,
                        double y_scale, double y_offset);

// The operator nn_log_distance: value, its gradient in x, distances.
std::tuple<Tensor, Tensor, Tensor> nn_log_distance_cpu(const Tensor& x, const Tensor& y,
                                                       const OptionalTensor& skip, double eps,
                                                       double y_scale, double y_offset);

// The operator neighbor_means: means and scales.
std::tuple<Tensor, Tensor> means_of_neighbors_cpu(const Tensor& y, const Tensor& chosen, int64_t k);

}  // namespace fastebm
