// What every operator needs of torch: the stable ABI (torch >= 2.11) and nothing else. Included by
// the ops.cpp files and what these share; everything below them is free of torch.
#pragma once
#define USE_CUDA  // declares aoti_torch_get_current_cuda_stream in shim.h
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>
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

// These call the C shim; the dispatcher, asked by name, takes 1-2 us more.
inline int32_t device_type(const Tensor& t) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

inline Tensor empty_strided_on(const Tensor& t, const int64_t* sizes, const int64_t* strides,
                               int64_t dim, int32_t dtype) {
  AtenTensorHandle out;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, dtype, device_type(t),
                                                  t.get_device_index(), &out));
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
      STD_TORCH_CHECK(false, op, ": ", what, " must be float32, float64, bfloat16",
                      bytes ? ", float16 or uint8" : " or float16", ", got ",
                      name_of(t.scalar_type()));
  }
}

inline void check_same_device(const char* op, const char* what, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(device_type(t) == device_type(x) && t.get_device_index() == x.get_device_index(),
                  op, ": ", what, " and x are on different devices");
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
