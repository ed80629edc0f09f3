// Checks that the operators on a perceptron's energy share.
#pragma once
#include <vector>

#include "launch/ops.h"
#include "mlp/mlp.h"

namespace fastebm {

// The network; what is not dense is copied, and kept in *kept.
inline Mlp mlp_network(const char* op, const Tensor& x, const std::vector<Tensor>& weights,
                       const std::vector<OptionalTensor>& biases, int64_t activation, double beta,
                       double threshold, std::vector<Tensor>* kept) {
  const auto layers = static_cast<int64_t>(weights.size());
  FASTEBM_CHECK(layers >= 2 && layers <= kMaxHidden + 1, op, ": weights must be those of 2..",
                kMaxHidden + 1, " layers, got ", layers);
  FASTEBM_CHECK(biases.size() == weights.size(), op, ": biases must hold one for each of the ",
                layers, " layers, or None for it, got ", biases.size());
  FASTEBM_CHECK(activation >= 0 && activation < kActivations, op, ": activation must be in 0..",
                kActivations - 1, ", got ", activation);
  FASTEBM_CHECK(static_cast<float>(beta) > 0 && beta < kInfinity, op,
                ": beta must be finite and > 0, also in float32, got ", beta);
  check_finite(op, "beta", beta);
  FASTEBM_CHECK(threshold == threshold, op, ": threshold must be a number, got ", threshold);
  Mlp mlp{};
  mlp.dim = sample_dim(x);
  mlp.hidden = static_cast<int>(layers) - 1;
  mlp.activation = static_cast<Activation>(activation);
  mlp.beta = static_cast<float>(beta);
  mlp.threshold = static_cast<float>(threshold);
  int64_t inputs = mlp.dim;
  const auto keep = [&](const Tensor& t) {
    kept->push_back(dense(t));
    return static_cast<const float*>(kept->back().const_data_ptr());
  };
  for (int l = 0; l <= mlp.hidden; ++l) {
    const Tensor& weight = weights[static_cast<size_t>(l)];
    check_float32(op, "weights", weight, x);
    FASTEBM_CHECK(weight.dim() == 2 && weight.size(1) == inputs, op, ": weights[", l,
                  "] must have shape (outputs, ", inputs, ")");
    const int64_t outputs = weight.size(0), most = l < mlp.hidden ? kMaxWidth : 1;
    FASTEBM_CHECK(outputs >= 1 && outputs <= most, op, ": weights[", l, "] must have 1..", most,
                  " outputs, got ", outputs);
    mlp.weight[l] = keep(weight);
    if (const OptionalTensor& bias = biases[static_cast<size_t>(l)]) {
      check_float32(op, "biases", *bias, x);
      FASTEBM_CHECK(bias->dim() == 1 && bias->size(0) == outputs, op, ": biases[", l,
                    "] must have shape (", outputs, ",)");
      mlp.bias[l] = keep(*bias);
    }
    if (l < mlp.hidden) mlp.width[l] = static_cast<int>(outputs);
    inputs = outputs;
  }
  return mlp;
}

}  // namespace fastebm
