// Schema, checks and registration of swaps between replicas.
#include "launch/ops.h"

#include <cmath>

#include "tempering/tempering.h"

namespace fastebm {
namespace {

const char* const kOp = "replica_swap_";
constexpr int64_t kGrainElements = 16384;

// What is exchanged: of the shape and dtype of x.
void* written_state(const char* what, Tensor& t, const Tensor& x) {
  check_same_device(kOp, what, t, x);
  FASTEBM_CHECK(t.scalar_type() == x.scalar_type(), kOp, ": ", what, " must have the dtype of x, ",
                name_of(x.scalar_type()), ", got ", name_of(t.scalar_type()));
  FASTEBM_CHECK(t.sizes().equals(x.sizes()) && t.is_contiguous(), kOp, ": ", what,
                " must be contiguous, of the shape of x");
  check_written(kOp, what, t);
  return t.mutable_data_ptr();
}

void* written_energies(Tensor& energy, const Tensor& x, bool* wide) {
  check_same_device(kOp, "energy", energy, x);
  *wide = energy.scalar_type() == ScalarType::Double;
  FASTEBM_CHECK(*wide || energy.scalar_type() == ScalarType::Float, kOp,
                ": energy must be float32 or float64, got ", name_of(energy.scalar_type()));
  FASTEBM_CHECK(energy.dim() == 2 && energy.size(0) == x.size(0) && energy.size(1) == x.size(1) &&
                    energy.is_contiguous(),
                kOp, ": energy must be contiguous, of shape (", x.size(0), ", ", x.size(1), ")");
  check_written(kOp, "energy", energy);
  return energy.mutable_data_ptr();
}

const double* read_temperatures(const Tensor& t, const Tensor& x) {
  check_same_device(kOp, "temperatures", t, x);
  FASTEBM_CHECK(t.scalar_type() == ScalarType::Double, kOp, ": temperatures must be float64, got ",
                name_of(t.scalar_type()));
  FASTEBM_CHECK(t.dim() == 1 && t.size(0) == x.size(0) && t.is_contiguous(), kOp,
                ": temperatures must be contiguous, of shape (", x.size(0), ",)");
  const auto* values = static_cast<const double*>(t.const_data_ptr());
  for (int64_t r = 0; !x.is_cuda() && r < x.size(0); ++r)
    FASTEBM_CHECK(values[r] > 0 && std::isfinite(values[r]), kOp,
                  ": temperatures must be finite and > 0, got ", values[r], " for replica ", r);
  return values;
}

template <bool kCpu>
void replica_swap_(Tensor x, Tensor energy, Tensor grad, std::optional<Tensor> velocity,
                   const Tensor& temperatures, int64_t parity, Tensor swaps, const Tensor& rng,
                   int64_t t, const OptionalTensor& sample_ids) {
  SwapParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  FASTEBM_CHECK(x.dim() >= 2, kOp, ": x must be (R, B, ...), replicas first, got ", x.dim(),
                " dimensions");
  p.replicas = x.size(0);
  p.chains = x.size(1);
  p.dim = 1;
  for (int64_t i = 2; i < x.dim(); ++i) p.dim *= x.size(i);
  FASTEBM_CHECK(p.replicas >= 1 && p.replicas < int64_t{1} << 32, kOp,
                ": x must have 1..2^32 - 1 replicas, got ", p.replicas);
  FASTEBM_CHECK(parity == 0 || parity == 1, kOp, ": parity must be 0 or 1, got ", parity);
  p.parity = parity;
  check_sample_ids(kOp, sample_ids, x, p.chains);
  check_stream(kOp, rng, x, t, 1, sample_ids ? 0 : p.chains);
  p.temperatures = read_temperatures(temperatures, x);
  p.x = written_state("x", x, x);
  p.grad = written_state("grad", grad, x);
  if (velocity) p.velocity = written_state("velocity", *velocity, x);
  p.energy = written_energies(energy, x, &p.wide);
  p.swaps = written_floats(kOp, "swaps", swaps, x, {p.replicas - 1, p.chains}, "(R - 1, B)");
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.t = static_cast<uint32_t>(t);
  p.sample_ids = static_cast<const int64_t*>(data_or_null(sample_ids));
  const int64_t pairs = pairs_of(p);
  if (pairs == 0) return;
  if constexpr (kCpu) {
    torch::stable::parallel_for(
        0, pairs, 1 + kGrainElements / (p.dim + 64),
        [&](int64_t begin, int64_t end) { replica_swap_cpu(p, begin, end, nullptr); });
  } else {
    std::optional<DeviceGuard> guard;
    if (x.is_cuda()) guard.emplace(x.get_device_index());
    const int error = replica_swap_cuda(p, 0, pairs, current_stream(x));
    FASTEBM_CHECK(error == 0, kOp, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "replica_swap_(Tensor(a!) x, Tensor(b!) energy, Tensor(c!) grad, Tensor(d!)? velocity, "
      "Tensor temperatures, int parity, Tensor(e!) swaps, Tensor rng, int t, "
      "Tensor? sample_ids) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("replica_swap_", TORCH_BOX((&replica_swap_<false>)));
#else
  m.impl("replica_swap_", TORCH_BOX((&replica_swap_<true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("replica_swap_", TORCH_BOX((&replica_swap_<false>)));
}
#endif

}  // namespace fastebm
