// Schema, checks and registration of jumps between the modes of a population.
#include "launch/row_run.h"
#include "metropolis/check.h"

namespace fastebm {
namespace {

const char* const kOp = "population_jump";

template <JumpLauncher kLaunch, bool kParallel>
std::tuple<Tensor, Tensor> population_jump(const Tensor& x_in, const OptionalTensor& centres,
                                           const OptionalTensor& scales, const Tensor& rng,
                                           int64_t t, const OptionalTensor& sample_ids,
                                           const OptionalTensor& lo, const OptionalTensor& hi,
                                           double uniform_share) {
  check_float32(kOp, "x", x_in, x_in);
  FASTEBM_CHECK(x_in.dim() == 2 && x_in.size(1) > 0 && x_in.size(1) < int64_t{1} << 32, kOp,
                ": x must have shape (B, D) with D in 1..2^32 - 1");
  const Tensor x = dense(x_in);
  JumpParams p{};
  p.batch = x.size(0);
  check_sample_ids(kOp, sample_ids, x, p.batch);
  check_stream(kOp, rng, x, t, 1, sample_ids ? 0 : p.batch);
  std::vector<Tensor> kept;
  const Box box = sample_box(kOp, x, lo, hi, &kept);
  p.to = jump_targets(kOp, x, centres, scales, box, uniform_share, &kept);
  p.x = static_cast<const float*>(x.const_data_ptr());
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.t = static_cast<uint32_t>(t);
  p.sample_ids = static_cast<const int64_t*>(data_or_null(sample_ids));
  const int64_t size[1] = {p.batch}, one[1] = {1};
  Tensor out = empty_as(x),
         log_factor = empty_strided_on(x, size, one, 1, aoti_torch_dtype_float32());
  if (p.batch == 0) return {out, log_factor};
  p.out = static_cast<float*>(out.mutable_data_ptr());
  p.log_factor = static_cast<float*>(log_factor.mutable_data_ptr());
  run_rows<kLaunch, kParallel>(kOp, x, p.batch, p.to.dim, p);
  return {out, log_factor};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "population_jump(Tensor x, Tensor? centres, Tensor? scales, Tensor rng, int t, "
      "Tensor? sample_ids, Tensor? lo, Tensor? hi, float uniform_share) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("population_jump", TORCH_BOX((&population_jump<population_jump_cuda, false>)));
#else
  m.impl("population_jump", TORCH_BOX((&population_jump<population_jump_cpu, true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("population_jump", TORCH_BOX((&population_jump<population_jump_cuda, false>)));
}
#endif

}  // namespace fastebm
