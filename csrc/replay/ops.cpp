// Schema, checks and registration of the replay operator.
#include "launch/ops.h"

#include <cmath>
#include <utility>
#include <vector>

#include "replay/replay.h"

namespace fastebm {
namespace {

const char* const kOp = "replay_gather";
constexpr size_t kAugmentationValues = 19;
constexpr int64_t kMaxSide = 1 << 14;  // of an image; keeps its pixel arithmetic in 32 bits

Dtype stored_dtype(const Tensor& data) {
  switch (data.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::BFloat16:
      return Dtype::kBfloat16;
    case ScalarType::Byte:
      return Dtype::kUint8;
    default:
      FASTEBM_CHECK(false, kOp, ": data must be float32, bfloat16 or uint8, got ",
                    name_of(data.scalar_type()));
  }
}

void check_index(const Tensor& index, int64_t stored) {
  if (index.is_cuda()) return;  // reading it would wait for the device; such a sample is NaN
  const auto* values = static_cast<const int64_t*>(index.const_data_ptr());
  for (int64_t i = 0; i < index.size(0); ++i)
    FASTEBM_CHECK(values[i] >= -1 && values[i] < stored, kOp, ": index must be in -1..", stored - 1,
                  ", got ", values[i], " for sample ", i);
}

void check_range(const char* what, double lo, double hi, double least, double most) {
  FASTEBM_CHECK(lo >= least && lo <= hi && hi <= most, kOp, ": augmentation's ", what,
                " must be (lo, hi) with ", least, " <= lo <= hi <= ", most, ", got (", lo, ", ", hi,
                ")");
}

// What the drawing of a crop, of colours and of a blur relies on, as fastebm.Augmentation has it.
void check_augmentation(const std::vector<double>& v) {
  constexpr double kSmallest = std::numeric_limits<double>::min();
  constexpr double kLargest = std::numeric_limits<float>::max();
  if (v[0] != 0 || v[1] != 0) check_range("scale", v[0], v[1], kSmallest, 1);
  check_range("ratio", v[2], v[3], kSmallest, kLargest);
  check_range("brightness", v[5], v[6], 0, kLargest);
  check_range("contrast", v[7], v[8], 0, kLargest);
  check_range("saturation", v[9], v[10], 0, kLargest);
  check_range("hue", v[11], v[12], -0.5, 0.5);
  check_range("sigma", v[16], v[17], kSmallest, kLargest);
  const std::pair<const char*, size_t> shares[] = {
      {"hflip_p", 4}, {"jitter_p", 13}, {"grayscale_p", 14}, {"blur_p", 18}};
  for (const auto& [what, i] : shares)
    FASTEBM_CHECK(v[i] >= 0 && v[i] <= 1, kOp, ": augmentation's ", what,
                  " must be in [0, 1], got ", v[i]);
  FASTEBM_CHECK(v[15] >= 0 && v[15] <= kMaxBlurKernel && std::floor(v[15]) == v[15], kOp,
                ": augmentation's kernel_size must be a whole number in 0..", kMaxBlurKernel,
                ", got ", v[15]);
}

// The values in the order in which fastebm.Augmentation lists them.
Augmentation augmentation_of(const std::vector<double>& v) {
  Augmentation a{};
  a.scale = {v[0], v[1]};
  a.ratio = {v[2], v[3]};
  a.hflip_p = v[4];
  for (size_t i = 0; i < 4; ++i) a.color[i] = {v[5 + 2 * i], v[6 + 2 * i]};
  a.jitter_p = v[13];
  a.grayscale_p = v[14];
  a.kernel_size = static_cast<int>(v[15]);
  a.sigma = {v[16], v[17]};
  a.blur_p = v[18];
  a.log_ratio = {std::log(v[2]), std::log(v[3])};
  return a;
}

void check_image(const Tensor& data, const Augmentation& a) {
  FASTEBM_CHECK(data.dim() == 4, kOp,
                ": augmentation needs images, data (N, C, H, W), got samples of ", data.dim() - 1,
                " dimensions");
  const int64_t side = std::min(data.size(2), data.size(3));
  FASTEBM_CHECK(
      std::max(data.size(2), data.size(3)) <= kMaxSide && sample_dim(data) < int64_t{1} << 31, kOp,
      ": an image to augment may have at most ", kMaxSide, " pixels a side");
  FASTEBM_CHECK(a.kernel_size == 0 || (a.kernel_size % 2 == 1 && a.kernel_size / 2 < side), kOp,
                ": augmentation's kernel_size must be odd, and less than twice the shorter side, ",
                side, ", got ", a.kernel_size);
}

template <bool kCpu>
void run(const ReplayParams& params, const Tensor& data) {
  ReplayParams p = params;
  const int64_t one[1] = {1};
  if constexpr (kCpu) {
    const int64_t bytes = (replay_gather_scratch_cpu(p) + 63) / 64 * 64;
    const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t grain = std::max<int64_t>(1, 4096 / p.dim);
    const int64_t tasks = std::max<int64_t>(1, std::min(threads, p.n / grain));
    const int64_t size[1] = {tasks * bytes};
    Tensor scratch = empty_strided_on(data, size, one, 1, aoti_torch_dtype_uint8());
    char* at = static_cast<char*>(scratch.mutable_data_ptr());
    replay_prepare_cpu(p);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        replay_gather_cpu(p, i * p.n / tasks, (i + 1) * p.n / tasks, at + i * bytes);
    });
  } else {
    std::optional<DeviceGuard> guard;
    if (data.is_cuda()) guard.emplace(data.get_device_index());
    const int64_t size[1] = {replay_gather_scratch_cuda(p)};
    Tensor scratch = empty_strided_on(data, size, one, 1, aoti_torch_dtype_uint8());
    p.scratch = scratch.mutable_data_ptr();
    const int error = replay_gather_cuda(p, current_stream(data));
    FASTEBM_CHECK(error == 0, kOp, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
}

template <bool kCpu>
std::tuple<Tensor, Tensor> replay_gather(const Tensor& data_in, const Tensor& index,
                                         const Tensor& rng, int64_t t,
                                         const OptionalTensor& sample_ids, double lo, double hi,
                                         bool dither, double reinit_prob, int64_t init,
                                         std::vector<double> augmentation, OptionalTensor visits) {
  ReplayParams p{};
  p.dtype = stored_dtype(data_in);
  FASTEBM_CHECK(data_in.dim() > 0, kOp, ": data must be (N, *event), got a 0-d tensor");
  FASTEBM_CHECK(index.dim() == 1, kOp, ": index must be (n,)");
  p.n = index.size(0);
  p.stored = data_in.size(0);
  p.dim = sample_dim(data_in);
  FASTEBM_CHECK(p.dim > 0 && p.dim < int64_t{1} << 32, kOp,
                ": a sample must hold 1 to 2^32 - 1 elements, got ", p.dim);
  check_same_device(kOp, "index", index, data_in);
  FASTEBM_CHECK(index.scalar_type() == ScalarType::Long && index.is_contiguous(), kOp,
                ": index must be a contiguous int64 tensor (n,)");
  check_index(index, p.stored);
  check_sample_ids(kOp, sample_ids, data_in, p.n);
  check_stream(kOp, rng, data_in, t, 1, sample_ids ? 0 : p.n);
  if (visits) {
    check_same_device(kOp, "visits", *visits, data_in);
    FASTEBM_CHECK(visits->scalar_type() == ScalarType::Int && visits->dim() == 1 &&
                      visits->size(0) == p.stored && visits->is_contiguous(),
                  kOp, ": visits must be a contiguous int32 tensor (", p.stored, ",)");
  }
  const float width = static_cast<float>(hi) - static_cast<float>(lo);
  FASTEBM_CHECK(hi > lo && width > 0 && std::isfinite(width) && std::isfinite(1 / width), kOp,
                ": value_range must be finite with lo < hi, also in float32, got (", lo, ", ", hi,
                ")");
  FASTEBM_CHECK(reinit_prob >= 0 && reinit_prob <= 1, kOp, ": reinit_prob must be in [0, 1], got ",
                reinit_prob);
  FASTEBM_CHECK(init >= 0 && init <= 2, kOp, ": init must be in 0..2, got ", init);
  FASTEBM_CHECK(augmentation.empty() || augmentation.size() == kAugmentationValues, kOp,
                ": augmentation must hold ", kAugmentationValues, " values, got ",
                augmentation.size());

  const Tensor data = dense(data_in);
  p.augment = !augmentation.empty();
  if (p.augment) {
    check_augmentation(augmentation);
    p.augmentation = augmentation_of(augmentation);
    check_image(data, p.augmentation);
    p.channels = data.size(1);
    p.height = data.size(2);
    p.width = data.size(3);
  }
  std::vector<int64_t> sizes(data.sizes().begin(), data.sizes().end()), strides(sizes.size(), 1);
  sizes[0] = p.n;
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
  Tensor out =
      empty_strided_on(data, sizes.data(), strides.data(), data.dim(), aoti_torch_dtype_float32());
  const int64_t one[1] = {1};
  Tensor slot = empty_strided_on(data, &p.n, one, 1, aoti_torch_dtype_int64());
  if (visits) {
    check_written(kOp, "visits", *visits);
    p.visits = static_cast<int32_t*>(visits->mutable_data_ptr());
  }
  if (p.n == 0) return {out, slot};
  p.data = data.const_data_ptr();
  p.index = static_cast<const int64_t*>(index.const_data_ptr());
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.sample_ids = static_cast<const int64_t*>(data_or_null(sample_ids));
  p.t = static_cast<uint32_t>(t);
  p.lo = static_cast<float>(lo);
  p.hi = static_cast<float>(hi);
  p.dither = dither;
  p.reinit_prob = reinit_prob;
  p.init = static_cast<Initial>(init);
  p.out = static_cast<float*>(out.mutable_data_ptr());
  p.slot = static_cast<int64_t*>(slot.mutable_data_ptr());
  run<kCpu>(p, data);
  return {out, slot};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "replay_gather(Tensor data, Tensor index, Tensor rng, int t, Tensor? sample_ids, float lo, "
      "float hi, bool dither, float reinit_prob, int init, float[] augmentation, Tensor(a!)? "
      "visits) "
      "-> (Tensor x, Tensor slot)");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  m.impl("replay_gather", TORCH_BOX((&replay_gather<false>)));
#else
  m.impl("replay_gather", TORCH_BOX((&replay_gather<true>)));
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) {
  m.impl("replay_gather", TORCH_BOX((&replay_gather<false>)));
}
#endif

}  // namespace fastebm
