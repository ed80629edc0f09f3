// How the gradient in the parameters of a small perceptron is run.
#pragma once
#include "mlp_gradient.h"
#include "ops.h"
#include "scratch.h"

namespace fastebm {

// How many parameters there are, counting a missing bias.
inline int64_t parameter_count(const Mlp& mlp) {
  int64_t n = 1 + mlp.inputs(mlp.hidden);
  for (int l = 0; l < mlp.hidden; ++l) n += mlp.width[l] * (mlp.inputs(l) + 1);
  return n;
}

// Fills in the scratch, and runs in torch's thread pool; adds to `sums` unless it is null.
inline void run_mlp_gradient(MlpGradientParams p, float* sums) {
  if (p.batch == 0) return;
  p.summed = sums != nullptr;
  const int64_t bytes =
      mlp_gradient_scratch_cpu(&p, static_cast<int>(torch::stable::get_num_threads()));
  Scratch large;
  p.scratch = kept_scratch<MlpGradientParams>(bytes, &large).take(bytes);
  torch::stable::parallel_for(
      0, p.tasks, 1, [&](int64_t begin, int64_t end) { mlp_gradient_cpu(p, begin, end, nullptr); });
  if (sums) mlp_gradient_sum_cpu(p, sums);
}

}  // namespace fastebm
