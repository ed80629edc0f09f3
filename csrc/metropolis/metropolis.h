// Metropolis' rule for Langevin proposals and for jumps between the modes of a population: the
// arithmetic of one sample, what a caller of the jumps fills in, and their launchers. No torch, no
// Python.
//
// A Langevin proposal from x is y = x - a(x) g(x) + sigma n, g the gradient of E, with a drift that
// is bounded: a(x) = min(step, sigma sqrt(D) / |g(x)|). It is accepted with probability min(1, r),
//   log r = (E(x) - E(y)) / T - (|x - y + a(y) g(y)|^2 - |y - x + a(x) g(x)|^2) / (2 sigma^2),
// T = sigma^2 / (2 step), and then leaves exp(-E / T) as it is (Roberts and Tweedie 1996: MALTA).
//
// A jump is with some probability to a uniform point of the box, which is as likely as its way
// back: log r = (E(x) - E(y)) / T. Else it is by centres c and scales s, which do not depend on x.
// Of all M centres it looks at the m = min(16, M) in a row from a random one. From x, where c_j is
// the nearest of these, it goes by one of the others, c_i:
//   y = c_i + (s_i / s_j) (x - c_j),   log r = (E(x) - E(y)) / T + D log(s_i / s_j),
// refused unless c_i is the nearest of them to y. For then the way back looks at the same centres
// with the same probability, finds i, chooses j among its others as probably as i was chosen here,
// and is the inverse map: the ratio of densities is the Jacobian (s_i / s_j)^D. (Related: smart
// darting, Andricioaei, Straub and Voter 2001.)
//
// What is outside of the box, or has NaN for r, is refused.
#pragma once
#include "random/accept.h"

namespace fastebm {

constexpr uint32_t kJumpTag = 0x8a;

// a(x) of the drift, from |g|^2. C is the compute type, here as below.
template <class C>
FASTEBM_HD C drift_step(C step, C sigma, C root_dim, C square) {
  const C most = sigma * root_dim / std::sqrt(square);
  return most < step ? most : step;
}

// What log r of a Langevin proposal is made of: sums over the elements, u = y - x.
template <class C>
struct ProposalSums {
  C along_x, along_y;    // u . g(x), u . g(y)
  C square_x, square_y;  // |g(x)|^2, |g(y)|^2
};

template <class C>
FASTEBM_HD C log_ratio(C e_x, C e_y, C step, C sigma, C a_x, C a_y, const ProposalSums<C>& s) {
  const C squares = a_y * a_y * s.square_y - a_x * a_x * s.square_x;
  const C sum = a_x * s.along_x + a_y * s.along_y - C(0.5) * squares;
  return (C(2) * step * (e_x - e_y) + sum) / (sigma * sigma);
}

template <class C>
FASTEBM_HD C jump_log_ratio(C e_x, C e_y, C step, C sigma, C log_factor) {
  return C(2) * step * (e_x - e_y) / (sigma * sigma) + log_factor;
}

constexpr uint32_t kWindow = 16;  // most centres that a jump looks at

// Where samples of dim elements jump to.
struct JumpTargets {
  int64_t dim;
  const float* centres;  // (size, dim), or null: all jumps are to uniform points then
  const float* scales;   // (size,), > 0
  int64_t size;
  const float* columns;    // null, or by jump_columns(): the centres, dimension by dimension
  const float *lo, *hi;    // null, or (dim,): the box
  uint32_t uniform_below;  // to a uniform point where word 2 is below; 2^32 - 1 stands for always
};

// Jumps of a batch. x (B, D) and out (B, D) are dense float32.
struct JumpParams {
  int64_t batch;
  JumpTargets to;
  const float* x;
  float* out;
  float* log_factor;          // (B,): what is added to (E(x) - E(y)) / T
  const int64_t* rng;         // {key, step, first sample id, 0}, on the device of x
  uint32_t t;                 // added to the step in rng
  const int64_t* sample_ids;  // null: first sample id + row; or (B,)
};

// Of the centres `first`, `first` + 1, ..., count of them, to the one of this place among those
// that are not the nearest.
struct Jump {
  uint32_t first, count, place;
  bool uniform;
};

// From block 0 under kJumpTag.
FASTEBM_HD Jump jump_of(const Words4& w, const JumpTargets& to) {
  const auto size = static_cast<uint32_t>(to.size);
  Jump jump;
  jump.uniform = w.v[2] < to.uniform_below || size < 2;
  jump.count = size < kWindow ? size : kWindow;
  jump.first = mul_high(w.v[0], size);
  jump.place = mul_high(w.v[1], jump.count - 1);
  return jump;
}

// The row of a centre, in a circle.
FASTEBM_HD int64_t centre_row(const JumpTargets& to, const Jump& jump, uint32_t r) {
  const int64_t row = int64_t{jump.first} + r;
  return row < to.size ? row : row - to.size;
}

// Element d of a sample is x[d * stride].
struct Strided {
  int64_t stride;
  FASTEBM_HD int64_t operator()(int64_t d) const { return d * stride; }
};

// How many floats of a dimension there are in JumpTargets::columns: the circle, and once more its
// first centres, so that those that a jump looks at lie in a row.
FASTEBM_HD int64_t column_stride(const JumpTargets& to) { return to.size + kWindow; }

// Fills in to.columns = `memory`, dim * column_stride() floats.
inline void jump_columns(float* memory, JumpTargets* to) {
  const int64_t stride = column_stride(*to);
  for (int64_t d = 0; d < to->dim; ++d)
    for (int64_t r = 0; r < stride; ++r)
      memory[d * stride + r] = to->centres[r % to->size * to->dim + d];
  to->columns = memory;
}

// nearest_centre() with columns: kWindow distances side by side, each by the same operations.
template <class At>
FASTEBM_HD uint32_t nearest_in_columns(const JumpTargets& to, const Jump& jump, const float* x,
                                       At at) {
  float square[kWindow] = {};
  const int64_t stride = column_stride(to);
  const float* c = to.columns + jump.first;
  for (int64_t d = 0; d < to.dim; ++d, c += stride) {
    const float here = x[at(d)];
    for (uint32_t r = 0; r < kWindow; ++r) {
      const float u = here - c[r];
      square[r] = fma_rn(u, u, square[r]);
    }
  }
  uint32_t nearest = 0;
  float least = INFINITY;
  for (uint32_t r = 0; r < jump.count; ++r)
    if (square[r] < least) {
      least = square[r];
      nearest = r;
    }
  return nearest;
}

// The first of the nearest centres to x, whose element d is x[at(d)].
template <class At>
FASTEBM_HD uint32_t nearest_centre(const JumpTargets& to, const Jump& jump, const float* x, At at) {
#ifdef __CUDA_ARCH__
  constexpr uint32_t kAtOnce = 1;  // a device has other samples to go on with
#else
  constexpr uint32_t kAtOnce = 4;  // or each addition would wait for the one before
  if (to.columns) return nearest_in_columns(to, jump, x, at);
#endif
  uint32_t nearest = 0;
  float least = INFINITY;
  const auto dim = static_cast<uint32_t>(to.dim);
  for (uint32_t first = 0; first < jump.count; first += kAtOnce) {
    const float* c[kAtOnce];
    float square[kAtOnce] = {};
    for (uint32_t q = 0; q < kAtOnce; ++q) {
      const uint32_t r = first + q < jump.count ? first + q : first;
      c[q] = to.centres + centre_row(to, jump, r) * to.dim;
    }
    for (uint32_t d = 0; d < dim; ++d) {
      const float here = x[at(d)];
      for (uint32_t q = 0; q < kAtOnce; ++q) {
        const float u = here - c[q][d];
        square[q] = fma_rn(u, u, square[q]);
      }
    }
    for (uint32_t q = 0; q < kAtOnce && first + q < jump.count; ++q)
      if (square[q] < least) {
        least = square[q];
        nearest = first + q;
      }
  }
  return nearest;
}

// y from x; returns the log of the factor, -infinity where there is no way back.
template <class At>
FASTEBM_HD float jump_between(const JumpTargets& to, const Jump& jump, const float* x, float* y,
                              At at) {
  const uint32_t near = nearest_centre(to, jump, x, at), far = jump.place + (jump.place >= near);
  const int64_t i = centre_row(to, jump, far), j = centre_row(to, jump, near);
  const float *c_i = to.centres + i * to.dim, *c_j = to.centres + j * to.dim;
  const float scale = to.scales[i] / to.scales[j];
  const auto dim = static_cast<uint32_t>(to.dim);
  for (uint32_t d = 0; d < dim; ++d) y[at(d)] = fma_rn(scale, x[at(d)] - c_j[d], c_i[d]);
  if (nearest_centre(to, jump, y, at) != far) return -INFINITY;
  return static_cast<float>(to.dim) * std::log(scale);
}

// An element of a uniform point, from word d % 4 of block 1 + d / 4.
FASTEBM_HD float uniform_element(uint32_t word, float lo, float hi) {
  const float u = fma_rn(uint_to_float_rn(word), 2.3283064365386963e-10f, 1.1641532182693481e-10f);
  return fma_rn(hi - lo, u, lo);
}

// Four random words of a sample.
FASTEBM_HD Words4 jump_words(const NoiseKey& k, uint64_t sample_id, uint32_t block) {
  return philox4x32(noise_counter(k, sample_id, block), static_cast<uint32_t>(k.key),
                    static_cast<uint32_t>(k.key >> 32));
}

// y of a sample at x, elements at at(d) of both; returns the log of the factor. `key` has kJumpTag.
template <class At>
FASTEBM_HD float jump_sample(const JumpTargets& to, const NoiseKey& key, uint64_t sample_id,
                             const float* x, float* y, At at) {
  const Jump jump = jump_of(jump_words(key, sample_id, 0), to);
  if (!jump.uniform) return jump_between(to, jump, x, y, at);
  const auto dim = static_cast<uint32_t>(to.dim), blocks = (dim - 1) / 4 + 1;
  for (uint32_t block = 0; block < blocks; ++block) {
    const Words4 w = jump_words(key, sample_id, 1 + block);
    for (uint32_t j = 0, d = 4 * block; j < 4 && d < dim; ++j, ++d)
      y[at(d)] = uniform_element(w.v[j], to.lo[d], to.hi[d]);
  }
  return 0.0f;
}

FASTEBM_HD NoiseKey noise_key(const JumpParams& p) {
  return NoiseKey{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]) + p.t, kJumpTag};
}

// Of one row of a batch.
FASTEBM_HD void jump_row(const JumpParams& p, int64_t row) {
  const auto id = static_cast<uint64_t>(p.sample_ids ? p.sample_ids[row] : p.rng[2] + row);
  const int64_t at = row * p.to.dim;
  p.log_factor[row] = jump_sample(p.to, noise_key(p), id, p.x + at, p.out + at, Strided{1});
}

// Both devices: returns 0 or a cudaError_t. The CPU launcher takes the samples [begin, end), the
// CUDA one all of them, on `stream`.
using JumpLauncher = int(const JumpParams& p, int64_t begin, int64_t end, void* stream);
JumpLauncher population_jump_cpu, population_jump_cuda;

}  // namespace fastebm
