// A step of Gibbs with gradients of one sample on a CPU; and how its moves are weighted one by one.
#pragma once
#include <algorithm>

#include "discrete/discrete.h"

namespace fastebm {

constexpr int kAtOnce = 64;  // moves whose logits are made at once

// One after another.
struct PlainWeights {
  const NoiseKey& key;  // with kSiteTag

  FASTEBM_HD float largest(const Weighed& w) const {
    float most = -INFINITY, logit[kAtOnce];
    for (int64_t first = 0; first < w.dim; first += kAtOnce) {
      const int count = static_cast<int>(std::min<int64_t>(kAtOnce, w.dim - first));
      logits_of(w, first, count, logit);
      for (int i = 0; i < count; ++i) most = logit[i] > most ? logit[i] : most;
    }
    return most;
  }

  // Of sample `id`; kDraw: with a move, else without.
  template <bool kDraw>
  FASTEBM_HD Draw weigh(const Weighed& w, float largest, uint64_t id) const {
    const int lanes = lanes_of_row(w.dim);
    float part[4 * kLanesOfRow], logit[kAtOnce];
    std::fill_n(part, 4 * lanes, 0.0f);
    Winner winner = {INFINITY, 0};
    for (int64_t first = 0; first < w.dim; first += kAtOnce) {
      const int count = static_cast<int>(std::min<int64_t>(kAtOnce, w.dim - first));
      logits_of(w, first, count, logit);
      Words4 words{};
      for (int i = 0; i < count; ++i) {
        if (kDraw && i % 4 == 0)
          words = random_words(key, id, static_cast<uint32_t>((first + i) / 4));
        const float weight = exact::exp_minus(largest - logit[i]);
        part[(first + i) % (4 * lanes)] += weight;
        if (!kDraw) continue;
        const Winner next = {exact::exponentials(words.v[i % 4]) / weight,
                             static_cast<uint32_t>(first + i)};
        if (is_ahead(next, winner)) winner = next;
      }
    }
    return {log_sum_of(largest, sum_of_weights(part, lanes)), winner.move};
  }
};

template <class Weights>
FASTEBM_HD void gwg_row(const GwgParams& p, int64_t row, const Weights& weights) {
  const int64_t at = row * p.dim;
  const uint64_t id = sample_id(p, row);
  float *x = p.x + at, *y = p.y + at, *grad = p.grad + at;
  const float temperature = temperature_of(p, row), half_inverse = 0.5f / temperature;
  const Weighed at_x = {x, grad, p.dim, p.categories, half_inverse};
  float largest = 0;
  bool known = false;  // it is that of x
  if (p.accept) {
    const Weighed at_y = {y, p.grad_y + at, p.dim, p.categories, half_inverse};
    const Move move = move_to(at_x, p.site[row]), back = {move.to, move.from};
    largest = weights.largest(at_y);
    const float log_sum = weights.template weigh<false>(at_y, largest, id).log_sum;
    const float log_r = gwg_log_ratio(p.energy[row], p.e_y[row], temperature,
                                      logit_of(at_y, back) - log_sum, p.log_q[row]);
    p.acceptance[row] += acceptance(log_r);
    known = is_accepted(p, row, log_r);
    if (known) {
      make_move(at_x, move, x);
      p.energy[row] = p.e_y[row];
      std::copy_n(at_y.grad, p.dim, grad);
    } else {
      make_move(at_x, back, y);
    }
  } else {
    std::copy_n(x, p.dim, y);
  }
  if (!p.propose) return;
  if (!known) largest = weights.largest(at_x);
  const Draw draw = weights.template weigh<true>(at_x, largest, id);
  const Move move = move_to(at_x, draw.move);
  p.log_q[row] = logit_of(at_x, move) - draw.log_sum;
  p.site[row] = draw.move;
  make_move(at_x, move, y);
}

}  // namespace fastebm
