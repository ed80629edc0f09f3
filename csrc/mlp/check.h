// Checks that the operators on a perceptron's energy share.
#pragma once
#include <cmath>
#include <vector>

#include "launch/ops.h"
#include "mlp/mlp.h"

namespace fastebm {

inline const float* kept_floats(const Tensor& t, std::vector<Tensor>* kept) {
  kept->push_back(dense(t));
  return static_cast<const float*>(kept->back().const_data_ptr());
}

// The Gaussian base of the energy. On a device its values are not looked at.
inline void set_base(const char* op, const Tensor& x, const OptionalTensor& precision,
                     const OptionalTensor& mean, Mlp* mlp, std::vector<Tensor>* kept) {
  FASTEBM_CHECK(precision || !mean, op, ": base_mean needs base_precision");
  const auto values = [&](const char* what, const OptionalTensor& t) -> const float* {
    if (!t) return nullptr;
    check_float32(op, what, *t, x);
    FASTEBM_CHECK(t->dim() == 1 && t->size(0) == mlp->dim, op, ": ", what, " must have shape (",
                  mlp->dim, ",), one value for each element of a sample");
    return kept_floats(*t, kept);
  };
  mlp->base_precision = values("base_precision", precision);
  mlp->base_mean = values("base_mean", mean);
  for (int64_t i = 0; !x.is_cuda() && i < mlp->dim; ++i) {
    const float p = precision ? mlp->base_precision[i] : 0.0f, m = mean ? mlp->base_mean[i] : 0.0f;
    FASTEBM_CHECK(p >= 0 && std::isfinite(p), op, ": base_precision must be finite and >= 0, got ",
                  p, " for element ", i);
    FASTEBM_CHECK(std::isfinite(m), op, ": base_mean must be finite, got ", m, " for element ", i);
  }
}

// The network; what is not dense is copied, and kept in *kept.
inline Mlp mlp_network(const char* op, const Tensor& x, const std::vector<Tensor>& weights,
                       const std::vector<OptionalTensor>& biases, int64_t activation, double beta,
                       double threshold, const OptionalTensor& base_precision,
                       const OptionalTensor& base_mean, std::vector<Tensor>* kept) {
  const auto layers = static_cast<int64_t>(weights.size());
  FASTEBM_CHECK(layers >= 2 && layers <= kMaxHidden + 1, op, ": weights must be those of 2..",
                kMaxHidden + 1, " layers, got ", layers);
  FASTEBM_CHECK(biases.size() == weights.size(), op, ": biases must hold one for each of the ",
                layers, " layers, or None for it, got ", biases.size());
  FASTEBM_CHECK(activation >= 0 && activation < kActivations, op, ": activation must be in 0..",
                kActivations - 1, ", got ", activation);
  check_finite(op, "beta", beta);
  const bool softplus = static_cast<Activation>(activation) == Activation::kSoftplus;
  FASTEBM_CHECK(!softplus || static_cast<float>(beta) > 0, op,
                ": beta of softplus must be > 0, also in float32, got ", beta);
  FASTEBM_CHECK(threshold == threshold, op, ": threshold must be a number, got ", threshold);
  Mlp mlp{};
  mlp.dim = sample_dim(x);
  mlp.hidden = static_cast<int>(layers) - 1;
  mlp.activation = static_cast<Activation>(activation);
  mlp.beta = static_cast<float>(beta);
  mlp.threshold = static_cast<float>(threshold);
  int64_t inputs = mlp.dim;
  for (int l = 0; l <= mlp.hidden; ++l) {
    const Tensor& weight = weights[static_cast<size_t>(l)];
    check_float32(op, "weights", weight, x);
    FASTEBM_CHECK(weight.dim() == 2 && weight.size(1) == inputs, op, ": weights[", l,
                  "] must have shape (outputs, ", inputs, ")");
    const int64_t outputs = weight.size(0), most = l < mlp.hidden ? kMaxWidth : 1;
    FASTEBM_CHECK(outputs >= 1 && outputs <= most, op, ": weights[", l, "] must have 1..", most,
                  " outputs, got ", outputs);
    mlp.weight[l] = kept_floats(weight, kept);
    if (const OptionalTensor& bias = biases[static_cast<size_t>(l)]) {
      check_float32(op, "biases", *bias, x);
      FASTEBM_CHECK(bias->dim() == 1 && bias->size(0) == outputs, op, ": biases[", l,
                    "] must have shape (", outputs, ",)");
      mlp.bias[l] = kept_floats(*bias, kept);
    }
    if (l < mlp.hidden) mlp.width[l] = static_cast<int>(outputs);
    inputs = outputs;
  }
  set_base(op, x, base_precision, base_mean, &mlp, kept);
  return mlp;
}

// First-layer biases of `rows` samples each, (rows, width_1), or null for none; kept as above.
inline const float* row_biases(const char* op, const char* what, const OptionalTensor& t,
                               const Tensor& x, const Mlp& mlp, int64_t rows,
                               std::vector<Tensor>* kept) {
  if (!t) return nullptr;
  check_float32(op, what, *t, x);
  FASTEBM_CHECK(t->dim() == 2 && t->size(0) == rows && t->size(1) == mlp.width[0], op, ": ", what,
                " must have shape (", rows, ", ", mlp.width[0],
                "), the first layer's biases of each sample");
  return kept_floats(*t, kept);
}

// What a device's kernels take.
inline void check_for_device(const char* op, const Mlp& mlp) {
  FASTEBM_CHECK(mlp.dim <= kMaxDimCuda, op, ": samples may have at most ", kMaxDimCuda,
                " elements on a device, got ", mlp.dim);
}

}  // namespace fastebm
