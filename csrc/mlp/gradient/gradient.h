// The gradient, in the parameters of a small perceptron, of
//   S = sum_i c_i E(x_i) + square_factor E(x_i)^2 / 2 + v_i . dE(x_i)/dx,
// c_i = factor for the first n_data samples and -factor for the others, which is what losses of
// contrastive divergence are made of: what a caller fills in and the launchers. No torch, no
// Python.
//
// With the passes of mlp/mlp.h, a_i = c_i + square_factor E_i, and the dots of h and z for their
// derivatives along v: t_0 = v, dz_l = W_l t_(l-1), t_l = s_l dz_l. v . dE/dx is the dot of E, and
// depends on z_l through the slopes: r_l = act''(z_l) dz_l (dE/dh_l) + s_l (W_(l+1)^T r_(l+1)). So
//   dS/dW_l = sum_i (a_i g_l + r_l) h_(l-1)^T + g_l t_(l-1)^T,   dS/db_l = sum_i a_i g_l + r_l,
//   dS/dw_L = sum_i a_i h_L + t_L,                               dS/db_L = sum_i a_i.
#pragma once
#include "mlp/mlp.h"

namespace fastebm {

struct MlpGradientParams {
  Mlp mlp;
  int64_t batch, n_data;
  const float* x;         // (B, D), dense
  const float* v;         // null for none, or (B, D)
  const float* row_bias;  // null, or (B, width_1): each sample's first-layer biases, for mlp's
  float factor, square_factor;
  float* energy;       // (B,): E
  float* grad;         // null, or (B - n_data, D): dE/dx of the samples after the first n_data
  float* to_row_bias;  // null, or (B, width_1): dS/d row_bias is added, where `summed`
  bool summed;         // whether the gradient in the parameters is wanted
  bool fresh;     // and whether it begins at zero, not at what the run before left in the scratch
  void* scratch;  // mlp_gradient_scratch_cpu() bytes, 64-byte aligned
  int shares;     // of the batch, each with sums of its own in the scratch: as many as sizes say,
  int tasks;      // for any number of threads. Tasks go through them, each with memory of its own
};

// The tasks [begin, end) of p.tasks; 0.
int mlp_gradient_cpu(const MlpGradientParams& p, int64_t begin, int64_t end, void* stream);

// Adds the numbers [begin, end) of the sums of all shares to those of the first one, out of
// mlp_gradient_sums_cpu() of them.
int64_t mlp_gradient_sums_cpu(const MlpGradientParams& p);
void mlp_gradient_join_cpu(const MlpGradientParams& p, int64_t begin, int64_t end);
// Adds the first share's to `sums`: for each layer its weights, row by row, then its biases.
void mlp_gradient_sum_cpu(const MlpGradientParams& p, float* sums);

// Sets p->shares and, for so many threads, p->tasks, and returns the bytes of scratch.
int64_t mlp_gradient_scratch_cpu(MlpGradientParams* p, int threads);

}  // namespace fastebm
