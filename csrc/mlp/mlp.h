// A small multi-layer perceptron, as the operators on its energy take it. No torch, no Python.
//
// E(x) = w_L . h_L + b_L + 1/2 sum_i p_i (x_i - m_i)^2 with h_0 = x, z_l = W_l h_(l-1) + b_l,
// h_l = act(z_l), and p, m of a Gaussian base, if there is one. Each sample may have a b_1 of its
// own, by which a condition enters: W_c c + b_1. The gradient, with the slopes s_l = act'(z_l):
// g_L = w_L * s_L, g_(l-1) = (W_l^T g_l) * s_(l-1), grad = W_1^T g_1 + p (x - m).
#pragma once
#include <cstdint>

#include "launch/scalar.h"

namespace fastebm {

constexpr int kMaxHidden = 4;     // hidden layers, at least 1
constexpr int kMaxWidth = 512;    // of a hidden layer
constexpr int kMaxDimCuda = 512;  // of a sample, on a device; a CPU takes any

enum class Activation { kSilu, kTanh, kRelu, kSoftplus, kGelu, kGeluTanh, kLeakyRelu, kElu };
constexpr int kActivations = 8;

// Weights are dense and row-major as torch keeps them, float32.
struct Mlp {
  int64_t dim;
  int hidden;                           // hidden layers; there are hidden + 1 linear ones
  int width[kMaxHidden];                // of each hidden layer
  const float* weight[kMaxHidden + 1];  // layer l: (width[l], width[l - 1]); the last (1, width)
  const float* bias[kMaxHidden + 1];    // null for none, or one value for each output
  Activation activation;
  // Of softplus, log(1 + exp(beta z)) / beta, and z where beta z is above the threshold; beta is
  // also the slope of leaky_relu where z < 0, and elu's in beta (exp(z) - 1) where z < 0.
  float beta, threshold;
  const float* base_precision;  // null for no base, or (dim,)
  const float* base_mean;       // null for zeros, or (dim,)

  FASTEBM_HD int64_t inputs(int layer) const { return layer ? width[layer - 1] : dim; }
};

// Returns f(constant) for the activation, as a compile-time constant.
template <Activation kActivation>
struct ActivationConstant {
  static constexpr Activation value = kActivation;
};
template <class F>
FASTEBM_HD int visit_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kSilu:
      return f(ActivationConstant<Activation::kSilu>{});
    case Activation::kTanh:
      return f(ActivationConstant<Activation::kTanh>{});
    case Activation::kRelu:
      return f(ActivationConstant<Activation::kRelu>{});
    case Activation::kSoftplus:
      return f(ActivationConstant<Activation::kSoftplus>{});
    case Activation::kGelu:
      return f(ActivationConstant<Activation::kGelu>{});
    case Activation::kGeluTanh:
      return f(ActivationConstant<Activation::kGeluTanh>{});
    case Activation::kLeakyRelu:
      return f(ActivationConstant<Activation::kLeakyRelu>{});
    default:
      return f(ActivationConstant<Activation::kElu>{});
  }
}

}  // namespace fastebm
