// The losses of contrastive divergence for a small perceptron on a CPU, put together from the
// kernels of their parts: chains, value, gradient in the parameters and metrics, in one operator,
// as calls of many cost more than a small batch's arithmetic.
#include <algorithm>
#include <cmath>
#include <vector>

#include "langevin_check.h"
#include "langevin_run.h"
#include "mlp_chain_run.h"
#include "mlp_gradient_run.h"
#include "neighbor_ops.h"

namespace fastebm {
namespace {

const char* const kOp = "mlp_contrastive_divergence";
constexpr int64_t kGrainElements = 16384;

const float* values(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
float* values(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

Tensor floats(const Tensor& like, int64_t n) {
  const int64_t one = 1;
  return empty_strided_on(like, &n, &one, 1, aoti_torch_dtype_float32());
}

template <class Body>  // body(row) for all rows
void for_rows(int64_t rows, int64_t dim, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrainElements / dim);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

// In four parts, so that additions need not wait for each other.
double dot(const float* a, const float* b, int64_t n) {
  double sum[4] = {};
  for (int64_t i = 0; i < n; ++i)
    sum[i % 4] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The last step of the chains, and what its derivative needs.
class LastStep {
 public:
  LastStep(MlpGradientRuns* gradient, LangevinParams step, const Tensor& before, bool noise_first)
      : step_(step),
        point_(before),
        grad_(empty_as(before)),
        clipped_(grad_),
        out_(empty_as(before)),
        norms_(floats(before, step.batch)) {
    const int64_t sizes[2] = {step.batch, blocks_per_row(step.dim)}, strides[2] = {sizes[1], 1};
    mask_ = empty_strided_on(before, sizes, strides, 2, aoti_torch_dtype_uint8());
    if (noise_first) {
      LangevinParams noise = step_;  // without a gradient the box and the mask are not used
      point_ = empty_as(before);
      noise.lo = -kInfinity;
      noise.hi = kInfinity;
      noise.x = before.const_data_ptr();
      noise.out = point_.mutable_data_ptr();
      run_blocks<langevin_step_cpu, true>(kOp, before, noise);
      step_.noise_std = 0;
      step_.noise_stds = nullptr;
    }
    MlpGradientParams g{};
    g.batch = step.batch;
    g.x = values(point_);
    Tensor energy = floats(before, step.batch);
    g.energy = values(energy);
    g.grad = values(grad_);
    gradient->run(g);
    clip_norms();
    step_.grad_norm_clip = kInfinity;
    step_.x = point_.const_data_ptr();
    step_.grad = clipped_.const_data_ptr();
    step_.out = out_.mutable_data_ptr();
    step_.mask = static_cast<uint8_t*>(mask_.mutable_data_ptr());
    run_blocks<langevin_step_cpu, true>(kOp, before, step_);
  }

  const Tensor& point() const { return point_; }
  const Tensor& out() const { return out_; }

  double mean_grad_norm() const {
    double sum = 0;
    for (int64_t i = 0; i < step_.batch; ++i) sum += values(norms_)[i];
    return sum / static_cast<double>(step_.batch);
  }

  double clamp_share() const {
    if (step_.lo == -kInfinity && step_.hi == kInfinity) return 0;
    const float *x = values(out_), lo = static_cast<float>(step_.lo),
                hi = static_cast<float>(step_.hi);
    const int64_t n = step_.batch * step_.dim;
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += (x[i] <= lo) | (x[i] >= hi);
    return static_cast<double>(count) / static_cast<double>(n);
  }

  // From d/d out to d/d gradient.
  Tensor pull(const Tensor& to_out) const {
    Tensor to_x = empty_as(to_out), to_grad = empty_as(to_out);
    LangevinBackwardParams p{};
    p.dtype = step_.dtype;
    p.batch = step_.batch;
    p.dim = step_.dim;
    p.grad_out = to_out.const_data_ptr();
    p.mask = step_.mask;
    p.grad_x = to_x.mutable_data_ptr();
    p.grad_grad = to_grad.mutable_data_ptr();
    p.step_size = step_.step_size;
    p.step_sizes = step_.step_sizes;
    run_blocks<langevin_step_backward_cpu, true>(kOp, to_out, p);
    if (bound_ < kInfinity) pull_norms(values(to_grad));
    return to_grad;
  }

 private:
  // Each sample's gradient scaled to a norm of at most the bound.
  void clip_norms() {
    bound_ = step_.grad_norm_clip;
    if (bound_ < kInfinity) clipped_ = empty_as(grad_);
    const int64_t dim = step_.dim;
    const float* grad = values(grad_);
    float *norms = values(norms_), *clipped = values(clipped_);
    for_rows(step_.batch, dim, [&](int64_t row) {
      const float* g = grad + row * dim;
      const double square = dot(g, g, dim);
      norms[row] = static_cast<float>(std::sqrt(square));
      if (bound_ == kInfinity) return;
      const float scale = norm_clip_scale<float>(square, bound_);
      for (int64_t i = 0; i < dim; ++i) clipped[row * dim + i] = scale * g[i];
    });
  }

  // s g has the derivative s (1 - g g^T / |g|^2) where s = bound / |g|.
  void pull_norms(float* to) const {
    const int64_t dim = step_.dim;
    for_rows(step_.batch, dim, [&](int64_t row) {
      const float* g = values(grad_) + row * dim;
      float* t = to + row * dim;
      const double square = dot(g, g, dim), scale = norm_clip_scale<double>(square, bound_);
      if (scale == 1) return;
      const double along = dot(t, g, dim) / square;
      for (int64_t i = 0; i < dim; ++i)
        t[i] = static_cast<float>(scale * (static_cast<double>(t[i]) - along * g[i]));
    });
  }

  LangevinParams step_;
  Tensor point_, grad_, clipped_, out_, mask_, norms_;
  double bound_ = kInfinity;
};

// Mean, standard deviation and mean square of energies.
struct Moments {
  double mean = 0, std = 0, square = 0;
  Moments(const float* e, int64_t n) {
    for (int64_t i = 0; i < n; ++i) mean += e[i];
    mean /= static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) {
      std += (e[i] - mean) * (e[i] - mean);
      square += static_cast<double>(e[i]) * e[i];
    }
    std = std::sqrt(std / static_cast<double>(n));
    square /= static_cast<double>(n);
  }
};

// The step of a chain that comes after its `n_steps` own ones.
LangevinParams step_after(const MlpChainParams& chain) {
  LangevinParams p = chain.step;
  const auto choose = [&](const void** table, const int64_t* stride, double* value) {
    if (!*table) return;
    const float* row = static_cast<const float*>(*table) + chain.n_steps * stride[0];
    *table = stride[1] ? row : nullptr;
    *value = *row;
  };
  choose(&p.step_sizes, chain.step_sizes_stride, &p.step_size);
  choose(&p.noise_stds, chain.noise_stds_stride, &p.noise_std);
  p.t += static_cast<uint32_t>(chain.n_steps);
  return p;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, bool> mlp_contrastive_divergence(
    const Tensor& x_in, const Tensor& start, const std::vector<Tensor>& weights,
    const std::vector<OptionalTensor>& biases, int64_t activation, double beta, double threshold,
    int64_t n_steps, double step_size, double noise_std, const OptionalTensor& step_sizes,
    const OptionalTensor& noise_stds, const Tensor& rng, std::optional<double> grad_clip,
    std::optional<double> grad_norm_clip, std::optional<double> lo, std::optional<double> hi,
    int64_t tag, bool noise_first, double energy_reg_weight, std::optional<double> kl_weight,
    double entropy_weight, double entropy_eps, const OptionalTensor& references,
    const OptionalTensor& own, double y_scale, double y_offset) {
  check_float32(kOp, "x", x_in, x_in);
  check_float32(kOp, "start", start, x_in);
  STD_TORCH_CHECK(x_in.dim() == 2 && x_in.size(0) > 0 && x_in.size(1) > 0, kOp,
                  ": x must have shape (B, D) with B, D >= 1");
  STD_TORCH_CHECK(start.sizes().equals(x_in.sizes()), kOp, ": start must have the shape of x");
  STD_TORCH_CHECK(n_steps >= 0, kOp, ": n_steps must be >= 0, got ", n_steps);
  for (const OptionalTensor& table : {step_sizes, noise_stds})
    STD_TORCH_CHECK(!table || table->is_contiguous(), kOp,
                    ": step_sizes and noise_stds must be contiguous");
  const Tensor x = dense(x_in);
  const int64_t n = x.size(0), dim = x.size(1);
  MlpChainParams chain{};
  chain.step = langevin_params(kOp, x, step_size, noise_std, std::nullopt, std::nullopt, rng, 0,
                               std::nullopt, grad_clip, grad_norm_clip, lo, hi, tag);
  std::vector<Tensor> kept;
  chain.mlp = mlp_network(kOp, x, weights, biases, activation, beta, threshold, &kept);
  chain.step.step_sizes =
      coefficient_table(kOp, "step_sizes", step_sizes, x, n_steps + 1, chain.step_sizes_stride);
  chain.step.noise_stds =
      coefficient_table(kOp, "noise_stds", noise_stds, x, n_steps + 1, chain.noise_stds_stride);
  chain.n_steps = n_steps;
  chain.noise_first = noise_first;
  Tensor before = empty_as(x);
  std::copy_n(values(dense(start)), n * dim, values(before));
  chain.step.x = chain.step.out = values(before);
  run_mlp_chain_cpu(chain);

  const LangevinParams step = step_after(chain);
  const Mlp& mlp = chain.mlp;
  MlpGradientRuns gradient(mlp, 2 * n);
  const LastStep last(&gradient, step, before, noise_first);
  Tensor both = floats(x, 2 * n * dim), energy = floats(x, 2 * n), to_x = empty_as(x);
  std::copy_n(values(x), n * dim, values(both));
  std::copy_n(values(last.out()), n * dim, values(both) + n * dim);
  MlpGradientParams g{};
  g.summed = true;
  g.batch = 2 * n;
  g.n_data = n;
  g.x = values(both);
  g.factor = static_cast<float>(1.0 / static_cast<double>(n));
  g.square_factor = static_cast<float>(2 * energy_reg_weight / static_cast<double>(n));
  g.energy = values(energy);
  g.grad = kl_weight ? values(to_x) : nullptr;
  gradient.run(g);

  const Moments pos(values(energy), n), neg(values(energy) + n, n);
  const double gap = pos.mean - neg.mean, squares = pos.square + neg.square;
  double loss = gap, entropy = 0;
  if (energy_reg_weight != 0) loss += energy_reg_weight * squares;
  if (kl_weight) {
    // The negative phase and the KL term are energies of the same points: v is a gradient there,
    // by the last step's derivative a gradient in that step's own gradient.
    Tensor slope = to_x;
    const bool entropic = entropy_weight != 0 && (references ? references->size(0) : n) > 1;
    if (entropic) {
      OptionalTensor others = own;
      if (!references) {
        const int64_t one = 1;
        others = empty_strided_on(x, &n, &one, 1, aoti_torch_dtype_int64());
        auto* ids = static_cast<int64_t*>(others->mutable_data_ptr());
        for (int64_t i = 0; i < n; ++i) ids[i] = i;
      }
      const auto found = nn_log_distance_cpu(last.out(), references ? *references : last.out(),
                                             others, entropy_eps, y_scale, y_offset);
      entropy = values(std::get<0>(found))[0];
      slope = std::get<1>(found);
    }
    const float* push = values(slope);
    const auto by = static_cast<float>(*kl_weight / static_cast<double>(n)),
               off = static_cast<float>(entropy_weight);
    float* v = values(to_x);
    for_rows(n, dim, [&](int64_t row) {
      for (int64_t i = row * dim; i < (row + 1) * dim; ++i)
        v[i] = entropic ? by * v[i] - off * push[i] : by * v[i];
    });
    const Tensor to_grad = last.pull(to_x);
    g.batch = n;
    g.n_data = 0;
    g.x = values(last.point());
    g.v = values(to_grad);
    g.factor = g.square_factor = 0;
    Tensor unused = floats(x, n);
    g.energy = values(unused);
    g.grad = nullptr;
    gradient.run(g);
    loss += *kl_weight * neg.mean - entropy_weight * entropy;
  }
  Tensor sums = floats(x, parameter_count(mlp));
  std::fill_n(values(sums), sums.size(0), 0.0f);
  gradient.add_to(values(sums));
  const double all[] = {loss,
                        pos.mean,
                        neg.mean,
                        pos.std,
                        neg.std,
                        gap,
                        squares,
                        last.mean_grad_norm(),
                        last.clamp_share(),
                        entropy};
  Tensor metrics = floats(x, sizeof(all) / sizeof(double));
  std::transform(std::begin(all), std::end(all), values(metrics),
                 [](double v) { return static_cast<float>(v); });
  double total = pos.mean + neg.mean;
  for (int64_t i = 0; i < n * dim; ++i) total += values(last.out())[i];
  return {before, last.out(), energy, sums, metrics, std::isfinite(total)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "mlp_contrastive_divergence(Tensor x, Tensor start, Tensor[] weights, Tensor?[] biases, "
      "int activation, float beta, float threshold, int n_steps, float step_size, float noise_std, "
      "Tensor? step_sizes, Tensor? noise_stds, Tensor rng, float? grad_clip, "
      "float? grad_norm_clip, float? lo, float? hi, int tag, bool noise_first, "
      "float energy_reg_weight, float? kl_weight, float entropy_weight, float entropy_eps, "
      "Tensor? references, Tensor? own, float y_scale, float y_offset) "
      "-> (Tensor before, Tensor x_neg, Tensor energy, Tensor sums, Tensor metrics, bool finite)");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
  m.impl("mlp_contrastive_divergence", TORCH_BOX(&mlp_contrastive_divergence));
}

}  // namespace fastebm
