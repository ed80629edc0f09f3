// Schema, checks and registration of Gibbs with gradients.
#include "launch/ops.h"

#include "discrete/discrete.h"

namespace fastebm {
namespace {

const char* const kOp = "gwg_step_";
constexpr int64_t kGrainElements = 1024;  // about 5 us of one core

// A dense float32 tensor of the shape of x.
void check_state(const char* what, const Tensor& t, const Tensor& x) {
  check_float32(kOp, what, t, x);
  FASTEBM_CHECK(t.sizes().equals(x.sizes()) && t.is_contiguous(), kOp, ": ", what,
                " must be contiguous, of the shape of x");
}

float* written_state(const char* what, Tensor& t, const Tensor& x) {
  check_state(what, t, x);
  check_written(kOp, what, t);
  return static_cast<float*>(t.mutable_data_ptr());
}

int64_t* written_sites(Tensor& site, const Tensor& x, int64_t dim, bool read) {
  check_same_device(kOp, "site", site, x);
  FASTEBM_CHECK(site.scalar_type() == ScalarType::Long && site.dim() == 1 &&
                    site.size(0) == x.size(0) && site.is_contiguous(),
                kOp, ": site must be a contiguous int64 tensor (", x.size(0), ",)");
  auto* values = static_cast<int64_t*>(site.mutable_data_ptr());
  for (int64_t i = 0; read && !x.is_cuda() && i < x.size(0); ++i)
    FASTEBM_CHECK(values[i] >= 0 && values[i] < dim, kOp, ": site must be in 0..", dim - 1,
                  ", got ", values[i], " for sample ", i);
  check_written(kOp, "site", site);
  return values;
}

const float* read_vector(const char* what, const Tensor& t, const Tensor& x) {
  check_float32(kOp, what, t, x);
  FASTEBM_CHECK(t.dim() == 1 && t.size(0) == x.size(0) && t.is_contiguous(), kOp, ": ", what,
                " must be contiguous, of shape (", x.size(0), ",)");
  return static_cast<const float*>(t.const_data_ptr());
}

template <bool kCpu>
void gwg_step_(Tensor x, Tensor energy, Tensor grad, Tensor log_q, Tensor site, Tensor acceptance,
               Tensor y, const OptionalTensor& e_y, const OptionalTensor& grad_y,
               double temperature, const OptionalTensor& temperatures, const Tensor& rng, int64_t t,
               const OptionalTensor& sample_ids, bool accept, bool propose, int64_t n_categories) {
  GwgParams p{};
  FASTEBM_CHECK(x.dim() > 0, kOp, ": x must have a batch dimension, (B, ...), got a 0-d tensor");
  p.batch = x.size(0);
  p.dim = sample_dim(x);
  FASTEBM_CHECK(p.dim > 0 && p.dim < int64_t{1} << 31, kOp,
                ": a sample must have 1..2^31 - 1 elements, got ", p.dim);
  p.categories = n_categories;
  FASTEBM_CHECK(n_categories == 0 || n_categories > 1, kOp,
                ": n_categories must be 0, for binary x, or at least 2, got ", n_categories);
  FASTEBM_CHECK(n_categories == 0 || x.size(x.dim() - 1) == n_categories, kOp,
                ": n_categories must be the last size of x, ", x.size(x.dim() - 1), ", got ",
                n_categories);
  FASTEBM_CHECK(temperature > 0 && temperature < kInfinity, kOp,
                ": temperature must be finite and > 0, got ", temperature);
  check_finite(kOp, "temperature", temperature);
  check_sample_ids(kOp, sample_ids, x, p.batch);
  check_stream(kOp, rng, x, t, 1, sample_ids ? 0 : p.batch);
  if (accept) {
    FASTEBM_CHECK(e_y && grad_y, kOp, ": e_y and grad_y must be given to accept y");
    p.e_y = read_vector("e_y", *e_y, x);
    check_state("grad_y", *grad_y, x);
    p.grad_y = static_cast<const float*>(grad_y->const_data_ptr());
  }
  if (temperatures) p.temperatures = read_vector("temperatures", *temperatures, x);
  const std::initializer_list<int64_t> vector = {p.batch};
  p.x = written_state("x", x, x);
  p.grad = written_state("grad", grad, x);
  p.y = written_state("y", y, x);
  p.energy = written_floats(kOp, "energy", energy, x, vector, "(B,)");
  p.log_q = written_floats(kOp, "log_q", log_q, x, vector, "(B,)");
  p.acceptance = written_floats(kOp, "acceptance", acceptance, x, vector, "(B,)");
  p.site = written_sites(site, x, p.dim, accept);
  p.temperature = static_cast<float>(temperature);
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.t = static_cast<uint32_t>(t);
  p.sample_ids = static_cast<const int64_t*>(data_or_null(sample_ids));
  p.accept = accept;
  p.propose = propose;
  if (p.batch == 0) return;
  if constexpr (kCpu) {
    torch::stable::parallel_for(
        0, p.batch, 1 + kGrainElements / p.dim,
        [&](int64_t begin, int64_t end) { gwg_step_cpu(p, begin, end, nullptr); });
  } else {
    std::optional<DeviceGuard> guard;
    if (x.is_cuda()) guard.emplace(x.get_device_index());
    const int error = gwg_step_cuda(p, 0, p.batch, current_stream(x));
    FASTEBM_CHECK(error == 0, kOp, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "gwg_step_(Tensor(a!) x, Tensor(b!) energy, Tensor(c!) grad, Tensor(d!) log_q, "
      "Tensor(e!) site, Tensor(f!) acceptance, Tensor(g!) y, Tensor? e_y, Tensor? grad_y, "
      "float temperature, Tensor? temperatures, Tensor rng, int t, Tensor? sample_ids, "
      "bool accept, bool propose, int n_categories) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("gwg_step_", TORCH_BOX((&gwg_step_<false>)));
#else
  m.impl("gwg_step_", TORCH_BOX((&gwg_step_<true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("gwg_step_", TORCH_BOX((&gwg_step_<false>)));
}
#endif

}  // namespace fastebm
