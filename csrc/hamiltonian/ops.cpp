// Schema, checks and registration of a step of Hamiltonian Monte Carlo.
#include "hamiltonian/hamiltonian.h"
#include "launch/row_run.h"

namespace fastebm {
namespace {

const char* const kOp = "hmc_step_";

int32_t* written_counts(Tensor& t, const Tensor& x) {
  check_same_device(kOp, "divergent", t, x);
  FASTEBM_CHECK(t.scalar_type() == ScalarType::Int && t.dim() == 1 && t.size(0) == x.size(0) &&
                    t.is_contiguous(),
                kOp, ": divergent must be a contiguous int32 tensor (", x.size(0), ",)");
  check_written(kOp, "divergent", t);
  return static_cast<int32_t*>(t.mutable_data_ptr());
}

template <HamiltonianLauncher kLaunch, bool kParallel>
void hmc_step_(Tensor x, Tensor energy, Tensor grad, Tensor y, Tensor v, Tensor kinetic,
               Tensor acceptance, Tensor divergent, const OptionalTensor& e_y,
               const OptionalTensor& grad_y, double step_size, double temperature,
               const OptionalTensor& step_sizes, const OptionalTensor& temperatures, bool begin,
               double next_step_size, double next_temperature,
               const OptionalTensor& next_step_sizes, const OptionalTensor& next_temperatures,
               double jitter, const Tensor& rng, int64_t t, const OptionalTensor& sample_ids,
               const OptionalTensor& lo, const OptionalTensor& hi) {
  RowArguments rows(kOp, x);
  FASTEBM_CHECK(grad_y || !e_y, kOp, ": e_y is of a trajectory's end, which needs grad_y");
  FASTEBM_CHECK(jitter >= 0 && jitter < 1, kOp, ": jitter must be in [0, 1), got ", jitter);
  HamiltonianParams p{};
  p.dtype = x.scalar_type() == ScalarType::Double ? Dtype::kFloat64 : Dtype::kFloat32;
  p.batch = x.size(0);
  p.dim = sample_dim(x);
  check_sample_ids(kOp, sample_ids, x, p.batch);
  check_stream(kOp, rng, x, t, e_y && begin ? 2 : 1, sample_ids ? 0 : p.batch);
  p.step_size = rows.per_sample("step_size", step_size, step_sizes, true);
  p.temperature = rows.per_sample("temperature", temperature, temperatures, false);
  p.begin = begin;
  p.next_step_size = rows.per_sample("next_step_size", next_step_size, next_step_sizes, true);
  p.next_temperature =
      rows.per_sample("next_temperature", next_temperature, next_temperatures, false);
  p.jitter = jitter;
  p.box = rows.box(lo, hi);
  p.e_y = rows.read_values("e_y", e_y);
  if (grad_y) p.grad_y = rows.read_samples("grad_y", *grad_y);
  if (e_y) {
    p.acceptance = written_floats(kOp, "acceptance", acceptance, x, {p.batch}, "(B,)");
    p.divergent = written_counts(divergent, x);
    p.x = rows.write_samples("x", x);
    p.energy = rows.write_values("energy", energy);
    p.grad = rows.write_samples("grad", grad);
  } else {
    p.x = const_cast<void*>(rows.read_samples("x", x));
    p.grad = const_cast<void*>(rows.read_samples("grad", grad));
  }
  p.y = rows.write_samples("y", y);
  p.v = rows.write_samples("v", v);
  p.kinetic = rows.write_values("kinetic", kinetic);
  const bool apart = p.y != p.x && p.y != p.grad && p.v != p.x && p.v != p.grad && p.v != p.y;
  FASTEBM_CHECK(p.batch * p.dim == 0 || apart, kOp, ": y and v must have memory of their own");
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.t = static_cast<uint32_t>(t);
  p.sample_ids = static_cast<const int64_t*>(data_or_null(sample_ids));
  run_rows<kLaunch, kParallel>(kOp, x, p.batch, p.dim, p);
  rows.write_back();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "hmc_step_(Tensor(a!) x, Tensor(b!) energy, Tensor(c!) grad, Tensor(d!) y, Tensor(e!) v, "
      "Tensor(f!) kinetic, Tensor(g!) acceptance, Tensor(h!) divergent, Tensor? e_y, "
      "Tensor? grad_y, float step_size, float temperature, Tensor? step_sizes, "
      "Tensor? temperatures, bool begin, float next_step_size, float next_temperature, "
      "Tensor? next_step_sizes, Tensor? next_temperatures, float jitter, Tensor rng, int t, "
      "Tensor? sample_ids, Tensor? lo, Tensor? hi) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("hmc_step_", TORCH_BOX((&hmc_step_<hmc_step_cuda, false>)));
#else
  m.impl("hmc_step_", TORCH_BOX((&hmc_step_<hmc_step_cpu, true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("hmc_step_", TORCH_BOX((&hmc_step_<hmc_step_cuda, false>)));
}
#endif

}  // namespace fastebm
