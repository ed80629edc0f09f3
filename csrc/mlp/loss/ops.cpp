// The losses of contrastive divergence for a small perceptron on a CPU, put together from the
// kernels of their parts: chains, value, gradient in the parameters and metrics, in one operator,
// as calls of many cost more than a small batch's arithmetic.
#include "neighbor/ops.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "langevin/check.h"
#include "mlp/chain/run.h"
#include "mlp/loss/last_step.h"
#include "mlp/loss/phases.h"

namespace fastebm {
namespace {

const char* const kOp = "mlp_contrastive_divergence";

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
    *value = checked_coefficient(*row);
  };
  choose(&p.step_sizes, chain.step_sizes_stride, &p.step_size);
  choose(&p.noise_stds, chain.noise_stds_stride, &p.noise_std);
  p.t += static_cast<uint32_t>(chain.n_steps);
  return p;
}

// The terms that come through the last step, after its pull(): a gradient in its own gradient.
MlpGradientParams through_last_step(const Work& work, int64_t n, const float* point,
                                    RowBiases* row_biases) {
  MlpGradientParams p{};
  p.summed = true;
  p.batch = n;
  p.x = point;
  p.v = work.to_grad;
  p.row_bias = row_biases->chains();
  p.to_row_bias = row_biases->to_chains();
  p.energy = work.energy;
  return p;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, bool>
mlp_contrastive_divergence(
    const Tensor& x_in, const Tensor& start, const std::vector<Tensor>& weights,
    const std::vector<OptionalTensor>& biases, int64_t activation, double beta, double threshold,
    const OptionalTensor& base_precision, const OptionalTensor& base_mean,
    const OptionalTensor& row_bias, const OptionalTensor& data_row_bias, int64_t n_steps,
    double step_size, double noise_std, const OptionalTensor& step_sizes,
    const OptionalTensor& noise_stds, const Tensor& rng, std::optional<double> grad_clip,
    std::optional<double> grad_norm_clip, std::optional<double> displacement_clip,
    std::optional<double> lo, std::optional<double> hi, int64_t tag, bool noise_first,
    double energy_reg_weight, std::optional<double> kl_weight, double entropy_weight,
    double entropy_eps, const OptionalTensor& references, const OptionalTensor& own, double y_scale,
    double y_offset) {
  check_float32(kOp, "x", x_in, x_in);
  check_float32(kOp, "start", start, x_in);
  FASTEBM_CHECK(x_in.dim() > 0 && x_in.numel() > 0, kOp,
                ": x must have shape (B, *event), and hold something");
  FASTEBM_CHECK(start.sizes().equals(x_in.sizes()), kOp, ": start must have the shape of x");
  FASTEBM_CHECK(n_steps >= 0 && n_steps < kStepEnd, kOp, ": n_steps must be in 0..2^32 - 1, got ",
                n_steps);
  for (const OptionalTensor& table : {step_sizes, noise_stds})
    FASTEBM_CHECK(!table || table->is_contiguous(), kOp,
                  ": step_sizes and noise_stds must be contiguous");
  for (const auto& [what, v] :
       {std::pair("energy_reg_weight", energy_reg_weight),
        std::pair("kl_weight", kl_weight.value_or(0)), std::pair("entropy_weight", entropy_weight)})
    check_finite(kOp, what, v);
  const Tensor x = dense(x_in);
  const int64_t n = x.size(0), dim = sample_dim(x);
  MlpChainParams chain{};
  chain.step =
      langevin_params(kOp, x, step_size, noise_std, std::nullopt, std::nullopt, rng, 0, n_steps + 1,
                      std::nullopt, grad_clip, grad_norm_clip, displacement_clip, lo, hi, tag);
  std::vector<Tensor> kept;
  chain.mlp = mlp_network(kOp, x, weights, biases, activation, beta, threshold, base_precision,
                          base_mean, &kept);
  RowBiases row_biases(kOp, data_row_bias, row_bias, x, n, chain.mlp);
  chain.row_bias = row_biases.chains();
  chain.step.step_sizes =
      coefficient_table(kOp, "step_sizes", step_sizes, x, n_steps + 1, chain.step_sizes_stride);
  chain.step.noise_stds =
      coefficient_table(kOp, "noise_stds", noise_stds, x, n_steps + 1, chain.noise_stds_stride);
  // Each sample's references are the others', or those of a buffer.
  FASTEBM_CHECK(!references || references->dim() > 0, kOp,
                ": references must be (m, *event), got a 0-d tensor");
  const bool entropic =
      kl_weight && entropy_weight != 0 && (references ? references->size(0) : n) > 1;
  const OptionalTensor skip = !entropic || references ? own : everyone(x);
  if (entropic)
    check_log_distance(x, references ? *references : x, skip, entropy_eps, y_scale, y_offset);
  chain.n_steps = n_steps;
  chain.noise_first = noise_first;
  Tensor before = empty_as(x);
  std::copy_n(values(dense(start)), n * dim, values(before));
  chain.step.x = chain.step.out = values(before);
  run_mlp_chain_cpu(chain);

  Work work;
  const int64_t bytes = work.lay_out(n, dim, nullptr);
  Scratch large;
  work.lay_out(n, dim, static_cast<char*>(kept_scratch<Work>(bytes, &large).take(bytes)));
  MlpGradientRuns gradient(chain.mlp, 2 * n);
  Tensor x_neg = empty_as(x);
  const LastStep last(kOp, work, &gradient, step_after(chain), chain.row_bias, noise_first, before,
                      &x_neg);
  std::copy_n(values(x), n * dim, work.both);
  std::copy_n(values(x_neg), n * dim, work.both + n * dim);
  const Phases of = phases(work.both, &row_biases, work.energy, kl_weight ? work.to_x : nullptr, x,
                           &gradient, energy_reg_weight);
  double loss = of.loss, entropy = 0;
  if (kl_weight) {
    // The KL term is the energy of the same points: its gradient there is known. By the last
    // step's derivative it is one in that step's own gradient.
    OptionalTensor push;
    if (entropic) {
      auto found = nn_log_distance_cpu(x_neg, references ? *references : x_neg, skip, entropy_eps,
                                       y_scale, y_offset);
      entropy = values(std::get<0>(found))[0];
      push = std::get<1>(found);
    }
    last.pull(static_cast<float>(*kl_weight / static_cast<double>(n)),
              static_cast<float>(entropy_weight), push ? values(*push) : nullptr);
    gradient.run(through_last_step(work, n, last.point(), &row_biases));
    loss += *kl_weight * of.neg.mean - entropy_weight * entropy;
  }
  const Tensor sums = parameter_gradient(x, gradient, chain.mlp);
  std::vector<Tensor> metrics =
      scalars(x, {loss, of.pos.mean, of.neg.mean, of.pos.std, of.neg.std, of.gap, of.squares,
                  last.mean_grad_norm(), last.clamp_share(), entropy});
  return {before,   x_neg,
          of.e_pos, of.e_neg,
          sums,     row_biases.gradient(x, chain.mlp),
          metrics,  std::isfinite(of.gap + last.sum())};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "mlp_contrastive_divergence(Tensor x, Tensor start, Tensor[] weights, Tensor?[] biases, "
      "int activation, float beta, float threshold, Tensor? base_precision, Tensor? base_mean, "
      "Tensor? row_bias, Tensor? data_row_bias, int n_steps, float step_size, float noise_std, "
      "Tensor? step_sizes, Tensor? noise_stds, Tensor rng, float? grad_clip, "
      "float? grad_norm_clip, float? displacement_clip, float? lo, float? hi, int tag, "
      "bool noise_first, float energy_reg_weight, float? kl_weight, float entropy_weight, float "
      "entropy_eps, "
      "Tensor? references, Tensor? own, float y_scale, float y_offset) "
      "-> (Tensor before, Tensor x_neg, Tensor e_pos, Tensor e_neg, Tensor sums, Tensor "
      "to_row_bias, "
      "Tensor[] metrics, bool finite)");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
  m.impl("mlp_contrastive_divergence", TORCH_BOX(&mlp_contrastive_divergence));
}

}  // namespace fastebm
