// A step of Hamiltonian Monte Carlo on a CUDA device.
#include "hamiltonian/hamiltonian.h"
#include "launch/row_groups_cuda.h"

namespace fastebm {
namespace {

// Of a sample, and the thread that is here.
struct Place {
  int64_t row, blocks;  // of four elements; none for rows past the last one
  int lane, lanes;
};

// The step of a sample's trajectory.
template <class C>
__device__ C step_of_row(const HamiltonianParams& p, bool next, int64_t row) {
  const C step = step_of<C>(next ? p.next_step_size : p.step_size, row);
  float u = 0.0f;
  if (p.jitter > 0) {
    const NoiseKey key = noise_key(p, next && p.e_y, kJitterTag);
    u = uniform_of(philox4x32(noise_counter(key, sample_id(p, row), 0),
                              static_cast<uint32_t>(key.key), static_cast<uint32_t>(key.key >> 32))
                       .v[0]);
  }
  return jittered(step, static_cast<C>(p.jitter), static_cast<C>(u));
}

template <class C, bool kWhole>
__device__ void advance(const HamiltonianParams& p, const Place& place) {
  if (place.blocks == 0) return;
  const C h = step_of_row<C>(p, false, place.row);
  for (int64_t b = place.lane; b < place.blocks; b += place.lanes) {
    const int64_t at = place.row * p.dim + 4 * b;
    const int count = block_size(p.dim, b);
    C y[4], v[4], g[4];
    load_four<C, kWhole>(p.y, at, count, y);
    load_four<C, kWhole>(p.v, at, count, v);
    load_four<C, kWhole>(p.grad_y, at, count, g);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = kicked(v[i], g[i], h);
      y[i] = moved(y[i], v[i], h);
    }
    store_four<C, kWhole>(v, p.v, at, count);
    store_four<C, kWhole>(y, p.y, at, count);
  }
}

// Computes: whether the end of a sample's trajectory is accepted, and what that adds to its counts.
// Result:   in all threads of the group; its first one has written energy and counts.
template <class C, bool kWhole>
__device__ bool decide(const HamiltonianParams& p, const Place& place) {
  const int64_t row = place.row;
  const C h = place.blocks ? step_of_row<C>(p, false, row) : C(0);
  ThreadSums<C, 2> parts;  // |v|^2, and how many elements are outside
  for (int64_t b = place.lane; b < place.blocks; b += place.lanes) {
    const int64_t at = row * p.dim + 4 * b;
    const int count = block_size(p.dim, b);
    C y[4], v[4], g[4];
    load_four<C, kWhole>(p.y, at, count, y);
    load_four<C, kWhole>(p.v, at, count, v);
    load_four<C, kWhole>(p.grad_y, at, count, g);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const C last = kicked(v[i], g[i], C(0.5) * h);
      if (i < count) parts.v[0][i] = fma_rn(last, last, parts.v[0][i]);
      if (i < count && !is_inside(p.box, row, 4 * b + i, y[i])) parts.v[1][i] += C(1);
    }
  }
  // Before the sums, for which threads wait for each other: the energy is written below.
  const C e_x = place.blocks ? static_cast<const C*>(p.energy)[row] : C(0);
  const C kinetic = place.blocks ? static_cast<const C*>(p.kinetic)[row] : C(0);
  C found[2];
  parts.fold(place.lanes, found);
  if (place.blocks == 0) return false;
  const C e_y = static_cast<const C*>(p.e_y)[row], temperature = scale_of<C>(p.temperature, row);
  const C log_r = log_ratio(e_x, e_y, kinetic, found[0], temperature);
  const C of_inside = found[1] == C(0) ? log_r : static_cast<C>(NAN);
  const Normals4 n = normals4(noise_key(p, false, kAcceptTag), sample_id(p, row), 0);
  const bool accepted = is_accepted(of_inside, n.v[0], n.v[1]);
  if (place.lane == 0) {
    if (accepted) static_cast<C*>(p.energy)[row] = e_y;
    p.divergent[row] += is_divergent(log_r) ? 1 : 0;
    p.acceptance[row] += acceptance(static_cast<float>(of_inside));
  }
  return accepted;
}

// Copies what is accepted, and begins the next trajectory from there.
template <class C, bool kWhole>
__device__ void go_on(const HamiltonianParams& p, const Place& place, bool accepted) {
  const int64_t row = place.row;
  C h = 0, width = 0;
  NoiseKey key{};
  if (p.begin && place.blocks) {
    h = step_of_row<C>(p, true, row);
    width = std::sqrt(scale_of<C>(p.next_temperature, row));
    key = noise_key(p, p.e_y, kVelocityTag);
  }
  ThreadSums<C, 1> parts;
  for (int64_t b = place.lane; b < place.blocks; b += place.lanes) {
    const int64_t at = row * p.dim + 4 * b;
    const int count = block_size(p.dim, b);
    C x[4], g[4], v[4], y[4];
    load_four<C, kWhole>(accepted ? p.y : p.x, at, count, x);
    load_four<C, kWhole>(accepted ? p.grad_y : p.grad, at, count, g);
    if (accepted) {
      store_four<C, kWhole>(x, p.x, at, count);
      store_four<C, kWhole>(g, p.grad, at, count);
    }
    if (!p.begin) continue;
    const Normals4 n = normals4(key, sample_id(p, row), static_cast<uint32_t>(b));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const C start = width * static_cast<C>(n.v[i]);
      if (i < count) parts.v[0][i] = fma_rn(start, start, parts.v[0][i]);
      v[i] = kicked(start, g[i], C(0.5) * h);
      y[i] = moved(x[i], v[i], h);
    }
    store_four<C, kWhole>(v, p.v, at, count);
    store_four<C, kWhole>(y, p.y, at, count);
  }
  if (!p.begin) return;
  C found[1];
  __syncthreads();  // the sums of decide() have been read
  parts.fold(place.lanes, found);
  if (place.blocks && place.lane == 0) static_cast<C*>(p.kinetic)[row] = C(0.5) * found[0];
}

// A step of one sample's trajectory by a group of threads. float32 moves 20 B an element inside of
// a trajectory; 12 at its end, 16 more where that is accepted, and 16 to begin the next one, 8 of
// which are then in the cache.
template <class C, bool kWhole>
__global__ void __launch_bounds__(kRowThreads)
    hmc_step_kernel(HamiltonianParams p, int64_t first, SampleGroups groups) {
  const int64_t row = first + groups.row();
  const Place place{row, row < p.batch ? (p.dim + 3) / 4 : 0, groups.lane(), groups.lanes()};
  if (p.grad_y && !p.e_y) return advance<C, kWhole>(p, place);
  const bool accepted = p.e_y && decide<C, kWhole>(p, place);
  go_on<C, kWhole>(p, place, accepted);
}

template <class C>
int step(const HamiltonianParams& p, void* stream) {
  const bool whole = are_quads<C>(p.dim, p.x, p.grad, p.y, p.v, p.grad_y);
  return launch_rows(whole ? hmc_step_kernel<C, true> : hmc_step_kernel<C, false>, p.batch, p.dim,
                     p, stream);
}

}  // namespace

int hmc_step_cuda(const HamiltonianParams& p, int64_t, int64_t, void* stream) {
  return p.dtype == Dtype::kFloat64 ? step<double>(p, stream) : step<float>(p, stream);
}

}  // namespace fastebm
