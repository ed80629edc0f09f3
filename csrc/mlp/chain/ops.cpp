// Schema, checks and registration of the whole chain of a small multi-layer perceptron.
#include "langevin/check.h"
#include "metropolis/check.h"
#include "mlp/chain/run.h"

namespace fastebm {
namespace {

const char* const kOp = "mlp_chain_";

template <bool kCpu>
void mlp_chain_(Tensor x, const std::vector<Tensor>& weights,
                const std::vector<OptionalTensor>& biases, int64_t activation, double beta,
                double threshold, const OptionalTensor& base_precision,
                const OptionalTensor& base_mean, const OptionalTensor& row_bias, int64_t n_steps,
                double step_size, double noise_std, const OptionalTensor& step_sizes,
                const OptionalTensor& noise_stds, const Tensor& rng, int64_t t,
                const OptionalTensor& sample_ids, std::optional<double> grad_clip,
                std::optional<double> grad_norm_clip, std::optional<double> displacement_clip,
                std::optional<double> lo, std::optional<double> hi, const OptionalTensor& box_lo,
                const OptionalTensor& box_hi, int64_t tag, bool noise_first, bool bfloat16,
                OptionalTensor energy, OptionalTensor grad) {
  check_float32(kOp, "x", x, x);
  FASTEBM_CHECK(x.dim() == 2 && x.size(1) > 0 && x.is_contiguous(), kOp,
                ": x must be contiguous, of shape (B, D) with D >= 1");
  FASTEBM_CHECK(n_steps >= 0, kOp, ": n_steps must be >= 0, got ", n_steps);
  MlpChainParams p{};
  p.step =
      langevin_params(kOp, x, step_size, noise_std, std::nullopt, std::nullopt, rng, t, n_steps,
                      sample_ids, grad_clip, grad_norm_clip, displacement_clip, lo, hi, tag);
  std::vector<Tensor> kept;
  p.mlp = mlp_network(kOp, x, weights, biases, activation, beta, threshold, base_precision,
                      base_mean, &kept);
  p.row_bias = row_biases(kOp, "row_bias", row_bias, x, p.mlp, p.step.batch, &kept);
  const Box box = sample_box(kOp, x, box_lo, box_hi, &kept);
  p.lo = box.lo;
  p.hi = box.hi;
  p.n_steps = n_steps;
  p.step.step_sizes =
      coefficient_table(kOp, "step_sizes", step_sizes, x, n_steps, p.step_sizes_stride);
  p.step.noise_stds =
      coefficient_table(kOp, "noise_stds", noise_stds, x, n_steps, p.noise_stds_stride);
  p.noise_first = noise_first;
  p.bfloat16 = bfloat16;
  FASTEBM_CHECK(!kCpu || !bfloat16, kOp,
                ": precision \"bf16\" is for CUDA devices; a CPU has \"fp32\"");
  if (!kCpu) check_for_device(kOp, p.mlp);
  if (energy) p.energy = written_floats(kOp, "energy", *energy, x, {x.size(0)}, "(B,)");
  if (grad) p.grad = written_floats(kOp, "grad", *grad, x, {x.size(0), x.size(1)}, "(B, D)");
  check_written(kOp, "x", x);
  p.step.x = p.step.out = x.mutable_data_ptr();
  if (p.step.batch == 0 || n_steps == 0) return;

  if constexpr (kCpu) {
    run_mlp_chain_cpu(p);
  } else {
    std::optional<DeviceGuard> guard;
    if (x.is_cuda()) guard.emplace(x.get_device_index());
    OptionalTensor scratch;
    const int64_t size[1] = {mlp_chain_scratch_cuda(p)}, one[1] = {1};
    if (size[0] > 0) {
      scratch = empty_strided_on(x, size, one, 1, aoti_torch_dtype_uint8());
      p.scratch = scratch->mutable_data_ptr();
    }
    const int error = mlp_chain_cuda(p, 0, 1, current_stream(x));
    FASTEBM_CHECK(error == 0, kOp, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "mlp_chain_(Tensor(a!) x, Tensor[] weights, Tensor?[] biases, int activation, float beta, "
      "float threshold, Tensor? base_precision, Tensor? base_mean, Tensor? row_bias, int n_steps, "
      "float step_size, float noise_std, Tensor? step_sizes, "
      "Tensor? noise_stds, Tensor rng, int t, Tensor? sample_ids, float? grad_clip, "
      "float? grad_norm_clip, float? displacement_clip, float? lo, float? hi, Tensor? box_lo, "
      "Tensor? box_hi, int tag, bool noise_first, bool bfloat16, Tensor(b!)? energy, "
      "Tensor(c!)? grad) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("mlp_chain_", TORCH_BOX((&mlp_chain_<false>)));
#else
  m.impl("mlp_chain_", TORCH_BOX((&mlp_chain_<true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("mlp_chain_", TORCH_BOX((&mlp_chain_<false>)));
}
#endif

}  // namespace fastebm
