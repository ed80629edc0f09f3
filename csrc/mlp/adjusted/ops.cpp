// Schema, checks and registration of Metropolis-adjusted chains of a small perceptron.
#include "langevin/check.h"
#include "metropolis/check.h"
#include "mlp/adjusted/run.h"

namespace fastebm {
namespace {

const char* const kOp = "mlp_adjusted_chain_";
constexpr int64_t kNoiseTag = 0x80;

void run_cuda(MlpAdjustedParams p, const Tensor& x) {
  std::optional<DeviceGuard> guard;
  if (x.is_cuda()) guard.emplace(x.get_device_index());
  OptionalTensor scratch;
  const int64_t size[1] = {mlp_adjusted_scratch_cuda(p)}, one[1] = {1};
  if (size[0] > 0) {
    scratch = empty_strided_on(x, size, one, 1, aoti_torch_dtype_uint8());
    p.chain.scratch = scratch->mutable_data_ptr();
  }
  const int error = mlp_adjusted_cuda(p, 0, 1, current_stream(x));
  FASTEBM_CHECK(error == 0, kOp, ": CUDA error ", error, ", ", cuda_error_text(error));
}

// Chains would read of each other what they are changing.
void check_apart(const char* what, const float* a, int64_t count, const Tensor& x) {
  const auto* b = static_cast<const float*>(x.const_data_ptr());
  FASTEBM_CHECK(a + count <= b || b + x.numel() <= a, kOp, ": ", what,
                " and x must not share memory, as x is written to; clone one of them");
}

template <bool kCpu>
void mlp_adjusted_chain_(Tensor x, Tensor energy, Tensor grad, Tensor acceptance,
                         const std::vector<Tensor>& weights,
                         const std::vector<OptionalTensor>& biases, int64_t activation, double beta,
                         double threshold, const OptionalTensor& base_precision,
                         const OptionalTensor& base_mean, const OptionalTensor& row_bias,
                         int64_t n_steps, double step_size, double noise_std,
                         const OptionalTensor& step_sizes, const OptionalTensor& noise_stds,
                         const Tensor& rng, int64_t t, const OptionalTensor& sample_ids, bool known,
                         const OptionalTensor& lo, const OptionalTensor& hi,
                         const OptionalTensor& centres, const OptionalTensor& scales, int64_t every,
                         int64_t first, double uniform_share) {
  check_float32(kOp, "x", x, x);
  FASTEBM_CHECK(x.dim() == 2 && x.size(1) > 0 && x.is_contiguous(), kOp,
                ": x must be contiguous, of shape (B, D) with D >= 1");
  FASTEBM_CHECK(n_steps >= 0, kOp, ": n_steps must be >= 0, got ", n_steps);
  FASTEBM_CHECK(noise_stds || static_cast<float>(noise_std) > 0, kOp,
                ": noise_std must be > 0, also in float32, got ", noise_std);
  FASTEBM_CHECK(every >= 0, kOp, ": every must be >= 0, got ", every);
  FASTEBM_CHECK(first >= 0 && first < int64_t{1} << 62, kOp, ": first must be in 0..2^62 - 1, got ",
                first);
  MlpAdjustedParams p{};
  MlpChainParams& chain = p.chain;
  chain.step = langevin_params(kOp, x, step_size, noise_std, std::nullopt, std::nullopt, rng, t,
                               n_steps, sample_ids, std::nullopt, std::nullopt, std::nullopt,
                               std::nullopt, std::nullopt, kNoiseTag);
  std::vector<Tensor> kept;
  chain.mlp = mlp_network(kOp, x, weights, biases, activation, beta, threshold, base_precision,
                          base_mean, &kept);
  chain.row_bias = row_biases(kOp, "row_bias", row_bias, x, chain.mlp, x.size(0), &kept);
  chain.n_steps = n_steps;
  chain.step.step_sizes =
      coefficient_table(kOp, "step_sizes", step_sizes, x, n_steps, chain.step_sizes_stride);
  chain.step.noise_stds =
      coefficient_table(kOp, "noise_stds", noise_stds, x, n_steps, chain.noise_stds_stride);
  if (!kCpu) check_for_device(kOp, chain.mlp);
  const Box box = sample_box(kOp, x, lo, hi, &kept);
  p.jumps.lo = box.lo;
  p.jumps.hi = box.hi;
  p.known = known;
  p.every = every;
  p.first = first;
  if (every > 0) {
    p.jumps = jump_targets(kOp, x, centres, scales, box, uniform_share, &kept);
    if (p.jumps.size > 0) {
      check_apart("centres", p.jumps.centres, p.jumps.size * p.jumps.dim, x);
      check_apart("scales", p.jumps.scales, p.jumps.size, x);
    }
  }
  const int64_t batch = x.size(0);
  chain.energy = written_floats(kOp, "energy", energy, x, {batch}, "(B,)");
  chain.grad = written_floats(kOp, "grad", grad, x, {batch, x.size(1)}, "(B, D)");
  p.acceptance = written_floats(kOp, "acceptance", acceptance, x, {2, batch}, "(2, B)");
  check_written(kOp, "x", x);
  chain.step.x = chain.step.out = x.mutable_data_ptr();
  if (batch == 0 || (n_steps == 0 && known)) return;
  if constexpr (kCpu)
    run_mlp_adjusted_cpu(p);
  else
    run_cuda(p, x);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "mlp_adjusted_chain_(Tensor(a!) x, Tensor(b!) energy, Tensor(c!) grad, "
      "Tensor(d!) acceptance, Tensor[] weights, Tensor?[] biases, int activation, float beta, "
      "float threshold, Tensor? base_precision, Tensor? base_mean, Tensor? row_bias, int n_steps, "
      "float step_size, float noise_std, Tensor? step_sizes, "
      "Tensor? noise_stds, Tensor rng, int t, Tensor? sample_ids, bool known, Tensor? lo, "
      "Tensor? hi, Tensor? centres, Tensor? scales, int every, int first, float uniform_share) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("mlp_adjusted_chain_", TORCH_BOX((&mlp_adjusted_chain_<false>)));
#else
  m.impl("mlp_adjusted_chain_", TORCH_BOX((&mlp_adjusted_chain_<true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("mlp_adjusted_chain_", TORCH_BOX((&mlp_adjusted_chain_<false>)));
}
#endif

}  // namespace fastebm
