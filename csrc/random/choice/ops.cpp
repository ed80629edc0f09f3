// Schemas, checks and registration of the choice of distinct slots: of all, and one a stratum.
#include "launch/ops.h"

#include <algorithm>

#include "random/choice/strata.h"

namespace fastebm {
namespace {

const char* const kOp = "choose_slots";
const char* const kStrataOp = "choose_strata";
constexpr int64_t kGrain = 2048;

Tensor int64s_on(const Tensor& t, int64_t n) {
  const int64_t one[1] = {1};
  return empty_strided_on(t, &n, one, 1, aoti_torch_dtype_int64());
}

void check_size(const char* op, int64_t size) {
  FASTEBM_CHECK(size >= 0 && size <= kMaxChoice, op, ": size must be in 0..2^40, got ", size);
}

// Runs one of the operators' work on the device of `rng`.
template <bool kCpu, class Cpu, class Cuda>
void run(const char* op, const Tensor& rng, int64_t values, Cpu cpu, Cuda cuda) {
  if constexpr (kCpu) {
    torch::stable::parallel_for(0, values, kGrain, cpu);
  } else {
    std::optional<DeviceGuard> guard;
    if (rng.is_cuda()) guard.emplace(rng.get_device_index());
    const int error = cuda(current_stream(rng));
    FASTEBM_CHECK(error == 0, op, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
}

template <bool kCpu>
std::tuple<Tensor, Tensor> choose_slots(const Tensor& rng, int64_t size, int64_t n,
                                        const OptionalTensor& slots, int64_t t) {
  check_stream(kOp, rng, rng, t, 1, 0);
  check_size(kOp, size);
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
  run<kCpu>(
      kOp, rng, values, [&](int64_t begin, int64_t end) { choose_slots_cpu(p, begin, end); },
      [&](void* stream) { return choose_slots_cuda(p, stream); });
  return {chosen, own};
}

template <bool kCpu>
Tensor choose_strata(const Tensor& rng, int64_t size, int64_t n, int64_t first, int64_t total) {
  check_stream(kStrataOp, rng, rng, 0, 1, 0);
  check_size(kStrataOp, size);
  FASTEBM_CHECK(n >= 0 && n <= kMostStrata, kStrataOp, ": n must be in 0..2^22, got ", n);
  FASTEBM_CHECK(total >= 0 && total <= kMostStrata, kStrataOp, ": total must be in 0..2^22, got ",
                total);
  FASTEBM_CHECK(total <= size, kStrataOp, ": total must be in 0..", size, ", the size, got ",
                total);
  FASTEBM_CHECK(first >= 0 && first <= total, kStrataOp, ": first must be in 0..", total,
                ", the total, got ", first);
  FASTEBM_CHECK(n <= total - first, kStrataOp, ": n must be in 0..", total - first,
                ", the rows from first on, got ", n);
  Tensor chosen = int64s_on(rng, n);
  if (n == 0) return chosen;
  StrataParams p{};
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.first = first;
  p.n = n;
  p.chosen = static_cast<int64_t*>(chosen.mutable_data_ptr());
  strata_blocks(&p, size, total);
  run<kCpu>(
      kStrataOp, rng, n, [&](int64_t begin, int64_t end) { choose_strata_cpu(p, begin, end); },
      [&](void* stream) { return choose_strata_cuda(p, stream); });
  return chosen;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "choose_slots(Tensor rng, int size, int n, Tensor? slots, int t) -> "
      "(Tensor chosen, Tensor own)");
  m.def("choose_strata(Tensor rng, int size, int n, int first, int total) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  constexpr bool kCpu = false;
#else
  constexpr bool kCpu = true;
#endif
  m.impl("choose_slots", TORCH_BOX((&choose_slots<kCpu>)));
  m.impl("choose_strata", TORCH_BOX((&choose_strata<kCpu>)));
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("choose_slots", TORCH_BOX((&choose_slots<false>)));
  m.impl("choose_strata", TORCH_BOX((&choose_strata<false>)));
}
#endif

}  // namespace fastebm
