// Schema, checks and registration of jumps between samples of a population.
#include "metropolis/check.h"

namespace fastebm {
namespace {

const char* const kOp = "population_jump";
constexpr int64_t kGrainElements = 4096;

template <bool kCpu>
Tensor population_jump(const Tensor& x_in, const OptionalTensor& population, const Tensor& rng,
                       int64_t t, const OptionalTensor& sample_ids, const OptionalTensor& lo,
                       const OptionalTensor& hi, double uniform_share) {
  check_float32(kOp, "x", x_in, x_in);
  FASTEBM_CHECK(x_in.dim() == 2 && x_in.size(1) > 0 && x_in.size(1) < int64_t{1} << 32, kOp,
                ": x must have shape (B, D) with D in 1..2^32 - 1");
  const Tensor x = dense(x_in);
  JumpParams p{};
  p.batch = x.size(0);
  p.dim = x.size(1);
  check_sample_ids(kOp, sample_ids, x, p.batch);
  check_stream(kOp, rng, x, t, 1, sample_ids ? 0 : p.batch);
  std::vector<Tensor> kept;
  const Box box = sample_box(kOp, x, lo, hi, &kept);
  const Population from = jump_population(kOp, x, population, box, uniform_share, &kept);
  p.x = static_cast<const float*>(x.const_data_ptr());
  p.population = from.data;
  p.size = from.size;
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.t = static_cast<uint32_t>(t);
  p.sample_ids = static_cast<const int64_t*>(data_or_null(sample_ids));
  p.lo = box.lo;
  p.hi = box.hi;
  p.uniform_below = from.uniform_below;
  Tensor out = empty_as(x);
  if (p.batch == 0) return out;
  p.out = static_cast<float*>(out.mutable_data_ptr());
  if constexpr (kCpu) {
    torch::stable::parallel_for(
        0, p.batch, kGrainElements / std::min(p.dim, kGrainElements),
        [&](int64_t begin, int64_t end) { population_jump_cpu(p, begin, end, nullptr); });
  } else {
    std::optional<DeviceGuard> guard;
    if (x.is_cuda()) guard.emplace(x.get_device_index());
    const int error = population_jump_cuda(p, 0, p.batch, current_stream(x));
    FASTEBM_CHECK(error == 0, kOp, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "population_jump(Tensor x, Tensor? population, Tensor rng, int t, Tensor? sample_ids, "
      "Tensor? lo, Tensor? hi, float uniform_share) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("population_jump", TORCH_BOX((&population_jump<false>)));
#else
  m.impl("population_jump", TORCH_BOX((&population_jump<true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("population_jump", TORCH_BOX((&population_jump<false>)));
}
#endif

}  // namespace fastebm
