// A transition under Metropolis' rule on a CUDA device.
#include "launch/row_groups_cuda.h"
#include "metropolis/step.h"

namespace fastebm {
namespace {

// Computes: whether y of a sample is accepted, and what that adds to its sums; *square gets the
//           gradient's |g|^2 where the sample then is.
// Result:   in all threads of the group; its first one has written energy and acceptance.
template <class C, bool kWhole>
__device__ bool decide(const MetropolisStepParams& p, int64_t row, int lane, int lanes, C* square) {
  const int64_t blocks = row < p.batch ? (p.dim + 3) / 4 : 0;
  ThreadSums<C, 5> parts;  // ProposalSums, and how many elements are outside
  for (int64_t b = lane; b < blocks; b += lanes) {
    const int64_t at = row * p.dim + 4 * b;
    const int count = block_size(p.dim, b);
    C x[4], y[4], g_x[4], g_y[4];
    load_four<C, kWhole>(p.x, at, count, x);
    load_four<C, kWhole>(p.y, at, count, y);
    load_four<C, kWhole>(p.grad, at, count, g_x);
    load_four<C, kWhole>(p.grad_y, at, count, g_y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const C u = y[i] - x[i];
      parts.v[0][i] = fma_rn(u, g_x[i], parts.v[0][i]);
      parts.v[1][i] = fma_rn(u, g_y[i], parts.v[1][i]);
      parts.v[2][i] = fma_rn(g_x[i], g_x[i], parts.v[2][i]);
      parts.v[3][i] = fma_rn(g_y[i], g_y[i], parts.v[3][i]);
      if (i < count && !is_inside(p.box, row, 4 * b + i, y[i])) parts.v[4][i] += C(1);
    }
  }
  // Before the sums, for which threads wait for each other: the energy is written below.
  const C e_x = blocks ? static_cast<const C*>(p.energy)[row] : C(0);
  C found[5];
  parts.fold(lanes, found);
  if (blocks == 0) return false;
  const ProposalSums<C> sums = {found[0], found[1], found[2], found[3]};
  const C step = step_of<C>(p.step_size, row), sigma = scale_of<C>(p.noise_std, row);
  const C log_r = p.log_factor
                      ? log_ratio_of<C, true>(p, row, e_x, sums, step, sigma, found[4] == 0)
                      : log_ratio_of<C, false>(p, row, e_x, sums, step, sigma, found[4] == 0);
  const Normals4 n = normals4(accept_key(p), sample_id(p, row), 0);
  const bool accepted = is_accepted(log_r, n.v[0], n.v[1]);
  if (lane == 0) {
    if (accepted) static_cast<C*>(p.energy)[row] = static_cast<const C*>(p.e_y)[row];
    p.acceptance[(p.log_factor ? p.batch : 0) + row] +=
        p.log_factor ? (accepted ? 1.0f : 0.0f) : acceptance(static_cast<float>(log_r));
  }
  *square = accepted ? sums.square_y : sums.square_x;
  return accepted;
}

// A transition of one sample by a group of threads. float32 moves 16 B an element to decide, 16
// more where that accepts, and 12 to propose, 8 of which are then in the cache.
template <class C, bool kWhole>
__global__ void __launch_bounds__(kRowThreads)
    metropolis_step_kernel(MetropolisStepParams p, int64_t first, SampleGroups groups) {
  const int64_t row = first + groups.row();
  const int lane = groups.lane(), lanes = groups.lanes();
  const int64_t blocks = row < p.batch ? (p.dim + 3) / 4 : 0;
  bool accepted = false;
  C square = 0;
  if (p.e_y) {
    accepted = decide<C, kWhole>(p, row, lane, lanes, &square);
  } else {
    ThreadSums<C, 1> parts;
    for (int64_t b = lane; b < blocks; b += lanes) {
      C g[4];
      load_four<C, kWhole>(p.grad, row * p.dim + 4 * b, block_size(p.dim, b), g);
#pragma unroll
      for (int i = 0; i < 4; ++i) parts.v[0][i] = fma_rn(g[i], g[i], parts.v[0][i]);
    }
    C found[1];
    parts.fold(lanes, found);
    square = found[0];
  }
  if (blocks == 0 || !(accepted || p.propose)) return;
  const C step = step_of<C>(p.next_step_size, row), sigma = scale_of<C>(p.next_noise_std, row);
  const C drift = drift_step(step, sigma, std::sqrt(static_cast<C>(p.dim)), square);
  const NoiseKey key = proposal_key(p);
  const uint64_t id = sample_id(p, row);
  for (int64_t b = lane; b < blocks; b += lanes) {
    const int64_t at = row * p.dim + 4 * b;
    const int count = block_size(p.dim, b);
    C x[4], g[4];
    load_four<C, kWhole>(accepted ? p.y : p.x, at, count, x);
    load_four<C, kWhole>(accepted ? p.grad_y : p.grad, at, count, g);
    if (accepted) {
      store_four<C, kWhole>(x, p.x, at, count);
      store_four<C, kWhole>(g, p.grad, at, count);
    }
    if (!p.propose) continue;
    const Normals4 n = normals4(key, id, static_cast<uint32_t>(b));
    C y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      y[i] = propose_element(x[i], g[i], drift, sigma, static_cast<C>(n.v[i]));
    store_four<C, kWhole>(y, p.y, at, count);
  }
}

template <class C>
int step(const MetropolisStepParams& p, void* stream) {
  const bool whole = are_quads<C>(p.dim, p.x, p.grad, p.y, p.grad_y);
  return launch_rows(whole ? metropolis_step_kernel<C, true> : metropolis_step_kernel<C, false>,
                     p.batch, p.dim, p, stream);
}

}  // namespace

int metropolis_step_cuda(const MetropolisStepParams& p, int64_t, int64_t, void* stream) {
  return p.dtype == Dtype::kFloat64 ? step<double>(p, stream) : step<float>(p, stream);
}

}  // namespace fastebm
