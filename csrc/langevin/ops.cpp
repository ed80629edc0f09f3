// Schemas, checks and registration of the Langevin step's operators.
#include "langevin/check.h"
#include "launch/block_run.h"

namespace fastebm {
namespace {

template <LangevinLauncher kLaunch, bool kParallel>
void langevin_step_(Tensor x, const OptionalTensor& grad, double step_size, double noise_std,
                    const OptionalTensor& step_sizes, const OptionalTensor& noise_stds,
                    const Tensor& rng, int64_t t, const OptionalTensor& sample_ids,
                    std::optional<double> grad_clip, std::optional<double> grad_norm_clip,
                    std::optional<double> displacement_clip, std::optional<double> lo,
                    std::optional<double> hi, int64_t tag) {
  LangevinParams p =
      langevin_params("langevin_step_", x, step_size, noise_std, step_sizes, noise_stds, rng, t, 1,
                      sample_ids, grad_clip, grad_norm_clip, displacement_clip, lo, hi, tag);
  if (grad) check_twin("langevin_step_", "grad", *grad, x);
  check_written("langevin_step_", "x", x);
  const Tensor g = grad ? dense(*grad) : x;
  Tensor out = dense(x);
  p.x = p.out = out.mutable_data_ptr();
  p.grad = grad ? g.const_data_ptr() : nullptr;
  run_blocks<kLaunch, kParallel>("langevin_step_", x, p);
  if (!x.is_contiguous()) torch::stable::copy_(x, out);
}

template <LangevinLauncher kLaunch, bool kParallel>
std::tuple<Tensor, Tensor> langevin_step(
    const Tensor& x_in, const Tensor& grad_in, double step_size, double noise_std,
    const OptionalTensor& step_sizes, const OptionalTensor& noise_stds, const Tensor& rng,
    int64_t t, const OptionalTensor& sample_ids, std::optional<double> grad_clip,
    std::optional<double> displacement_clip, std::optional<double> lo, std::optional<double> hi,
    int64_t tag) {
  LangevinParams p =
      langevin_params("langevin_step", x_in, step_size, noise_std, step_sizes, noise_stds, rng, t,
                      1, sample_ids, grad_clip, std::nullopt, displacement_clip, lo, hi, tag);
  check_twin("langevin_step", "grad", grad_in, x_in);
  const Tensor x = dense(x_in), grad = dense(grad_in);
  Tensor out = empty_as(x);
  const int64_t sizes[2] = {p.batch, blocks_per_row(p.dim)}, strides[2] = {sizes[1], 1};
  Tensor mask = empty_strided_on(x, sizes, strides, 2, aoti_torch_dtype_uint8());
  p.x = x.const_data_ptr();
  p.grad = grad.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  run_blocks<kLaunch, kParallel>("langevin_step", x, p);
  return {out, mask};
}

template <LangevinBackwardLauncher kLaunch, bool kParallel>
std::tuple<Tensor, Tensor> langevin_step_backward(const Tensor& grad_out_in, const Tensor& mask,
                                                  double step_size,
                                                  const OptionalTensor& step_sizes) {
  const char* op = "langevin_step_backward";
  LangevinBackwardParams p{};
  p.dtype = dtype_of(op, "grad_out", grad_out_in);
  FASTEBM_CHECK(grad_out_in.dim() > 0, op, ": grad_out must be (B, ...), got a 0-d tensor");
  const Tensor grad_out = dense(grad_out_in);
  p.batch = grad_out.size(0);
  p.dim = sample_dim(grad_out);
  check_coefficient(op, "step_size", step_size, grad_out);
  check_per_sample(op, "step_sizes", step_sizes, grad_out, compute_type(grad_out));
  check_same_device(op, "mask", mask, grad_out);
  FASTEBM_CHECK(mask.scalar_type() == ScalarType::Byte && mask.is_contiguous() &&
                    mask.numel() == p.batch * blocks_per_row(p.dim),
                op, ": mask is not the one langevin_step gave for this shape");
  Tensor grad_x = empty_as(grad_out), grad_grad = empty_as(grad_out);
  p.grad_out = grad_out.const_data_ptr();
  p.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
  p.grad_x = grad_x.mutable_data_ptr();
  p.grad_grad = grad_grad.mutable_data_ptr();
  p.step_size = step_size;
  p.step_sizes = data_or_null(step_sizes);
  run_blocks<kLaunch, kParallel>(op, grad_out, p);
  return {grad_x, grad_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "langevin_step_(Tensor(a!) x, Tensor? grad, float step_size, float noise_std, "
      "Tensor? step_sizes, Tensor? noise_stds, Tensor rng, int t, Tensor? sample_ids, "
      "float? grad_clip, float? grad_norm_clip, float? displacement_clip, float? lo, float? hi, "
      "int tag) -> ()");
  m.def(
      "langevin_step(Tensor x, Tensor grad, float step_size, float noise_std, "
      "Tensor? step_sizes, Tensor? noise_stds, Tensor rng, int t, Tensor? sample_ids, "
      "float? grad_clip, float? displacement_clip, float? lo, float? hi, int tag) "
      "-> (Tensor out, Tensor mask)");
  m.def(
      "langevin_step_backward(Tensor grad_out, Tensor mask, float step_size, Tensor? step_sizes) "
      "-> (Tensor grad_x, Tensor grad_grad)");
}

#define FASTEBM_IMPL(device, parallel)                                                      \
  m.impl("langevin_step_", TORCH_BOX((&langevin_step_<langevin_step_##device, parallel>))); \
  m.impl("langevin_step", TORCH_BOX((&langevin_step<langevin_step_##device, parallel>)));   \
  m.impl("langevin_step_backward",                                                          \
         TORCH_BOX((&langevin_step_backward<langevin_step_backward_##device, parallel>)))

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  FASTEBM_IMPL(cuda, false);
#else
  FASTEBM_IMPL(cpu, true);
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) { FASTEBM_IMPL(cuda, false); }
#endif

}  // namespace fastebm
