// Schema, checks and registration of Hamiltonian Monte Carlo of a small perceptron.
#include "metropolis/check.h"
#include "mlp/chain/run.h"
#include "mlp/hamiltonian/hamiltonian.h"

namespace fastebm {
namespace {

const char* const kOp = "mlp_hmc_chain_";

void run_cpu(MlpHmcParams p) {
  const int64_t bytes = mlp_hmc_scratch_cpu(&p, static_cast<int>(torch::stable::get_num_threads()));
  Scratch large;
  p.chain.scratch = kept_scratch<MlpHmcParams>(bytes, &large).take(bytes);
  std::atomic<int64_t> next{0};
  p.chain.next = &next;
  torch::stable::parallel_for(0, p.chain.tasks, 1, [&](int64_t begin, int64_t end) {
    mlp_hmc_cpu(p, begin, end, nullptr);
  });
}

void mlp_hmc_chain_(Tensor x, Tensor energy, Tensor grad, Tensor acceptance, Tensor divergent,
                    const std::vector<Tensor>& weights, const std::vector<OptionalTensor>& biases,
                    int64_t activation, double beta, double threshold,
                    const OptionalTensor& base_precision, const OptionalTensor& base_mean,
                    const OptionalTensor& row_bias, int64_t n_steps, int64_t n_leapfrog,
                    double jitter, double step_size, double temperature,
                    const OptionalTensor& step_sizes, const OptionalTensor& temperatures,
                    const Tensor& rng, int64_t t, const OptionalTensor& sample_ids, bool known,
                    const OptionalTensor& lo, const OptionalTensor& hi) {
  check_float32(kOp, "x", x, x);
  FASTEBM_CHECK(x.dim() == 2 && x.size(1) > 0 && x.is_contiguous(), kOp,
                ": x must be contiguous, of shape (B, D) with D >= 1");
  FASTEBM_CHECK(n_steps >= 0, kOp, ": n_steps must be >= 0, got ", n_steps);
  FASTEBM_CHECK(n_leapfrog >= 1, kOp, ": n_leapfrog must be >= 1, got ", n_leapfrog);
  FASTEBM_CHECK(jitter >= 0 && jitter < 1, kOp, ": jitter must be in [0, 1), got ", jitter);
  FASTEBM_CHECK(temperatures || static_cast<float>(temperature) > 0, kOp,
                ": temperature must be > 0, also in float32, got ", temperature);
  MlpHmcParams p{};
  MlpChainParams& chain = p.chain;
  chain.step = langevin_params(kOp, x, step_size, 0, std::nullopt, std::nullopt, rng, t, n_steps,
                               sample_ids, std::nullopt, std::nullopt, std::nullopt, std::nullopt,
                               std::nullopt, kVelocityTag);
  std::vector<Tensor> kept;
  chain.mlp = mlp_network(kOp, x, weights, biases, activation, beta, threshold, base_precision,
                          base_mean, &kept);
  const int64_t batch = x.size(0);
  chain.row_bias = row_biases(kOp, "row_bias", row_bias, x, chain.mlp, batch, &kept);
  chain.n_steps = n_steps;
  chain.step.step_sizes =
      coefficient_table(kOp, "step_sizes", step_sizes, x, n_steps, chain.step_sizes_stride);
  p.temperature =
      chain_coefficient(kOp, "temperature", temperature, "temperatures", temperatures, x, n_steps);
  const Box box = sample_box(kOp, x, lo, hi, &kept);
  p.lo = box.lo;
  p.hi = box.hi;
  p.known = known;
  p.n_leapfrog = n_leapfrog;
  p.jitter = jitter;
  chain.energy = written_floats(kOp, "energy", energy, x, {batch}, "(B,)");
  chain.grad = written_floats(kOp, "grad", grad, x, {batch, x.size(1)}, "(B, D)");
  p.acceptance = written_floats(kOp, "acceptance", acceptance, x, {batch}, "(B,)");
  check_same_device(kOp, "divergent", divergent, x);
  FASTEBM_CHECK(divergent.scalar_type() == ScalarType::Int && divergent.dim() == 1 &&
                    divergent.size(0) == batch && divergent.is_contiguous(),
                kOp, ": divergent must be a contiguous int32 tensor (B,)");
  check_written(kOp, "divergent", divergent);
  p.divergent = static_cast<int32_t*>(divergent.mutable_data_ptr());
  check_written(kOp, "x", x);
  chain.step.x = chain.step.out = x.mutable_data_ptr();
  if (batch == 0 || (n_steps == 0 && known)) return;
  run_cpu(p);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "mlp_hmc_chain_(Tensor(a!) x, Tensor(b!) energy, Tensor(c!) grad, Tensor(d!) acceptance, "
      "Tensor(e!) divergent, Tensor[] weights, Tensor?[] biases, int activation, float beta, "
      "float threshold, Tensor? base_precision, Tensor? base_mean, Tensor? row_bias, int n_steps, "
      "int n_leapfrog, float jitter, float step_size, float temperature, Tensor? step_sizes, "
      "Tensor? temperatures, Tensor rng, int t, Tensor? sample_ids, bool known, Tensor? lo, "
      "Tensor? hi) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
  m.impl("mlp_hmc_chain_", TORCH_BOX(&mlp_hmc_chain_));
}

}  // namespace fastebm
