// What operators that take whole samples read beside them, and the order of sums over a sample's
// elements, which CPUs and devices share.
#pragma once
#include <cmath>

#include "launch/scalar.h"

namespace fastebm {

// A number, or one for each sample. A value of a tensor that is not in its range is NaN to whom
// reads it: its sample is refused.
struct PerSample {
  double value;
  const void* values;  // null, or (batch,) of the compute type
};

template <class C>
FASTEBM_HD C value_of(const PerSample& v, int64_t row) {
  return v.values ? static_cast<const C*>(v.values)[row] : static_cast<C>(v.value);
}
// Of a step: finite and not negative.
template <class C>
FASTEBM_HD C step_of(const PerSample& v, int64_t row) {
  const C step = value_of<C>(v, row);
  return step >= C(0) && step - step == C(0) ? step : static_cast<C>(NAN);
}
// Of a temperature or a width of noise: finite and positive.
template <class C>
FASTEBM_HD C scale_of(const PerSample& v, int64_t row) {
  const C scale = value_of<C>(v, row);
  return scale > C(0) && scale - scale == C(0) ? scale : static_cast<C>(NAN);
}

// The box that samples may not leave: null for none, else element d of the corner of sample r is at
// r * stride + d.
struct SampleBox {
  const void *lo, *hi;
  int64_t stride;
};

// False for NaN, also where there is no box.
template <class C>
FASTEBM_HD bool is_inside(const SampleBox& box, int64_t row, int64_t d, C y) {
  if (!box.lo) return y == y;
  const int64_t at = row * box.stride + d;
  return y >= static_cast<const C*>(box.lo)[at] && y <= static_cast<const C*>(box.hi)[at];
}

// Element i of a sample adds to partial sum i % kPartials, one after the other; then the four of a
// thread are folded, and those of the threads, as many as a sample has fours of elements, rounded
// up to a power of two, as by group_sums() of launch/sums_cuda.h.
constexpr int kRowThreads = 64, kPartials = 4 * kRowThreads;

template <class C>
FASTEBM_HD C fold_four(C a, C b, C c, C d) {
  return (a + c) + (b + d);
}

// Of a sample of dim elements.
inline int threads_of_row(int64_t dim) {
  int threads = 1;
  while (threads < kRowThreads && 4 * threads < dim) threads *= 2;
  return threads;
}

// A CPU takes samples in tiles: so many that their numbers stay in its cache.
constexpr int kShortDim = 4;  // elements of a sample beside which others are taken lane by lane
constexpr int kTileRows = 128, kTileFloats = 16 * kPartials, kMaxLanes = 16;

inline int tile_rows(int64_t dim) {
  return dim <= kShortDim ? kTileRows : dim <= kPartials ? kTileFloats / kPartials : 1;
}

}  // namespace fastebm
