// Schema, checks and registration of underdamped Langevin chains of a small perceptron.
#include "metropolis/check.h"
#include "mlp/chain/run.h"
#include "mlp/underdamped/underdamped.h"

namespace fastebm {
namespace {

const char* const kOp = "mlp_underdamped_chain_";

void run_cpu(MlpUnderdampedParams p) {
  const int64_t bytes =
      mlp_underdamped_scratch_cpu(&p, static_cast<int>(torch::stable::get_num_threads()));
  Scratch large;
  p.chain.scratch = kept_scratch<MlpUnderdampedParams>(bytes, &large).take(bytes);
  std::atomic<int64_t> next{0};
  p.chain.next = &next;
  torch::stable::parallel_for(0, p.chain.tasks, 1, [&](int64_t begin, int64_t end) {
    mlp_underdamped_cpu(p, begin, end, nullptr);
  });
}

void mlp_underdamped_chain_(Tensor x, Tensor velocity, Tensor energy, Tensor grad,
                            const std::vector<Tensor>& weights,
                            const std::vector<OptionalTensor>& biases, int64_t activation,
                            double beta, double threshold, const OptionalTensor& base_precision,
                            const OptionalTensor& base_mean, const OptionalTensor& row_bias,
                            int64_t n_steps, double first_kick, double step_size, double decay,
                            double noise_std, const OptionalTensor& first_kicks,
                            const OptionalTensor& step_sizes, const OptionalTensor& decays,
                            const OptionalTensor& noise_stds, const Tensor& rng, int64_t t,
                            const OptionalTensor& sample_ids, bool known, const OptionalTensor& lo,
                            const OptionalTensor& hi) {
  check_float32(kOp, "x", x, x);
  FASTEBM_CHECK(x.dim() == 2 && x.size(1) > 0 && x.is_contiguous(), kOp,
                ": x must be contiguous, of shape (B, D) with D >= 1");
  FASTEBM_CHECK(n_steps >= 0, kOp, ": n_steps must be >= 0, got ", n_steps);
  MlpUnderdampedParams p{};
  MlpChainParams& chain = p.chain;
  chain.step = langevin_params(kOp, x, step_size, noise_std, std::nullopt, std::nullopt, rng, t,
                               n_steps, sample_ids, std::nullopt, std::nullopt, std::nullopt,
                               std::nullopt, std::nullopt, kNoiseTag);
  std::vector<Tensor> kept;
  chain.mlp = mlp_network(kOp, x, weights, biases, activation, beta, threshold, base_precision,
                          base_mean, &kept);
  const int64_t batch = x.size(0);
  chain.row_bias = row_biases(kOp, "row_bias", row_bias, x, chain.mlp, batch, &kept);
  chain.n_steps = n_steps;
  chain.step.step_sizes =
      coefficient_table(kOp, "step_sizes", step_sizes, x, n_steps, chain.step_sizes_stride);
  chain.step.noise_stds =
      coefficient_table(kOp, "noise_stds", noise_stds, x, n_steps, chain.noise_stds_stride);
  p.decay = chain_coefficient(kOp, "decay", decay, "decays", decays, x, n_steps);
  p.first_kick = chain_coefficient(kOp, "first_kick", first_kick, "first_kicks", first_kicks, x, 1);
  const Box box = sample_box(kOp, x, lo, hi, &kept);
  p.lo = box.lo;
  p.hi = box.hi;
  p.known = known;
  p.velocity = written_floats(kOp, "velocity", velocity, x, {batch, x.size(1)}, "(B, D)");
  chain.energy = written_floats(kOp, "energy", energy, x, {batch}, "(B,)");
  chain.grad = written_floats(kOp, "grad", grad, x, {batch, x.size(1)}, "(B, D)");
  check_written(kOp, "x", x);
  chain.step.x = chain.step.out = x.mutable_data_ptr();
  if (batch == 0 || (n_steps == 0 && known)) return;
  run_cpu(p);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "mlp_underdamped_chain_(Tensor(a!) x, Tensor(b!) velocity, Tensor(c!) energy, Tensor(d!) "
      "grad, Tensor[] weights, Tensor?[] biases, int activation, float beta, float threshold, "
      "Tensor? base_precision, Tensor? base_mean, Tensor? row_bias, int n_steps, float "
      "first_kick, float step_size, float decay, float noise_std, Tensor? first_kicks, Tensor? "
      "step_sizes, Tensor? decays, Tensor? noise_stds, Tensor rng, int t, Tensor? sample_ids, "
      "bool known, Tensor? lo, Tensor? hi) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
  m.impl("mlp_underdamped_chain_", TORCH_BOX(&mlp_underdamped_chain_));
}

}  // namespace fastebm
