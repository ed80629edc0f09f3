// The options of Langevin steps: checked, and turned into what the kernels read.
#pragma once
#include "langevin/langevin.h"
#include "launch/ops.h"

namespace fastebm {

inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_coefficient(const char* op, const char* what, double v, const Tensor& x) {
  FASTEBM_CHECK(v >= 0 && v < kInfinity, op, ": ", what, " must be finite and >= 0, got ", v);
  if (compute_type(x) == ScalarType::Float) check_finite(op, what, v);
}

inline void check_bound(const char* op, const char* what, const std::optional<double>& v) {
  FASTEBM_CHECK(!v || *v > 0, op, ": ", what, " must be > 0, got ", v.value_or(0));
}

// A per-sample vector (B,) of `wanted` on the device of x.
inline void check_per_sample(const char* op, const char* what, const OptionalTensor& t,
                             const Tensor& x, ScalarType wanted) {
  if (!t) return;
  check_same_device(op, what, *t, x);
  FASTEBM_CHECK(t->scalar_type() == wanted, op, ": ", what, " must be ", name_of(wanted), ", got ",
                name_of(t->scalar_type()));
  FASTEBM_CHECK(t->dim() == 1 && t->size(0) == x.size(0) && t->is_contiguous(), op, ": ", what,
                " must be contiguous with one value per sample, shape (", x.size(0), ",)");
}

// What is stored as x is.
inline void check_twin(const char* op, const char* what, const Tensor& t, const Tensor& x) {
  check_same_device(op, what, t, x);
  FASTEBM_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", what, " must have the dtype of x, ",
                name_of(x.scalar_type()), ", got ", name_of(t.scalar_type()));
  FASTEBM_CHECK(t.sizes().equals(x.sizes()), op, ": ", what, " must have the shape of x");
}

// The arguments that operators of Langevin steps share, checked and turned into what the kernels
// read; for `steps` steps.
inline LangevinParams langevin_params(
    const char* op, const Tensor& x, double step_size, double noise_std,
    const OptionalTensor& step_sizes, const OptionalTensor& noise_stds, const Tensor& rng,
    int64_t t, int64_t steps, const OptionalTensor& sample_ids, std::optional<double> grad_clip,
    std::optional<double> grad_norm_clip, std::optional<double> displacement_clip,
    std::optional<double> lo, std::optional<double> hi, int64_t tag) {
  LangevinParams p{};
  p.dtype = dtype_of(op, "x", x);
  FASTEBM_CHECK(x.dim() > 0, op, ": x must have a batch dimension, (B, ...), got a 0-d tensor");
  check_coefficient(op, "step_size", step_size, x);
  check_coefficient(op, "noise_std", noise_std, x);
  check_per_sample(op, "step_sizes", step_sizes, x, compute_type(x));
  check_per_sample(op, "noise_stds", noise_stds, x, compute_type(x));
  check_sample_ids(op, sample_ids, x, x.size(0));
  check_stream(op, rng, x, t, steps, sample_ids ? 0 : x.size(0));
  check_tag(op, tag);
  check_bound(op, "grad_clip", grad_clip);
  check_bound(op, "grad_norm_clip", grad_norm_clip);
  check_bound(op, "displacement_clip", displacement_clip);
  FASTEBM_CHECK(lo.value_or(-kInfinity) <= hi.value_or(kInfinity), op,
                ": clamp must be (lo, hi) with lo <= hi, got (", lo.value_or(-kInfinity), ", ",
                hi.value_or(kInfinity), ")");
  p.batch = x.size(0);
  p.dim = sample_dim(x);
  FASTEBM_CHECK(p.dim < int64_t{1} << 32, op, ": a sample may hold at most 2^32 - 1 elements");
  p.step_size = step_size;
  p.noise_std = noise_std;
  p.step_sizes = data_or_null(step_sizes);
  p.noise_stds = data_or_null(noise_stds);
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.t = static_cast<uint32_t>(t);
  p.sample_ids = static_cast<const int64_t*>(data_or_null(sample_ids));
  p.grad_clip = grad_clip.value_or(kInfinity);
  p.grad_norm_clip = grad_norm_clip.value_or(kInfinity);
  p.displacement_clip = displacement_clip.value_or(kInfinity);
  p.lo = lo.value_or(-kInfinity);
  p.hi = hi.value_or(kInfinity);
  p.tag = static_cast<uint32_t>(tag);
  return p;
}

}  // namespace fastebm
