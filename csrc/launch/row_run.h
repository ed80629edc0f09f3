// How launchers that work on whole samples are run, and what their operators check.
#pragma once
#include <vector>

#include "launch/ops.h"
#include "launch/rows.h"

namespace fastebm {

// Runs one over `batch` samples of `dim` elements: in torch's thread pool on the CPU, 4096 elements
// at least to a thread; at once on a device.
template <auto kLaunch, bool kParallel, class Params>
void run_rows(const char* op, const Tensor& x, int64_t batch, int64_t dim, const Params& p) {
  constexpr int64_t kGrain = 4096;
  if (batch == 0 || dim == 0) return;
  if constexpr (kParallel) {
    torch::stable::parallel_for(
        0, batch, kGrain / std::min(dim, kGrain),
        [&](int64_t begin, int64_t end) { kLaunch(p, begin, end, nullptr); });
  } else {
    std::optional<DeviceGuard> guard;
    if (x.is_cuda()) guard.emplace(x.get_device_index());
    const int error = kLaunch(p, 0, batch, current_stream(x));
    FASTEBM_CHECK(error == 0, op, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
}

// What an operator reads and writes of chains whose samples x are: dense, and kept until the end.
class RowArguments {
 public:
  RowArguments(const char* op, const Tensor& x) : op_(op), x_(x) {
    FASTEBM_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, op,
                  ": x must be float32 or float64, got ", name_of(x.scalar_type()));
    FASTEBM_CHECK(x.dim() > 0, op, ": x must have a batch dimension, (B, ...), got a 0-d tensor");
    FASTEBM_CHECK(sample_dim(x) < int64_t{1} << 32, op,
                  ": a sample may hold at most 2^32 - 1 elements");
  }

  // Like x, or one value for each sample.
  const void* read_samples(const char* what, const Tensor& t) { return keep(like_x(what, t)); }
  const void* read_values(const char* what, const OptionalTensor& t) {
    return t ? keep(of_samples(what, *t)) : nullptr;
  }

  // The same of what is changed; write_back() puts it where it belongs.
  void* write_samples(const char* what, Tensor t) { return write(what, like_x(what, t)); }
  void* write_values(const char* what, Tensor t) { return write(what, of_samples(what, t)); }

  // A number, or one for each sample; `zero`: which may be 0.
  PerSample per_sample(const char* what, double value, const OptionalTensor& values, bool zero) {
    if (values) return {0, read_values(what, values)};
    FASTEBM_CHECK((zero ? value >= 0 : value > 0) && value < kInfinity, op_, ": ", what,
                  " must be finite and ", zero ? ">= 0" : "> 0", ", got ", value);
    if (x_.scalar_type() == ScalarType::Float) check_finite(op_, what, value);
    return {value, nullptr};
  }

  // Both corners or none, (D,) or (B, D). Only on a CPU are the values of (D,) looked at.
  SampleBox box(const OptionalTensor& lo, const OptionalTensor& hi) {
    FASTEBM_CHECK(lo.has_value() == hi.has_value(), op_, ": lo and hi must be given together, got ",
                  lo ? "lo" : "hi", " alone");
    if (!lo) return {nullptr, nullptr, 0};
    const SampleBox box{corner("lo", *lo), corner("hi", *hi), lo->dim() == 2 ? sample_dim(x_) : 0};
    FASTEBM_CHECK(lo->dim() == hi->dim(), op_, ": lo and hi must have the same shape");
    if (box.stride || x_.is_cuda()) return box;
    if (x_.scalar_type() == ScalarType::Double)
      check_order<double>(box);
    else
      check_order<float>(box);
    return box;
  }

  void write_back() {
    for (auto& [to, from] : written_) torch::stable::copy_(to, from);
  }

 private:
  const Tensor& of_dtype(const char* what, const Tensor& t) {
    check_same_device(op_, what, t, x_);
    FASTEBM_CHECK(t.scalar_type() == x_.scalar_type(), op_, ": ", what,
                  " must have the dtype of x, ", name_of(x_.scalar_type()), ", got ",
                  name_of(t.scalar_type()));
    return t;
  }
  const Tensor& like_x(const char* what, const Tensor& t) {
    FASTEBM_CHECK(of_dtype(what, t).sizes().equals(x_.sizes()), op_, ": ", what,
                  " must have the shape of x");
    return t;
  }
  const Tensor& of_samples(const char* what, const Tensor& t) {
    FASTEBM_CHECK(of_dtype(what, t).dim() == 1 && t.size(0) == x_.size(0), op_, ": ", what,
                  " must have one value for each sample, shape (", x_.size(0), ",)");
    return t;
  }
  const void* corner(const char* what, const Tensor& t) {
    const int64_t dim = sample_dim(x_);
    FASTEBM_CHECK(of_dtype(what, t).dim() >= 1 && t.dim() <= 2 && t.size(t.dim() - 1) == dim &&
                      (t.dim() == 1 || t.size(0) == x_.size(0)),
                  op_, ": ", what, " must have shape (", dim, ",) or (", x_.size(0), ", ", dim,
                  ")");
    return keep(t);
  }
  template <class C>
  void check_order(const SampleBox& box) {
    const C *lo = static_cast<const C*>(box.lo), *hi = static_cast<const C*>(box.hi);
    for (int64_t i = 0; i < sample_dim(x_); ++i)
      FASTEBM_CHECK(lo[i] <= hi[i], op_, ": lo must be <= hi, got ", lo[i], " and ", hi[i],
                    " for element ", i);
  }
  const void* keep(const Tensor& t) {
    kept_.push_back(dense(t));
    return kept_.back().const_data_ptr();
  }
  void* write(const char* what, Tensor t) {
    check_written(op_, what, t);
    kept_.push_back(dense(t));
    if (!t.is_contiguous()) written_.emplace_back(t, kept_.back());
    return kept_.back().mutable_data_ptr();
  }

  const char* op_;
  const Tensor& x_;
  std::vector<Tensor> kept_;
  std::vector<std::pair<Tensor, Tensor>> written_;
};

}  // namespace fastebm
