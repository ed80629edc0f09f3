// A step of underdamped Langevin dynamics in the order of BAOAB over raw memory: what a caller
// fills in, the launchers, and the arithmetic of one element. No torch, no Python.
//
// Given the gradient g at x,
//   v -= kick g;  x += drift v;  v = decay v + sigma n;  x += drift v
// which is B A O A of Leimkuhler and Matthews (2013), the B at the end being part of the next
// step's kick. Where x leaves the box it is reflected, and v with it, after each change of x.
#pragma once
#include "langevin/langevin.h"

namespace fastebm {

// All arrays are dense; x, v, grad hold batch * dim values of `dtype`. A coefficient comes as a
// value, or per sample as `batch` values of the compute type (float64 for float64, else float32); a
// per-sample value that is negative or not finite makes its sample NaN.
struct UnderdampedParams {
  Dtype dtype;
  int64_t batch, dim;
  void *x, *v;
  const void* grad;
  double kick, drift, decay, noise_std;
  const void *kicks, *drifts, *decays, *noise_stds;  // null, or (batch,)
  const int64_t* rng;         // {key, step, first sample id, 0}, on the device of x
  uint32_t t;                 // added to the step in rng
  const int64_t* sample_ids;  // null: first sample id + row; or (batch,)
  double lo, hi;              // box, -infinity and infinity for none
  const void *los, *his;      // null both, or the box of every element, of the compute type:
  int64_t box_stride;         // (dim,) where this is 0, (batch, dim) where it is dim
};

// Both devices: returns 0 or a cudaError_t. The CPU launcher works on blocks [begin, end) of the
// batch * blocks_per_row(dim) there are, the CUDA one takes all of them.
using UnderdampedLauncher = int(const UnderdampedParams&, int64_t begin, int64_t end, void* stream);
UnderdampedLauncher underdamped_step_cpu, underdamped_step_cuda;

constexpr uint32_t kNoiseTag = 0x80;

FASTEBM_HD NoiseKey noise_key(const UnderdampedParams& p) {
  return NoiseKey{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]) + p.t,
                  kNoiseTag};
}

FASTEBM_HD uint64_t sample_id(const UnderdampedParams& p, int64_t row) {
  return static_cast<uint64_t>(p.sample_ids ? p.sample_ids[row] : p.rng[2] + row);
}

// What the elements of one sample share. C is the compute type.
template <class C>
struct UnderdampedCoefficients {
  C kick, drift, decay, sigma;
};

template <class C>
FASTEBM_HD C coefficient(double value, const void* values, int64_t row) {
  return values ? checked_coefficient(static_cast<const C*>(values)[row]) : static_cast<C>(value);
}

template <class C>
FASTEBM_HD UnderdampedCoefficients<C> underdamped_coefficients(const UnderdampedParams& p,
                                                               int64_t row) {
  return {coefficient<C>(p.kick, p.kicks, row), coefficient<C>(p.drift, p.drifts, row),
          coefficient<C>(p.decay, p.decays, row), coefficient<C>(p.noise_std, p.noise_stds, row)};
}

// The box of one element.
template <class C>
struct Faces {
  C lo, hi;
};

template <class C>
FASTEBM_HD Faces<C> faces_of(const UnderdampedParams& p, int64_t row, int64_t element) {
  if (!p.los) return {static_cast<C>(p.lo), static_cast<C>(p.hi)};
  const int64_t at = row * p.box_stride + element;
  return {static_cast<const C*>(p.los)[at], static_cast<const C*>(p.his)[at]};
}

// x that is outside is reflected at the face that it passed, and v with it; what is then still
// outside, x is clamped. NaN stays.
template <class C>
FASTEBM_HD void reflect(C* x, C* v, const Faces<C>& box) {
  const bool below = *x < box.lo, outside = below || *x > box.hi;
  const C face = below ? box.lo : box.hi, mirrored = face - (*x - face);
  *x = clamp(outside ? mirrored : *x, box.lo, box.hi);
  *v = outside ? -*v : *v;
}

template <class C>
FASTEBM_HD void underdamped_element(C* x, C* v, C grad, C n, const UnderdampedCoefficients<C>& c,
                                    const Faces<C>& box) {
  *v = fma_rn(-c.kick, grad, *v);
  *x = fma_rn(c.drift, *v, *x);
  reflect(x, v, box);
  *v = fma_rn(c.sigma, n, mul_rn(c.decay, *v));
  *x = fma_rn(c.drift, *v, *x);
  reflect(x, v, box);
}

}  // namespace fastebm
