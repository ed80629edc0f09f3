// What jumps between the modes of a population read: checked, and turned into what the kernels
// read.
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

// Where samples like those of x jump to.
inline JumpTargets jump_targets(const char* op, const Tensor& x, const OptionalTensor& centres,
                                const OptionalTensor& scales, const Box& box, double uniform_share,
                                std::vector<Tensor>* kept) {
  FASTEBM_CHECK(centres.has_value() == scales.has_value(), op,
                ": centres and scales must be given together, got ", centres ? "centres" : "scales",
                " alone");
  FASTEBM_CHECK(uniform_share >= 0 && uniform_share <= 1, op,
                ": uniform_share must be in [0, 1], got ", uniform_share);
  FASTEBM_CHECK(centres || uniform_share == 1, op,
                ": uniform_share must be 1 without centres, got ", uniform_share);
  FASTEBM_CHECK(uniform_share == 0 || box.lo, op,
                ": uniform_share must be 0 without lo and hi, got ", uniform_share);
  for (int64_t i = 0; uniform_share > 0 && !x.is_cuda() && i < x.size(1); ++i)
    FASTEBM_CHECK(std::isfinite(box.hi[i] - box.lo[i]), op,
                  ": lo, hi and hi - lo must be finite for uniform_share > 0, got ", box.lo[i],
                  " and ", box.hi[i], " for element ", i);
  constexpr double kAll = 4294967295.0;
  JumpTargets to{};
  to.dim = x.size(1);
  to.lo = box.lo;
  to.hi = box.hi;
  to.uniform_below = static_cast<uint32_t>(std::min(std::ldexp(uniform_share, 32), kAll));
  if (!centres) return to;
  check_float32(op, "centres", *centres, x);
  check_float32(op, "scales", *scales, x);
  FASTEBM_CHECK(centres->dim() == 2 && centres->size(1) == to.dim, op,
                ": centres must have shape (M, ", to.dim, "), as samples of x");
  to.size = centres->size(0);
  FASTEBM_CHECK(to.size >= 2 && to.size < int64_t{1} << 32, op,
                ": centres must be 2..2^32 - 1, got ", to.size);
  FASTEBM_CHECK(scales->dim() == 1 && scales->size(0) == to.size, op, ": scales must have shape (",
                to.size, ",), one for each centre");
  const auto data = [&](const Tensor& t) {
    kept->push_back(dense(t));
    return static_cast<const float*>(kept->back().const_data_ptr());
  };
  to.centres = data(*centres);
  to.scales = data(*scales);
  for (int64_t i = 0; !x.is_cuda() && i < to.size; ++i)
    FASTEBM_CHECK(to.scales[i] > 0 && std::isfinite(to.scales[i]), op,
                  ": scales must be finite and > 0, got ", to.scales[i], " for centre ", i);
  return to;
}

}  // namespace fastebm
