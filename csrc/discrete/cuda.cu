// Gibbs with gradients on a CUDA device.
#include "discrete/discrete.h"
#include "launch/element_blocks_cuda.h"
#include "launch/fold_cuda.h"

namespace fastebm {
namespace {

using Groups = RowGroups<kLanesOfRow>;

// log w of the four moves of a block; -infinity where there is none.
template <bool kWhole>
__device__ __forceinline__ void block_logits(const Weighed& w, int64_t block, float (&logit)[4]) {
  const int count = block_size(w.dim, block);
  const int64_t first = 4 * block;
  float x[4], grad[4];
  widen_quad(load_quad<kWhole>(w.grad + first, count), grad);
  if (w.categories == 0) {
    widen_quad(load_quad<kWhole>(w.x + first, count), x);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      logit[i] = i < count ? binary_logit(x[i], grad[i], w.half_inverse) : -INFINITY;
    return;
  }
  int64_t end = first, from = 0;  // of the site
  float grad_from = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    logit[i] = -INFINITY;
    if (i >= count) continue;
    if (first + i >= end) {
      const int64_t site = first_of_site(w.categories, first + i);
      end = site + w.categories;
      from = current_of_site(w.x, w.categories, site);
      grad_from = w.grad[from];
    }
    if (first + i != from) logit[i] = categorical_logit(grad_from, grad[i], w.half_inverse);
  }
}

// Computes: the largest log w of the blocks of this thread, of its group's `blocks`.
template <bool kWhole>
__device__ float own_largest(const Weighed& w, const Groups& groups, int64_t blocks) {
  float most = -INFINITY, logit[4];
  for (int64_t b = groups.lane(); b < blocks; b += groups.lanes()) {
    block_logits<kWhole>(w, b, logit);
#pragma unroll
    for (const float v : logit) most = v > most ? v : most;
  }
  return most;
}

__device__ float group_largest(float own, const Groups& groups) {
  return group_fold<kLanesOfRow>(own, groups.lanes(),
                                 [](float a, float b) { return a > b ? a : b; });
}

struct Partial {
  float part[4];
  Winner winner;
};

// Computes: log sum w over the moves of a group's `blocks`, and with kDraw which one is drawn.
// Result:   in every thread of the group. Needs all threads of the CUDA block here.
template <bool kWhole, bool kDraw>
__device__ Draw weigh(const Weighed& w, const Groups& groups, int64_t blocks, float largest,
                      const NoiseKey& key, uint64_t id) {
  Partial own = {{0, 0, 0, 0}, {INFINITY, 0}};
  for (int64_t b = groups.lane(); b < blocks; b += groups.lanes()) {
    float logit[4];
    block_logits<kWhole>(w, b, logit);
    Words4 words{};
    if (kDraw) words = random_words(key, id, static_cast<uint32_t>(b));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float weight = exact::exp_minus(largest - logit[i]);
      own.part[i] += weight;
      const Winner next = {exact::exponentials(words.v[i]) / weight,
                           static_cast<uint32_t>(4 * b + i)};
      if (kDraw && is_ahead(next, own.winner)) own.winner = next;
    }
  }
  const Partial all =
      group_fold<kLanesOfRow>(own, groups.lanes(), [](const Partial& a, const Partial& b) {
        Partial of;
        for (int i = 0; i < 4; ++i) of.part[i] = a.part[i] + b.part[i];
        of.winner = is_ahead(b.winner, a.winner) ? b.winner : a.winner;
        return of;
      });
  const float sum = (all.part[0] + all.part[2]) + (all.part[1] + all.part[3]);
  return {log_sum_of(largest, sum), all.winner.move};
}

template <bool kWhole>
__device__ void copy_blocks(const Groups& groups, int64_t dim, int64_t blocks, const float* from,
                            float* to) {
  for (int64_t b = groups.lane(); b < blocks; b += groups.lanes()) {
    const int count = block_size(dim, b);
    store_quad<kWhole>(load_quad<kWhole>(from + 4 * b, count), to + 4 * b, count);
  }
}

// x <- y where log r > log u, then the next y. A group of threads, one for each block of four
// elements, up to kLanesOfRow, takes a sample: all of them come to the same verdict and the same
// move, which the first one writes. float32 moves 16 B an element to accept y, 8 B more where it is
// accepted, and reads 8 B twice for the next one, from the caches where a sample fits.
template <bool kWhole>
__global__ void __launch_bounds__(kLanesOfRow) gwg_step_kernel(GwgParams p, Groups groups) {
  const bool there = groups.row() < p.batch, first = groups.lane() == 0;
  const int64_t row = there ? groups.row() : 0, at = row * p.dim;
  const int64_t blocks = there ? (p.dim + 3) / 4 : 0;
  float *x = p.x + at, *y = p.y + at, *grad = p.grad + at;
  const NoiseKey key = noise_key(p, kSiteTag);
  const uint64_t id = sample_id(p, row);
  const float temperature = temperature_of(p, row), half_inverse = 0.5f / temperature;
  const Weighed at_x = {x, grad, p.dim, p.categories, half_inverse};
  float largest = 0;
  bool known = false;  // it is that of x
  if (p.accept) {
    const Weighed at_y = {y, p.grad_y + at, p.dim, p.categories, half_inverse};
    const int64_t site = p.site[row];
    const bool real = there && site >= 0 && site < p.dim;  // on a device it is not checked before
    const Move move = move_to(at_x, real ? site : 0), back = {move.to, move.from};
    largest = group_largest(own_largest<kWhole>(at_y, groups, blocks), groups);
    const float log_sum = weigh<kWhole, false>(at_y, groups, blocks, largest, key, id).log_sum;
    const float e_y = p.e_y[row];
    const float log_r = gwg_log_ratio(p.energy[row], e_y, temperature,
                                      logit_of(at_y, back) - log_sum, p.log_q[row]);
    known = real && is_accepted(p, row, log_r);
    __syncthreads();  // all have read what is written now
    if (real && first) {
      p.acceptance[row] += acceptance(log_r);
      if (known) p.energy[row] = e_y;
      if (known)
        make_move(at_x, move, x);
      else
        make_move(at_x, back, y);
    }
    if (known) copy_blocks<kWhole>(groups, p.dim, blocks, at_y.grad, grad);
  } else {
    copy_blocks<kWhole>(groups, p.dim, blocks, x, y);
  }
  if (!p.propose) return;
  __syncthreads();
  if (!known) largest = own_largest<kWhole>(at_x, groups, blocks);
  largest = group_largest(largest, groups);
  const Draw draw = weigh<kWhole, true>(at_x, groups, blocks, largest, key, id);
  if (!there || !first) return;
  const Move move = move_to(at_x, draw.move);
  p.log_q[row] = logit_of(at_x, move) - draw.log_sum;
  p.site[row] = draw.move;
  make_move(at_x, move, y);
}

}  // namespace

int gwg_step_cuda(const GwgParams& p, int64_t, int64_t, void* stream) {
  const Groups groups((p.dim + 3) / 4);
  const bool whole = are_quads<float>(p.dim, p.x, p.y, p.grad, p.grad_y);
  return launch(whole ? gwg_step_kernel<true> : gwg_step_kernel<false>, groups.grid(p.batch),
                dim3(kLanesOfRow), 0, stream, p, groups);
}

}  // namespace fastebm
