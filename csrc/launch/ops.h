// What every operator needs of torch: the stable ABI (torch >= 2.11) and nothing else. Included by
// the ops.cpp files and what these share; everything below them is free of torch.
#pragma once
#define USE_CUDA  // declares aoti_torch_get_current_cuda_stream in shim.h
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#include "launch/scalar.h"

// Lives in libtorch_cuda. Weak, so that this library also loads under a CPU-only torch, where no
// CUDA tensor can ever ask for a stream.
#pragma weak aoti_torch_get_current_cuda_stream

// Each operator file is built twice: into _C, and for tests into _simt, the CUDA kernels on the
// CPU.
#ifdef FASTEBM_SIMT
#define FASTEBM_NAMESPACE fastebm_simt
#else
#define FASTEBM_NAMESPACE fastebm
#endif

namespace fastebm {

// What a code that a CUDA launcher has just returned means.
const char* cuda_error_text(int error);

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;
using OptionalTensor = std::optional<Tensor>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class... Parts>
std::string text_of(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Python's RuntimeError with the text of what follows `condition`, where that is false. (That of
// torch begins with the place in this source.)
#define FASTEBM_CHECK(condition, ...) \
  if (__builtin_expect(!(condition), 0)) throw std::runtime_error(::fastebm::text_of(__VA_ARGS__))

// These call the C shim; the dispatcher, asked by name, takes 1-2 us more.
inline int32_t device_type(const Tensor& t) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

inline Tensor empty_strided_on(const Tensor& t, const int64_t* sizes, const int64_t* strides,
                               int64_t dim, int32_t dtype) {
  AtenTensorHandle out;
  const int error = aoti_torch_empty_strided(dim, sizes, strides, dtype, device_type(t),
                                             t.get_device_index(), &out);
  FASTEBM_CHECK(error == 0, "no memory for a tensor whose first size is ", dim ? sizes[0] : 1);
  return Tensor(out);
}

inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline Tensor empty_as(const Tensor& t) {  // t is contiguous
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return empty_strided_on(t, t.sizes().data(), t.strides().data(), t.dim(), dtype);
}

inline void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  if (t.is_cuda())
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

inline const char* name_of(ScalarType t) { return torch::headeronly::toString(t); }

inline Dtype dtype_of(const char* op, const char* what, const Tensor& t, bool bytes = false) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBfloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::Byte:
      if (bytes) return Dtype::kUint8;
      [[fallthrough]];
    default:
      FASTEBM_CHECK(false, op, ": ", what, " must be float32, float64, bfloat16",
                    bytes ? ", float16 or uint8" : " or float16", ", got ",
                    name_of(t.scalar_type()));
  }
}

inline void check_same_device(const char* op, const char* what, const Tensor& t, const Tensor& x,
                              const char* other = "x") {
  FASTEBM_CHECK(device_type(t) == device_type(x) && t.get_device_index() == x.get_device_index(),
                op, ": ", what, " and ", other, " are on different devices");
}

inline void check_float32(const char* op, const char* what, const Tensor& t, const Tensor& x) {
  check_same_device(op, what, t, x);
  FASTEBM_CHECK(t.scalar_type() == ScalarType::Float, op, ": ", what, " must be float32, got ",
                name_of(t.scalar_type()));
}

// A number that a kernel takes as a float32.
inline void check_finite(const char* op, const char* what, double v) {
  constexpr double kMost = std::numeric_limits<float>::max();
  FASTEBM_CHECK(v >= -kMost && v <= kMost, op, ": ", what, " must be finite in float32, got ", v);
}

// That elements of what is written to do not share memory, and, what an in-place operator of torch
// does as well: autograd refuses a leaf that requires a gradient, and counts the change. So a graph
// that has kept t says so.
inline void check_written(const char* op, const char* what, Tensor& t) {
  for (int64_t i = 0; i < t.dim(); ++i)
    FASTEBM_CHECK(t.stride(i) != 0 || t.size(i) < 2, op, ": elements of ", what,
                  " must not share memory, as ", what,
                  " is written to; it is an expanded tensor, clone it");
  try {
    torch::stable::copy_(t, t);
  } catch (const std::exception&) {  // its text is lost on the way here
    FASTEBM_CHECK(false, op, ": ", what, " may not be changed in place, as it is a leaf that ",
                  "requires a gradient, or was made in inference mode; clone it");
  }
}

// Where to write: a dense float32 tensor of these sizes, which `shape` puts in words.
inline float* written_floats(const char* op, const char* what, Tensor& t, const Tensor& x,
                             std::initializer_list<int64_t> sizes, const char* shape) {
  check_float32(op, what, t, x);
  FASTEBM_CHECK(std::equal(sizes.begin(), sizes.end(), t.sizes().begin(), t.sizes().end()) &&
                    t.is_contiguous(),
                op, ": ", what, " must be contiguous, of shape ", shape);
  check_written(op, what, t);
  return static_cast<float*>(t.mutable_data_ptr());
}

constexpr int64_t kStepEnd = int64_t{1} << 32, kSampleEnd = int64_t{1} << 56;

// Where a stream is read: `rng` as ChainRNG.state() gives it, on the device of x, at the steps
// t .. t + steps - 1 after its own, for `samples` samples from its offset on. What is on a device
// is not looked at, as that would wait for it.
inline void check_stream(const char* op, const Tensor& rng, const Tensor& x, int64_t t,
                         int64_t steps, int64_t samples) {
  check_same_device(op, "rng", rng, x);
  FASTEBM_CHECK(rng.scalar_type() == ScalarType::Long && rng.numel() == 4 && rng.is_contiguous(),
                op, ": rng must be an int64 tensor of 4 values (ChainRNG.state)");
  FASTEBM_CHECK(t >= 0 && t < kStepEnd, op, ": t must be in 0..2^32 - 1, got ", t);
  if (rng.is_cuda()) return;
  const auto* state = static_cast<const int64_t*>(rng.const_data_ptr());
  FASTEBM_CHECK(state[1] >= 0 && state[1] < kStepEnd, op,
                ": rng must hold a step in 0..2^32 - 1, got ", state[1]);
  FASTEBM_CHECK(steps <= kStepEnd - state[1] - t, op,
                ": t, the steps taken, would pass its end, 2^32: rng is at ", state[1], ", t is ",
                t, ", for ", steps, " steps");
  FASTEBM_CHECK(state[2] >= 0 && samples <= kSampleEnd - state[2], op,
                ": rng must hold a sample_offset in 0..2^56 - ", samples, ", got ", state[2]);
}

// The sample ids of n samples on the device of x, or none.
inline void check_sample_ids(const char* op, const OptionalTensor& ids, const Tensor& x,
                             int64_t n) {
  if (!ids) return;
  check_same_device(op, "sample_ids", *ids, x);
  FASTEBM_CHECK(ids->scalar_type() == ScalarType::Long && ids->dim() == 1 && ids->size(0) == n &&
                    ids->is_contiguous(),
                op, ": sample_ids must be a contiguous int64 tensor (", n, ",)");
  if (ids->is_cuda()) return;
  const auto* values = static_cast<const int64_t*>(ids->const_data_ptr());
  uint64_t bits = 0;
  for (int64_t i = 0; i < n; ++i) bits |= static_cast<uint64_t>(values[i]);
  if (bits < static_cast<uint64_t>(kSampleEnd)) return;
  for (int64_t i = 0; i < n; ++i)
    FASTEBM_CHECK(values[i] >= 0 && values[i] < kSampleEnd, op,
                  ": sample_ids must be in 0..2^56 - 1, got ", values[i], " for sample ", i);
}

inline void check_tag(const char* op, int64_t tag) {
  FASTEBM_CHECK(tag > 0 && tag < 256, op, ": tag must be in 1..255, got ", tag);
}

inline int64_t sample_dim(const Tensor& x) {  // elements of one sample, also when there are none
  int64_t dim = 1;
  for (int64_t i = 1; i < x.dim(); ++i) dim *= x.size(i);
  return dim;
}

inline const void* data_or_null(const OptionalTensor& t) {
  return t ? t->const_data_ptr() : nullptr;
}

}  // namespace fastebm
