// How the gradient in the parameters of a small perceptron is run.
#pragma once
#include "launch/ops.h"
#include "launch/scratch.h"
#include "mlp/gradient/gradient.h"

namespace fastebm {

// How many parameters there are, counting a missing bias.
inline int64_t parameter_count(const Mlp& mlp) {
  int64_t n = 1 + mlp.inputs(mlp.hidden);
  for (int l = 0; l < mlp.hidden; ++l) n += mlp.width[l] * (mlp.inputs(l) + 1);
  return n;
}

// Runs on one network in torch's thread pool, and what they add up. One at a time in a thread.
class MlpGradientRuns {
 public:
  MlpGradientRuns(const Mlp& mlp, int64_t most_samples) {
    shared_.mlp = mlp;
    shared_.batch = most_samples;
    const int64_t bytes =
        mlp_gradient_scratch_cpu(&shared_, static_cast<int>(torch::stable::get_num_threads()));
    shared_.scratch = kept_scratch<MlpGradientParams>(bytes, &large_).take(bytes);
  }

  void run(MlpGradientParams p) {
    p.mlp = shared_.mlp;
    p.shares = shared_.shares;
    p.tasks = shared_.tasks;
    p.scratch = shared_.scratch;
    p.fresh = p.summed && !summed_;
    summed_ |= p.summed;
    torch::stable::parallel_for(0, p.tasks, 1, [&](int64_t begin, int64_t end) {
      mlp_gradient_cpu(p, begin, end, nullptr);
    });
  }

  // Adds the sums of all runs that have some.
  void add_to(float* sums) const {
    if (!summed_) return;
    constexpr int64_t kGrain = 16384;
    torch::stable::parallel_for(
        0, mlp_gradient_sums_cpu(shared_), kGrain,
        [&](int64_t begin, int64_t end) { mlp_gradient_join_cpu(shared_, begin, end); });
    mlp_gradient_sum_cpu(shared_, sums);
  }

 private:
  Scratch large_;
  MlpGradientParams shared_{};
  bool summed_ = false;
};

}  // namespace fastebm
