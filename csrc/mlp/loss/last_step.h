// The last step of the chains, which the loss is differentiated through, and the memory it needs.
#pragma once
#include <algorithm>
#include <cmath>

#include "langevin/langevin.h"
#include "launch/block_run.h"
#include "mlp/gradient/run.h"
#include "mlp/loss/floats.h"

namespace fastebm {
namespace {

// What the operator needs of memory beside its results; (n, dim) unless said.
struct Work {
  float *point, *grad, *clipped, *to_x, *to_grad;
  float* both;                    // (2 n, dim): data and chains
  float *norms, *on_face, *sums;  // (n,), of each chain
  float* energy;                  // (2 n,)
  uint8_t* mask;                  // of langevin_step

  // Lays it out at `base`; returns how many bytes it takes.
  int64_t lay_out(int64_t n, int64_t dim, char* base) {
    int64_t used = 0;
    const auto take = [&](int64_t bytes) {
      char* at = base ? base + used : nullptr;
      used += (bytes + 63) / 64 * 64;
      return at;
    };
    for (float** array : {&point, &grad, &clipped, &to_x, &to_grad})
      *array = reinterpret_cast<float*>(take(n * dim * 4));
    both = reinterpret_cast<float*>(take(2 * n * dim * 4));
    for (float** array : {&norms, &on_face, &sums}) *array = reinterpret_cast<float*>(take(n * 4));
    energy = reinterpret_cast<float*>(take(2 * n * 4));
    mask = reinterpret_cast<uint8_t*>(take(n * blocks_per_row(dim)));
    return used;
  }
};

// The last step of the chains, from `before` to `out`.
class LastStep {
 public:
  LastStep(const char* op, const Work& work, MlpGradientRuns* gradient, LangevinParams step,
           const float* row_bias, bool noise_first, const Tensor& before, Tensor* out)
      : work_(work), step_(step), bound_(step.grad_norm_clip), n_(step.batch), dim_(step.dim) {
    point_ = values(before);
    if (noise_first) {
      LangevinParams noise = step_;  // without a gradient there are no bounds
      noise.displacement_clip = kInfinity;
      noise.lo = -kInfinity;
      noise.hi = kInfinity;
      noise.x = point_;
      noise.out = work.point;
      run_blocks<langevin_step_cpu, true>(op, before, noise);
      point_ = work.point;
      step_.noise_std = 0;
      step_.noise_stds = nullptr;
    }
    MlpGradientParams g{};
    g.batch = n_;
    g.x = point_;
    g.row_bias = row_bias;
    g.energy = work.energy;
    g.grad = work.grad;
    gradient->run(g);
    for_rows(n_, dim_, [&](int64_t row) { clip_norm(row); });
    step_.grad_norm_clip = kInfinity;
    step_.x = point_;
    step_.grad = bound_ < kInfinity ? work.clipped : work.grad;
    step_.out = values(*out);
    step_.mask = work.mask;
    run_blocks<langevin_step_cpu, true>(op, before, step_);
    for_rows(n_, dim_, [&](int64_t row) { look_at(row); });
  }

  const float* point() const { return point_; }
  double mean_grad_norm() const { return mean(work_.norms, n_); }
  double clamp_share() const { return mean(work_.on_face, n_) / static_cast<double>(dim_); }
  double sum() const { return mean(work_.sums, n_); }

  // work.to_grad = d/d gradient, from d/d out = by work.to_x - off push; push may be null.
  void pull(float by, float off, const float* push) const {
    const int64_t blocks = blocks_per_row(dim_);
    LangevinBackwardParams p{};
    p.batch = n_;
    p.dim = dim_;
    p.grad_out = p.grad_x = work_.to_x;
    p.mask = work_.mask;
    p.grad_grad = work_.to_grad;
    p.step_size = step_.step_size;
    p.step_sizes = step_.step_sizes;
    for_rows(n_, dim_, [&](int64_t row) {
      for (int64_t i = row * dim_; i < (row + 1) * dim_; ++i)
        work_.to_x[i] = push ? by * work_.to_x[i] - off * push[i] : by * work_.to_x[i];
      for (int64_t block = 0; block < blocks; ++block)
        langevin_backward_block<float>(p, row, block, blocks);
      if (bound_ < kInfinity) pull_norm(row);
    });
  }

 private:
  // The chain's gradient scaled to a norm of at most the bound.
  void clip_norm(int64_t row) {
    const float* g = work_.grad + row * dim_;
    const double square = dot(g, g, dim_);
    work_.norms[row] = static_cast<float>(std::sqrt(square));
    if (bound_ == kInfinity) return;
    const float scale = norm_clip_scale<float>(square, bound_);
    for (int64_t i = 0; i < dim_; ++i) work_.clipped[row * dim_ + i] = scale * g[i];
  }

  // s g has the derivative s (1 - g g^T / |g|^2) where s = bound / |g|.
  void pull_norm(int64_t row) const {
    const float* g = work_.grad + row * dim_;
    float* to = work_.to_grad + row * dim_;
    const double square = dot(g, g, dim_), scale = norm_clip_scale<double>(square, bound_);
    if (scale == 1) return;
    const double along = dot(to, g, dim_) / square;
    for (int64_t i = 0; i < dim_; ++i)
      to[i] = static_cast<float>(scale * (static_cast<double>(to[i]) - along * g[i]));
  }

  void look_at(int64_t row) {
    const float* x = static_cast<const float*>(step_.out) + row * dim_;
    const auto lo = static_cast<float>(step_.lo), hi = static_cast<float>(step_.hi);
    int32_t on_face = 0;
    if (step_.lo > -kInfinity || step_.hi < kInfinity)
      for (int64_t i = 0; i < dim_; ++i) on_face += (x[i] <= lo) | (x[i] >= hi);
    work_.on_face[row] = static_cast<float>(on_face);
    work_.sums[row] = static_cast<float>(sum_of(dim_, [&](int64_t i) { return x[i]; }));
  }

  Work work_;
  LangevinParams step_;
  double bound_;
  int64_t n_, dim_;
  const float* point_;
};

}  // namespace
}  // namespace fastebm
