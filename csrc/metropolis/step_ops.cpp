// Schema, checks and registration of a transition under Metropolis' rule.
#include "launch/row_run.h"
#include "metropolis/step.h"

namespace fastebm {
namespace {

const char* const kOp = "metropolis_step_";

template <MetropolisStepLauncher kLaunch, bool kParallel>
void metropolis_step_(Tensor x, Tensor energy, Tensor grad, Tensor acceptance, Tensor y,
                      const OptionalTensor& e_y, const OptionalTensor& grad_y, double step_size,
                      double noise_std, const OptionalTensor& step_sizes,
                      const OptionalTensor& noise_stds, bool propose, double next_step_size,
                      double next_noise_std, const OptionalTensor& next_step_sizes,
                      const OptionalTensor& next_noise_stds, const Tensor& rng, int64_t t,
                      const OptionalTensor& sample_ids, const OptionalTensor& lo,
                      const OptionalTensor& hi, const OptionalTensor& log_factor) {
  RowArguments rows(kOp, x);
  FASTEBM_CHECK(e_y.has_value() == grad_y.has_value(), kOp,
                ": e_y and grad_y must be given together, got ", e_y ? "e_y" : "grad_y", " alone");
  FASTEBM_CHECK(e_y || !log_factor, kOp, ": log_factor is of a jump, which needs e_y and grad_y");
  MetropolisStepParams p{};
  p.dtype = x.scalar_type() == ScalarType::Double ? Dtype::kFloat64 : Dtype::kFloat32;
  p.batch = x.size(0);
  p.dim = sample_dim(x);
  check_sample_ids(kOp, sample_ids, x, p.batch);
  check_stream(kOp, rng, x, t, e_y && propose ? 2 : 1, sample_ids ? 0 : p.batch);
  p.step_size = rows.per_sample("step_size", step_size, step_sizes, true);
  p.noise_std = rows.per_sample("noise_std", noise_std, noise_stds, false);
  p.propose = propose;
  p.next_step_size = rows.per_sample("next_step_size", next_step_size, next_step_sizes, true);
  p.next_noise_std = rows.per_sample("next_noise_std", next_noise_std, next_noise_stds, false);
  p.box = rows.box(lo, hi);
  p.log_factor = rows.read_values("log_factor", log_factor);
  p.e_y = rows.read_values("e_y", e_y);
  if (grad_y) p.grad_y = rows.read_samples("grad_y", *grad_y);
  if (e_y) {
    p.acceptance = written_floats(kOp, "acceptance", acceptance, x, {2, p.batch},
                                  "(2, B): one for each sample");
    p.x = rows.write_samples("x", x);
    p.energy = rows.write_values("energy", energy);
    p.grad = rows.write_samples("grad", grad);
  } else {
    p.x = const_cast<void*>(rows.read_samples("x", x));
    p.grad = const_cast<void*>(rows.read_samples("grad", grad));
  }
  p.y = propose ? rows.write_samples("y", y) : const_cast<void*>(rows.read_samples("y", y));
  FASTEBM_CHECK(p.batch * p.dim == 0 || (p.y != p.x && p.y != p.grad), kOp,
                ": y must have memory of its own");
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.t = static_cast<uint32_t>(t);
  p.sample_ids = static_cast<const int64_t*>(data_or_null(sample_ids));
  run_rows<kLaunch, kParallel>(kOp, x, p.batch, p.dim, p);
  rows.write_back();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "metropolis_step_(Tensor(a!) x, Tensor(b!) energy, Tensor(c!) grad, Tensor(d!) acceptance, "
      "Tensor(e!) y, Tensor? e_y, Tensor? grad_y, float step_size, float noise_std, "
      "Tensor? step_sizes, Tensor? noise_stds, bool propose, float next_step_size, "
      "float next_noise_std, Tensor? next_step_sizes, Tensor? next_noise_stds, Tensor rng, int t, "
      "Tensor? sample_ids, Tensor? lo, Tensor? hi, Tensor? log_factor) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("metropolis_step_", TORCH_BOX((&metropolis_step_<metropolis_step_cuda, false>)));
#else
  m.impl("metropolis_step_", TORCH_BOX((&metropolis_step_<metropolis_step_cpu, true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("metropolis_step_", TORCH_BOX((&metropolis_step_<metropolis_step_cuda, false>)));
}
#endif

}  // namespace fastebm
