// Schema, checks and registration of the choice of distinct slots.
#include "launch/ops.h"

#include <algorithm>

#include "random/choice/choice.h"

namespace fastebm {
namespace {

const char* const kOp = "choose_slots";
constexpr int64_t kGrain = 2048;

Tensor int64s_on(const Tensor& t, int64_t n) {
  const int64_t one[1] = {1};
  return empty_strided_on(t, &n, one, 1, aoti_torch_dtype_int64());
}

template <bool kCpu>
std::tuple<Tensor, Tensor> choose_slots(const Tensor& rng, int64_t size, int64_t n,
                                        const OptionalTensor& slots, int64_t t) {
  check_stream(kOp, rng, rng, t, 1, 0);
  FASTEBM_CHECK(size >= 0 && size <= kMaxChoice, kOp, ": size must be in 0..2^40, got ", size);
  FASTEBM_CHECK(n >= 0 && n <= size, kOp, ": n must be in 0..", size, ", the size, got ", n);
  ChoiceParams p{};
  p.size = std::max<int64_t>(size, 1);  // of none, nothing is chosen from one
  p.n = n;
  if (slots) {
    check_same_device(kOp, "slots", *slots, rng, "rng");
    FASTEBM_CHECK(
        slots->scalar_type() == ScalarType::Long && slots->dim() == 1 && slots->is_contiguous(),
        kOp, ": slots must be a contiguous int64 tensor (b,)");
    p.n_slots = slots->size(0);
  }
  Tensor chosen = int64s_on(rng, n), own = int64s_on(rng, p.n_slots);
  const int64_t values = n + p.n_slots;
  if (values == 0) return {chosen, own};
  choice_table(&p);
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.t = static_cast<uint32_t>(t);
  p.slots = static_cast<const int64_t*>(data_or_null(slots));
  p.chosen = static_cast<int64_t*>(chosen.mutable_data_ptr());
  p.own = static_cast<int64_t*>(own.mutable_data_ptr());
  if constexpr (kCpu) {
    torch::stable::parallel_for(
        0, values, kGrain, [&](int64_t begin, int64_t end) { choose_slots_cpu(p, begin, end); });
  } else {
    std::optional<DeviceGuard> guard;
    if (rng.is_cuda()) guard.emplace(rng.get_device_index());
    const int error = choose_slots_cuda(p, current_stream(rng));
    FASTEBM_CHECK(error == 0, kOp, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
  return {chosen, own};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "choose_slots(Tensor rng, int size, int n, Tensor? slots, int t) -> "
      "(Tensor chosen, Tensor own)");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("choose_slots", TORCH_BOX((&choose_slots<false>)));
#else
  m.impl("choose_slots", TORCH_BOX((&choose_slots<true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("choose_slots", TORCH_BOX((&choose_slots<false>)));
}
#endif

}  // namespace fastebm
