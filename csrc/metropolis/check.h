// What jumps between samples of a population read: checked, and turned into what the kernels read.
#pragma once
#include <cmath>
#include <vector>

#include "launch/ops.h"
#include "metropolis/metropolis.h"

namespace fastebm {

// A box for samples (D,): both corners or none. What is not dense is copied, and kept in *kept. On
// a device its values are not looked at.
struct Box {
  const float *lo, *hi;
};

inline Box sample_box(const char* op, const Tensor& x, const OptionalTensor& lo,
                      const OptionalTensor& hi, std::vector<Tensor>* kept) {
  FASTEBM_CHECK(lo.has_value() == hi.has_value(), op, ": lo and hi must be given together, got ",
                lo ? "lo" : "hi", " alone");
  if (!lo) return {nullptr, nullptr};
  const auto corner = [&](const char* what, const Tensor& t) {
    check_float32(op, what, t, x);
    FASTEBM_CHECK(t.dim() == 1 && t.size(0) == x.size(1), op, ": ", what, " must have shape (",
                  x.size(1), ",), one value for each element of a sample");
    kept->push_back(dense(t));
    return static_cast<const float*>(kept->back().const_data_ptr());
  };
  const Box box{corner("lo", *lo), corner("hi", *hi)};
  if (x.is_cuda()) return box;
  for (int64_t i = 0; i < x.size(1); ++i)
    FASTEBM_CHECK(box.lo[i] <= box.hi[i], op, ": lo must be <= hi, got ", box.lo[i], " and ",
                  box.hi[i], " for element ", i);
  return box;
}

// Whom samples like those of x jump between.
struct Population {
  const float* data;  // null for none, then size is 0
  int64_t size;
  uint32_t uniform_below;
};

inline Population jump_population(const char* op, const Tensor& x, const OptionalTensor& samples,
                                  const Box& box, double uniform_share, std::vector<Tensor>* kept) {
  FASTEBM_CHECK(uniform_share >= 0 && uniform_share <= 1, op,
                ": uniform_share must be in [0, 1], got ", uniform_share);
  FASTEBM_CHECK(samples || uniform_share == 1, op, ": uniform_share must be 1 without a ",
                "population, got ", uniform_share);
  FASTEBM_CHECK(uniform_share == 0 || box.lo, op,
                ": uniform_share must be 0 without lo and hi, got ", uniform_share);
  for (int64_t i = 0; uniform_share > 0 && !x.is_cuda() && i < x.size(1); ++i)
    FASTEBM_CHECK(std::isfinite(box.hi[i] - box.lo[i]), op,
                  ": lo, hi and hi - lo must be finite for uniform_share > 0, got ", box.lo[i],
                  " and ", box.hi[i], " for element ", i);
  constexpr double kAll = 4294967295.0;
  Population p{};
  p.uniform_below = static_cast<uint32_t>(std::min(std::ldexp(uniform_share, 32), kAll));
  if (!samples) return p;
  check_float32(op, "population", *samples, x);
  FASTEBM_CHECK(samples->dim() == 2 && samples->size(1) == x.size(1), op,
                ": population must have shape (P, ", x.size(1), "), as samples of x");
  p.size = samples->size(0);
  FASTEBM_CHECK(p.size >= 2 && p.size < int64_t{1} << 32, op,
                ": population must hold 2..2^32 - 1 samples, got ", p.size);
  kept->push_back(dense(*samples));
  p.data = static_cast<const float*>(kept->back().const_data_ptr());
  return p;
}

}  // namespace fastebm
