// The losses of contrastive divergence for a small perceptron on a CPU, put together from the
// kernels of their parts: chains, value, gradient in the parameters and metrics, in one operator,
// as calls of many cost more than a small batch's arithmetic.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <vector>

#include "langevin/check.h"
#include "launch/block_run.h"
#include "mlp/chain/run.h"
#include "mlp/gradient/run.h"
#include "neighbor/ops.h"

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

// The sum of term(i), in four parts, so that additions need not wait for each other.
template <class Term>
double sum_of(int64_t n, const Term& term) {
  double sum[4] = {};
  for (int64_t i = 0; i < n; ++i) sum[i % 4] += static_cast<double>(term(i));
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

double dot(const float* a, const float* b, int64_t n) {
  return sum_of(n, [&](int64_t i) { return static_cast<double>(a[i]) * b[i]; });
}

double mean(const float* of, int64_t n) {
  return sum_of(n, [&](int64_t i) { return of[i]; }) / static_cast<double>(n);
}

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
  LastStep(const Work& work, MlpGradientRuns* gradient, LangevinParams step, bool noise_first,
           const Tensor& before, Tensor* out)
      : work_(work), step_(step), bound_(step.grad_norm_clip), n_(step.batch), dim_(step.dim) {
    point_ = values(before);
    if (noise_first) {
      LangevinParams noise = step_;  // without a gradient there is no box
      noise.lo = -kInfinity;
      noise.hi = kInfinity;
      noise.x = point_;
      noise.out = work.point;
      run_blocks<langevin_step_cpu, true>(kOp, before, noise);
      point_ = work.point;
      step_.noise_std = 0;
      step_.noise_stds = nullptr;
    }
    MlpGradientParams g{};
    g.batch = n_;
    g.x = point_;
    g.energy = work.energy;
    g.grad = work.grad;
    gradient->run(g);
    for_rows(n_, dim_, [&](int64_t row) { clip_norm(row); });
    step_.grad_norm_clip = kInfinity;
    step_.x = point_;
    step_.grad = bound_ < kInfinity ? work.clipped : work.grad;
    step_.out = values(*out);
    step_.mask = work.mask;
    run_blocks<langevin_step_cpu, true>(kOp, before, step_);
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

// Mean, standard deviation and mean square of energies.
struct Moments {
  double mean, std, square;
  Moments(const float* e, int64_t n) : mean(fastebm::mean(e, n)) {
    const auto rows = static_cast<double>(n);
    std = std::sqrt(sum_of(n, [&](int64_t i) { return (e[i] - mean) * (e[i] - mean); }) / rows);
    square = dot(e, e, n) / rows;
  }
};

// 0 .. n - 1: each sample is its own reference.
Tensor everyone(const Tensor& x) {
  const int64_t n = x.size(0), one = 1;
  Tensor ids = empty_strided_on(x, &n, &one, 1, aoti_torch_dtype_int64());
  auto* begin = static_cast<int64_t*>(ids.mutable_data_ptr());
  std::iota(begin, begin + n, 0);
  return ids;
}

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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, bool>
mlp_contrastive_divergence(
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
  STD_TORCH_CHECK(x_in.dim() > 0 && x_in.numel() > 0, kOp,
                  ": x must have shape (B, *event), and hold something");
  STD_TORCH_CHECK(start.sizes().equals(x_in.sizes()), kOp, ": start must have the shape of x");
  STD_TORCH_CHECK(n_steps >= 0, kOp, ": n_steps must be >= 0, got ", n_steps);
  for (const OptionalTensor& table : {step_sizes, noise_stds})
    STD_TORCH_CHECK(!table || table->is_contiguous(), kOp,
                    ": step_sizes and noise_stds must be contiguous");
  const Tensor x = dense(x_in);
  const int64_t n = x.size(0), dim = sample_dim(x);
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
  Work work;
  const int64_t bytes = work.lay_out(n, dim, nullptr);
  Scratch large;
  work.lay_out(n, dim, static_cast<char*>(kept_scratch<Work>(bytes, &large).take(bytes)));
  MlpGradientRuns gradient(mlp, 2 * n);
  Tensor x_neg = empty_as(x), e_pos = floats(x, n), e_neg = floats(x, n);
  const LastStep last(work, &gradient, step, noise_first, before, &x_neg);
  std::copy_n(values(x), n * dim, work.both);
  std::copy_n(values(x_neg), n * dim, work.both + n * dim);
  MlpGradientParams g{};
  g.summed = true;
  g.batch = 2 * n;
  g.n_data = n;
  g.x = work.both;
  g.factor = static_cast<float>(1.0 / static_cast<double>(n));
  g.square_factor = static_cast<float>(2 * energy_reg_weight / static_cast<double>(n));
  g.energy = work.energy;
  g.grad = kl_weight ? work.to_x : nullptr;
  gradient.run(g);

  std::copy_n(work.energy, n, values(e_pos));
  std::copy_n(work.energy + n, n, values(e_neg));
  const Moments pos(values(e_pos), n), neg(values(e_neg), n);
  const double gap = pos.mean - neg.mean, squares = pos.square + neg.square;
  double loss = gap, entropy = 0;
  if (energy_reg_weight != 0) loss += energy_reg_weight * squares;
  if (kl_weight) {
    // The negative phase and the KL term are energies of the same points: v is a gradient there,
    // by the last step's derivative a gradient in that step's own gradient.
    const bool entropic = entropy_weight != 0 && (references ? references->size(0) : n) > 1;
    OptionalTensor push;
    if (entropic) {
      auto found =
          nn_log_distance_cpu(x_neg, references ? *references : x_neg,
                              references ? own : everyone(x), entropy_eps, y_scale, y_offset);
      entropy = values(std::get<0>(found))[0];
      push = std::get<1>(found);
    }
    last.pull(static_cast<float>(*kl_weight / static_cast<double>(n)),
              static_cast<float>(entropy_weight), push ? values(*push) : nullptr);
    g.batch = n;
    g.n_data = 0;
    g.x = last.point();
    g.v = work.to_grad;
    g.factor = g.square_factor = 0;
    g.energy = work.energy;
    g.grad = nullptr;
    gradient.run(g);
    loss += *kl_weight * neg.mean - entropy_weight * entropy;
  }
  Tensor sums = floats(x, parameter_count(mlp));
  std::fill_n(values(sums), sums.size(0), 0.0f);
  gradient.add_to(values(sums));
  const double norm = last.mean_grad_norm(), share = last.clamp_share();
  const double all[] = {loss, pos.mean, neg.mean, pos.std, neg.std,
                        gap,  squares,  norm,     share,   entropy};
  std::vector<Tensor> metrics;
  for (const double value : all) {
    metrics.push_back(empty_strided_on(x, nullptr, nullptr, 0, aoti_torch_dtype_float32()));
    *values(metrics.back()) = static_cast<float>(value);
  }
  return {before, x_neg, e_pos, e_neg, sums, metrics, std::isfinite(gap + last.sum())};
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
      "-> (Tensor before, Tensor x_neg, Tensor e_pos, Tensor e_neg, Tensor sums, "
      "Tensor[] metrics, bool finite)");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
  m.impl("mlp_contrastive_divergence", TORCH_BOX(&mlp_contrastive_divergence));
}

}  // namespace fastebm
