// Schema, checks and registration of the underdamped step.
#include "langevin/check.h"
#include "launch/block_run.h"
#include "underdamped/underdamped.h"

namespace fastebm {
namespace {

const char* const kOp = "underdamped_step_";

void check_box(const Tensor& x, std::optional<double> lo, std::optional<double> hi,
               const OptionalTensor& los, const OptionalTensor& his, UnderdampedParams* p) {
  p->lo = lo.value_or(-kInfinity);
  p->hi = hi.value_or(kInfinity);
  FASTEBM_CHECK(p->lo <= p->hi, kOp, ": lo must be <= hi, got ", p->lo, " and ", p->hi);
  FASTEBM_CHECK(los.has_value() == his.has_value(), kOp,
                ": los and his must be given together, got ", los ? "los" : "his", " alone");
  if (!los) return;
  FASTEBM_CHECK(!lo && !hi, kOp, ": lo and hi must be None with los and his");
  const auto check = [&](const char* what, const Tensor& t) {
    check_same_device(kOp, what, t, x);
    FASTEBM_CHECK(t.scalar_type() == compute_type(x), kOp, ": ", what, " must be ",
                  name_of(compute_type(x)), ", got ", name_of(t.scalar_type()));
    FASTEBM_CHECK(t.is_contiguous() && (t.numel() == p->dim || t.numel() == x.numel()), kOp, ": ",
                  what, " must be contiguous, of ", p->dim, " values or one for each of x, got ",
                  t.numel());
  };
  check("los", *los);
  check("his", *his);
  FASTEBM_CHECK(los->numel() == his->numel(), kOp, ": los and his must have as many values, got ",
                los->numel(), " and ", his->numel());
  p->los = los->const_data_ptr();
  p->his = his->const_data_ptr();
  p->box_stride = los->numel() == p->dim ? 0 : p->dim;
  if (x.is_cuda()) return;
  for (int64_t i = 0; i < los->numel(); ++i) {
    const auto value = [&](const void* of) {
      return compute_type(x) == ScalarType::Double ? static_cast<const double*>(of)[i]
                                                   : double{static_cast<const float*>(of)[i]};
    };
    FASTEBM_CHECK(value(p->los) <= value(p->his), kOp, ": lo must be <= hi, got ", value(p->los),
                  " and ", value(p->his), " for element ", i);
  }
}

template <UnderdampedLauncher kLaunch, bool kParallel>
void underdamped_step_(Tensor x, Tensor v, const Tensor& grad_in, double kick, double drift,
                       double decay, double noise_std, const OptionalTensor& kicks,
                       const OptionalTensor& drifts, const OptionalTensor& decays,
                       const OptionalTensor& noise_stds, const Tensor& rng, int64_t t,
                       const OptionalTensor& sample_ids, std::optional<double> lo,
                       std::optional<double> hi, const OptionalTensor& los,
                       const OptionalTensor& his) {
  UnderdampedParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  FASTEBM_CHECK(x.dim() > 0, kOp, ": x must have a batch dimension, (B, ...), got a 0-d tensor");
  check_twin(kOp, "v", v, x);
  check_twin(kOp, "grad", grad_in, x);
  p.batch = x.size(0);
  p.dim = sample_dim(x);
  FASTEBM_CHECK(p.dim < int64_t{1} << 32, kOp, ": a sample may hold at most 2^32 - 1 elements");
  const auto coefficient = [&](const char* what, double value, const OptionalTensor& values,
                               double* to, const void** all) {
    check_coefficient(kOp, what, value, x);
    check_per_sample(kOp, what, values, x, compute_type(x));
    *to = value;
    *all = data_or_null(values);
  };
  coefficient("kick", kick, kicks, &p.kick, &p.kicks);
  coefficient("drift", drift, drifts, &p.drift, &p.drifts);
  coefficient("decay", decay, decays, &p.decay, &p.decays);
  coefficient("noise_std", noise_std, noise_stds, &p.noise_std, &p.noise_stds);
  check_sample_ids(kOp, sample_ids, x, p.batch);
  check_stream(kOp, rng, x, t, 1, sample_ids ? 0 : p.batch);
  check_box(x, lo, hi, los, his, &p);
  check_written(kOp, "x", x);
  check_written(kOp, "v", v);
  const Tensor grad = dense(grad_in);
  Tensor to_x = dense(x), to_v = dense(v);
  p.x = to_x.mutable_data_ptr();
  p.v = to_v.mutable_data_ptr();
  p.grad = grad.const_data_ptr();
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.t = static_cast<uint32_t>(t);
  p.sample_ids = static_cast<const int64_t*>(data_or_null(sample_ids));
  run_blocks<kLaunch, kParallel>(kOp, x, p);
  if (!x.is_contiguous()) torch::stable::copy_(x, to_x);
  if (!v.is_contiguous()) torch::stable::copy_(v, to_v);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "underdamped_step_(Tensor(a!) x, Tensor(b!) v, Tensor grad, float kick, float drift, "
      "float decay, float noise_std, Tensor? kicks, Tensor? drifts, Tensor? decays, "
      "Tensor? noise_stds, Tensor rng, int t, Tensor? sample_ids, float? lo, float? hi, "
      "Tensor? los, Tensor? his) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("underdamped_step_", TORCH_BOX((&underdamped_step_<underdamped_step_cuda, false>)));
#else
  m.impl("underdamped_step_", TORCH_BOX((&underdamped_step_<underdamped_step_cpu, true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("underdamped_step_", TORCH_BOX((&underdamped_step_<underdamped_step_cuda, false>)));
}
#endif

}  // namespace fastebm
