// Gibbs with gradients over raw memory (Grathwohl, Swersky, Hashemi, Duvenaud and Maddison 2021):
// the arithmetic of one sample, what a caller fills in, and the launchers. No torch, no Python.
//
// From x, one move of all that change one site is drawn with probability q(y|x) = w_y / sum w,
// w = exp(d / 2), d the change of -E / T to first order, by the gradient g at x:
//   binary, x in {0, 1}: element i flips,               d = (2 x_i - 1) g_i / T
//   categorical, one-hot: a site takes category k,      d = (g_current - g_k) / T
// It is accepted where log r = (E(x) - E(y)) / T + log q(x|y) - log q(y|x) > log u; the way back is
// drawn by the gradient at y.
//
// The draw is a race of exponentials, which is Gumbel's: of all moves that with the least e / w, e
// a standard exponential of its own. exp and log are those of random/exact.h, and sums are of
// partial ones, see sum_of_weights(): every path gives the same bits.
#pragma once
#include "metropolis/metropolis.h"

namespace fastebm {

constexpr uint32_t kSiteTag = 0x8e;

// All arrays are dense. x, grad, y, grad_y (batch, dim) and the others (batch,) are float32; moves
// are numbered by the element that flips, or that becomes 1.
struct GwgParams {
  int64_t batch, dim;
  int64_t categories;  // 0: binary, else they divide dim
  float *x, *energy, *grad;
  float* log_q;       // log q(y|x) of the last proposal
  int64_t* site;      // its move
  float* acceptance;  // to which min(1, r) is added
  float* y;           // the last proposal, from which it is turned into the next one
  const float *e_y, *grad_y;
  float temperature;
  const float* temperatures;  // null, or (batch,)
  const int64_t* rng;         // {key, step, first sample id, 0}, on the device of x
  uint32_t t;                 // added to the step in rng
  const int64_t* sample_ids;  // null: first sample id + row; or (batch,)
  bool accept;                // or refuse y, before the next proposal
  bool propose;
};

// Both devices: returns 0 or a cudaError_t. The CPU launcher takes the samples [begin, end), the
// CUDA one all of them, on `stream`.
using GwgLauncher = int(const GwgParams& p, int64_t begin, int64_t end, void* stream);
GwgLauncher gwg_step_cpu, gwg_step_cuda;

FASTEBM_HD NoiseKey noise_key(const GwgParams& p, uint32_t tag) {
  return NoiseKey{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]) + p.t, tag};
}

FASTEBM_HD Words4 random_words(const NoiseKey& k, uint64_t sample_id, uint32_t block) {
  return philox4x32(noise_counter(k, sample_id, block), static_cast<uint32_t>(k.key),
                    static_cast<uint32_t>(k.key >> 32));
}

FASTEBM_HD uint64_t sample_id(const GwgParams& p, int64_t row) {
  return static_cast<uint64_t>(p.sample_ids ? p.sample_ids[row] : p.rng[2] + row);
}

// NaN, which refuses everything, where a sample's own is not > 0 and finite.
FASTEBM_HD float temperature_of(const GwgParams& p, int64_t row) {
  if (!p.temperatures) return p.temperature;
  const float t = p.temperatures[row];
  return t > 0.0f && t - t == 0.0f ? t : float_from_bits(0x7fc00000u);
}

// A state of one sample, and how its moves are weighted.
struct Weighed {
  const float *x, *grad;
  int64_t dim, categories;
  float half_inverse;  // 1 / (2 T)
};

FASTEBM_HD int64_t first_of_site(int64_t categories, int64_t element) {
  return element / categories * categories;
}

// The element that is 1, of a site that begins at `first`; the first one where none is.
FASTEBM_HD int64_t current_of_site(const float* x, int64_t categories, int64_t first) {
  for (int64_t i = first; i < first + categories; ++i)
    if (x[i] > 0.5f) return i;
  return first;
}

// Which element becomes 0 and which 1; of a binary sample both are the one that flips.
struct Move {
  int64_t from, to;
};

FASTEBM_HD Move move_to(const Weighed& w, int64_t to) {
  if (w.categories == 0) return {to, to};
  return {current_of_site(w.x, w.categories, first_of_site(w.categories, to)), to};
}

FASTEBM_HD float binary_logit(float x, float grad, float half_inverse) {
  return mul_rn(mul_rn(fma_rn(2.0f, x, -1.0f), grad), half_inverse);
}

FASTEBM_HD float categorical_logit(float grad_from, float grad_to, float half_inverse) {
  return mul_rn(grad_from - grad_to, half_inverse);
}

// log w of a move.
FASTEBM_HD float logit_of(const Weighed& w, const Move& move) {
  return w.categories == 0 ? binary_logit(w.x[move.to], w.grad[move.to], w.half_inverse)
                           : categorical_logit(w.grad[move.from], w.grad[move.to], w.half_inverse);
}

FASTEBM_HD void make_move(const Weighed& w, const Move& move, float* x) {
  if (w.categories == 0) {
    x[move.to] = 1.0f - x[move.to];
  } else {
    x[move.from] = 0.0f;
    x[move.to] = 1.0f;
  }
}

// log w of the moves to `count` elements from `first` on; -infinity of a category that is there.
FASTEBM_HD void logits_of(const Weighed& w, int64_t first, int count, float* logit) {
  if (w.categories == 0) {
    for (int i = 0; i < count; ++i)
      logit[i] = binary_logit(w.x[first + i], w.grad[first + i], w.half_inverse);
    return;
  }
  for (int i = 0; i < count;) {
    const int64_t site = first_of_site(w.categories, first + i), end = site + w.categories;
    const int64_t from = current_of_site(w.x, w.categories, site);
    for (; i < count && first + i < end; ++i)
      logit[i] = first + i == from
                     ? -INFINITY
                     : categorical_logit(w.grad[from], w.grad[first + i], w.half_inverse);
  }
}

// The elements of a sample are shared out in blocks of four to kLanesOfRow threads, or as many of
// them, a power of two, as there are blocks.
constexpr int kLanesOfRow = 256;

FASTEBM_HD int lanes_of_row(int64_t dim) {
  int lanes = 1;
  while (4 * lanes < dim && lanes < kLanesOfRow) lanes *= 2;
  return lanes;
}

// The sum of four partial sums for each of `lanes` threads, in the order of group_fold() of the
// CUDA kernel: the lanes of a warp are folded in halves, then the warps, then the four. `part` is
// overwritten.
FASTEBM_HD float sum_of_weights(float* part, int lanes) {
  const int warp = lanes < 32 ? lanes : 32;
  for (int w = 0; w < lanes; w += warp)
    for (int half = warp / 2; half; half /= 2)
      for (int i = 4 * w; i < 4 * (w + half); ++i) part[i] += part[i + 4 * half];
  for (int half = lanes / 64; half; half /= 2)
    for (int w = 0; w < half; ++w)
      for (int i = 128 * w; i < 128 * w + 4; ++i) part[i] += part[i + 128 * half];
  return (part[0] + part[2]) + (part[1] + part[3]);
}

// The move that is ahead in the race. Ties go to the first.
struct Winner {
  float time;
  uint32_t move;
};

FASTEBM_HD bool is_ahead(const Winner& a, const Winner& b) {
  return a.time < b.time || (a.time == b.time && a.move < b.move);
}

// Of all moves from one state: log sum w, and which one is drawn.
struct Draw {
  float log_sum;
  uint32_t move;
};

// log sum w, given that of w / the largest.
FASTEBM_HD float log_sum_of(float largest, float sum) { return largest + exact::log(sum); }

// log r of a proposal.
FASTEBM_HD float gwg_log_ratio(float e_x, float e_y, float temperature, float log_q_back,
                               float log_q) {
  return (e_x - e_y) / temperature + (log_q_back - log_q);
}

// Whether a proposal is accepted.
FASTEBM_HD bool is_accepted(const GwgParams& p, int64_t row, float log_r) {
  const Normals4 n = normals4(noise_key(p, kAcceptTag), sample_id(p, row), 0);
  return is_accepted(log_r, n.v[0], n.v[1]);
}

}  // namespace fastebm
