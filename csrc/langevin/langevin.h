// The fused Langevin step x' = clamp(x + clip(-step * clip(grad) + sigma * n)) over raw memory:
// what a caller fills in, the launchers, and the arithmetic of one element. No torch, no Python.
#pragma once
#include "random/philox.h"

namespace fastebm {

// All arrays are dense; x, grad, out hold batch * dim values of `dtype`. A step or sigma comes as a
// value, or per sample as `batch` values of the compute type (float64 for float64, else float32);
// a per-sample value that is negative or not finite makes its sample NaN: it cannot be missed.
struct LangevinParams {
  Dtype dtype;
  int64_t batch, dim;
  const void* x;
  const void* grad;  // null: noise only
  void* out;         // may be x
  uint8_t* mask;     // null, or (batch, blocks_per_row): bit i of the low half says that element i
                     // of the block was not clamped, bit i of the high half that it was not clipped
  double step_size, noise_std;
  const void* step_sizes;     // null, or (batch,)
  const void* noise_stds;     // null, or (batch,)
  const int64_t* rng;         // {key, step, first sample id, 0}, on the device of x
  uint32_t t;                 // added to the step in rng
  const int64_t* sample_ids;  // null: first sample id + row; or (batch,)
  double grad_clip;           // element-wise bound on |grad|, infinity for none
  double grad_norm_clip;      // bound on a sample's |grad|_2, applied first, infinity for none
  double displacement_clip;   // element-wise bound on |x' - x|, before the box, infinity for none
  double lo, hi;              // box, -infinity and infinity for none
  uint32_t tag;
};

// Derivatives of the step: dx = m * dout and dgrad = -step * m * c * dout, with the bits of `mask`.
struct LangevinBackwardParams {
  Dtype dtype;
  int64_t batch, dim;
  const void* grad_out;
  const uint8_t* mask;
  void* grad_x;
  void* grad_grad;
  double step_size;
  const void* step_sizes;
};

// Blocks of four consecutive elements of one sample: what one Philox call serves.
FASTEBM_HD int64_t blocks_per_row(int64_t dim) { return (dim + 3) / 4; }

// Both devices: returns 0 or a cudaError_t; `stream` is a cudaStream_t. The CPU launchers work on
// blocks [begin, end) of the batch * blocks_per_row(dim) there are; the CUDA ones take all of them.
using LangevinLauncher = int(const LangevinParams&, int64_t begin, int64_t end, void* stream);
using LangevinBackwardLauncher = int(const LangevinBackwardParams&, int64_t begin, int64_t end,
                                     void* stream);
LangevinLauncher langevin_step_cpu, langevin_step_cuda;
LangevinBackwardLauncher langevin_step_backward_cpu, langevin_step_backward_cuda;

// What the elements of one sample share. C is the compute type.
template <class C>
struct RowCoefficients {
  C step, sigma, scale, clip, displacement, lo, hi;
};

template <class C>
FASTEBM_HD C checked_coefficient(C v) {
  return v >= C(0) && v - v == C(0) ? v : static_cast<C>(float_from_bits(0x7fc00000u));
}

// Those of a sample that has none of its own.
template <class C>
FASTEBM_HD RowCoefficients<C> common_coefficients(const LangevinParams& p) {
  RowCoefficients<C> c;
  c.step = static_cast<C>(p.step_size);
  c.sigma = static_cast<C>(p.noise_std);
  c.scale = C(1);
  c.clip = static_cast<C>(p.grad_clip);
  c.displacement = static_cast<C>(p.displacement_clip);
  c.lo = static_cast<C>(p.lo);
  c.hi = static_cast<C>(p.hi);
  return c;
}

// `c` with what is the sample's own.
template <class C>
FASTEBM_HD RowCoefficients<C> row_coefficients(const LangevinParams& p, int64_t row,
                                               RowCoefficients<C> c) {
  if (p.step_sizes) c.step = checked_coefficient(static_cast<const C*>(p.step_sizes)[row]);
  if (p.noise_stds) c.sigma = checked_coefficient(static_cast<const C*>(p.noise_stds)[row]);
  return c;
}

FASTEBM_HD NoiseKey noise_key(const LangevinParams& p) {
  return NoiseKey{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]) + p.t, p.tag};
}

FASTEBM_HD uint64_t sample_id(const LangevinParams& p, int64_t row) {
  return static_cast<uint64_t>(p.sample_ids ? p.sample_ids[row] : p.rng[2] + row);
}

// What a sample's gradient is multiplied by, given the sum of its squares.
template <class C>
FASTEBM_HD C norm_clip_scale(double sum_of_squares, double bound) {
  const double norm = sqrt(sum_of_squares);
  return norm > bound ? static_cast<C>(bound / norm) : C(1);
}

// All bounds are selections, of which nvcc makes no branch. Comparisons are false for NaN, which
// therefore passes through, as -0 does at a bound of +0.
template <class C>
FASTEBM_HD C clip(C v, C bound) {
  return std::fabs(v) > bound ? std::copysign(bound, v) : v;
}
template <class C>
FASTEBM_HD C clamp(C v, C lo, C hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}

// The step of one element; !kScaled: c.scale is 1; !kBounded: c.displacement is infinite. Where
// that bound acts the gradient is without effect, as where it is clipped.
template <class C, bool kScaled = true, bool kBounded = true>
FASTEBM_HD C langevin_element(C x, C grad, C n, const RowCoefficients<C>& c, bool* inside,
                              bool* unclipped) {
  const C g = kScaled ? mul_rn(c.scale, grad) : grad;
  *unclipped = std::fabs(g) <= c.clip;
  C y = fma_rn(-c.step, clip(g, c.clip), x);
  y = fma_rn(c.sigma, n, y);
  if (kBounded) {
    const C free = y;
    y = clamp(y, x - c.displacement, x + c.displacement);
    *unclipped = *unclipped && !(free < y) && !(free > y);
  }
  *inside = y >= c.lo && y <= c.hi;
  return clamp(y, c.lo, c.hi);
}

// One block of up to four elements; returns its mask. grad may be null.
template <class T>
FASTEBM_HD uint8_t langevin_block(const T* x, const T* grad, T* out, int count, const float* noise,
                                  const RowCoefficients<Compute<T>>& c) {
  using C = Compute<T>;
  unsigned bits = 0;
  for (int i = 0; i < count; ++i) {
    bool inside, unclipped;
    const C g = grad ? static_cast<C>(widen(grad[i])) : C(0);
    out[i] = narrow<T>(langevin_element<C>(widen(x[i]), g, noise[i], c, &inside, &unclipped));
    bits |= (inside ? 1u : 0u) << i | (unclipped ? 16u : 0u) << i;
  }
  return static_cast<uint8_t>(bits);
}

// The derivatives of one element; bits 0 and 4 of `bits` are those of its mask.
template <class C>
FASTEBM_HD void langevin_backward_element(C grad_out, unsigned bits, C step, C* grad_x,
                                          C* grad_grad) {
  *grad_x = bits & 1u ? grad_out : C(0);
  *grad_grad = bits & 16u ? -mul_rn(step, *grad_x) : C(0);
}

template <class C>
FASTEBM_HD C backward_step(const LangevinBackwardParams& p, int64_t row) {
  return p.step_sizes ? checked_coefficient(static_cast<const C*>(p.step_sizes)[row])
                      : static_cast<C>(p.step_size);
}

// The derivatives of one block.
template <class T>
FASTEBM_HD void langevin_backward_block(const LangevinBackwardParams& p, int64_t row, int64_t block,
                                        int64_t blocks) {
  using C = Compute<T>;
  const C step = backward_step<C>(p, row);
  const unsigned bits = p.mask[row * blocks + block];
  const int64_t first = row * p.dim + 4 * block;
  for (int i = 0; i < 4 && 4 * block + i < p.dim; ++i) {
    C grad_x, grad_grad;
    langevin_backward_element<C>(widen(static_cast<const T*>(p.grad_out)[first + i]), bits >> i,
                                 step, &grad_x, &grad_grad);
    static_cast<T*>(p.grad_x)[first + i] = narrow<T>(grad_x);
    static_cast<T*>(p.grad_grad)[first + i] = narrow<T>(grad_grad);
  }
}

}  // namespace fastebm
