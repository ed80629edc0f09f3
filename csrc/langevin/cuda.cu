// The Langevin step on a CUDA device.
#include <cmath>
#include <type_traits>

#include "langevin/langevin.h"
#include "launch/element_blocks_cuda.h"
#include "launch/sums_cuda.h"

namespace fastebm {
namespace {

// Which bits of a mask stand for the first `count` elements of a block.
__device__ __forceinline__ uint32_t mask_of(int count) { return ((1u << count) - 1) * 0x11u; }

// Computes: the step of one block of four elements, given as stored.
// Result:   in `out`, and the bits of the mask, which cost nothing where they are not used.
template <class T, bool kScaled, bool kBounded>
__device__ __forceinline__ uint32_t step_quad(const Quad<T>& x, const Quad<T>& grad, Quad<T>* out,
                                              const Normals4& n,
                                              const RowCoefficients<Compute<T>>& c) {
  using C = Compute<T>;
  C from[4], g[4], y[4];
  widen_quad(x, from);
  widen_quad(grad, g);
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    bool inside, unclipped;
    y[i] = langevin_element<C, kScaled, kBounded>(from[i], g[i], n.v[i], c, &inside, &unclipped);
    bits |= (inside ? 1u : 0u) << i | (unclipped ? 16u : 0u) << i;
  }
  *out = narrow_quad<T>(y);
  return bits;
}

// out = clamp(x + clip(-step * clip(grad) + sigma * n)). A thread takes kThreadBlocks blocks of
// four elements; float32 in place moves 12 B an element, and 1/4 B for the mask where one is
// wanted. All is loaded before the noise is made, in whose shadow it arrives: nvcc does so where
// four CUDA blocks to an SM are enough, of float64 three. kPlain: there is a gradient but no mask
// and no bound on the displacement, and samples have no step, sigma or id of their own.
template <class T, bool kWhole, bool kNoise, bool kPlain>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 3 : 4)
    langevin_step_kernel(LangevinParams p, RowCoefficients<Compute<T>> common, int64_t first_row,
                         uint32_t n_blocks, Divider blocks) {
  constexpr int kOwn = kThreadBlocks;
  const uint32_t first = blockIdx.x * (kOwn * kBlockThreads) + threadIdx.x;
  if (first >= n_blocks) return;
  const NoiseKey key = noise_key(p);
  int64_t at[kOwn];
  int count[kOwn];
  Quad<T> x[kOwn], grad[kOwn];
  RowCoefficients<Compute<T>> c[kOwn];
  Words4 words[kOwn];
#pragma unroll
  for (int b = 0; b < kOwn; ++b) {
    const uint32_t i = first + b * kBlockThreads;
    const bool there = i < n_blocks;
    const uint32_t row = there ? blocks(i) : 0, block = i - row * blocks.divisor;
    at[b] = kWhole ? 4 * static_cast<int64_t>(i) : row * p.dim + 4 * static_cast<int64_t>(block);
    count[b] = !there ? 0 : kWhole ? 4 : block_size(p.dim, block);
    x[b] = load_quad<kWhole>(static_cast<const T*>(p.x) + at[b], count[b]);
    grad[b] = Quad<T>{};
    if (kPlain || p.grad)
      grad[b] = load_quad<kWhole>(static_cast<const T*>(p.grad) + at[b], count[b]);
    c[b] = kPlain ? common : row_coefficients(p, row, common);
    const int64_t id = !kPlain && p.sample_ids ? p.sample_ids[row] : p.rng[2] + first_row + row;
    words[b] = noise_counter(key, static_cast<uint64_t>(id), block);
  }
  if (kNoise)
    philox4x32(words, static_cast<uint32_t>(key.key), static_cast<uint32_t>(key.key >> 32));
#pragma unroll
  for (int b = 0; b < kOwn; ++b) {
    const Normals4 n = kNoise ? normals_of_words(words[b]) : Normals4{};
    Quad<T> y;
    const uint32_t bits = step_quad<T, false, !kPlain>(x[b], grad[b], &y, n, c[b]);
    store_quad<kWhole>(y, static_cast<T*>(p.out) + at[b], count[b]);
    if (!kPlain && p.mask && count[b])
      p.mask[first + b * kBlockThreads] = static_cast<uint8_t>(bits & mask_of(count[b]));
  }
}

// The same with each sample's gradient norm bounded. A group of threads, one for each block of a
// sample, up to kBlockThreads, takes a sample: sums squares, then steps. Reads grad twice, the
// second time from the cache where a sample fits.
template <class T, bool kWhole, bool kNoise>
__global__ void __launch_bounds__(kBlockThreads)
    langevin_step_norm_clip_kernel(LangevinParams p, RowCoefficients<Compute<T>> common,
                                   int64_t first_row, uint32_t n_rows,
                                   RowGroups<kBlockThreads> groups) {
  using C = Compute<T>;
  const int64_t row = groups.row(), at = row * p.dim;
  const int64_t blocks = row < n_rows ? blocks_per_row(p.dim) : 0;
  const T* grad = static_cast<const T*>(p.grad) + at;
  double sum = 0;  // in this order: row_sum_of_squares() of the CPU gives the same bits
  for (int64_t b = groups.lane(); b < blocks; b += groups.lanes()) {
    C g[4];
    widen_quad(load_quad<kWhole>(grad + 4 * b, block_size(p.dim, b)), g);
    for (const C v : g) sum = fma_rn(static_cast<double>(v), static_cast<double>(v), sum);
  }
  common.scale =
      norm_clip_scale<C>(group_sum<kBlockThreads>(sum, groups.lanes()), p.grad_norm_clip);
  if (blocks == 0) return;
  const auto c = row_coefficients(p, row, common);
  const NoiseKey key = noise_key(p);
  const int64_t id = p.sample_ids ? p.sample_ids[row] : p.rng[2] + first_row + row;
  for (int64_t b = groups.lane(); b < blocks; b += groups.lanes()) {
    const int count = block_size(p.dim, b);
    const Quad<T> x = load_quad<kWhole>(static_cast<const T*>(p.x) + at + 4 * b, count);
    const Quad<T> g = load_quad<kWhole>(grad + 4 * b, count);
    Normals4 n{};
    if (kNoise) n = normals4(key, static_cast<uint64_t>(id), static_cast<uint32_t>(b));
    Quad<T> y;
    const uint32_t bits = step_quad<T, true, true>(x, g, &y, n, c);
    store_quad<kWhole>(y, static_cast<T*>(p.out) + at + 4 * b, count);
    if (p.mask) p.mask[row * blocks + b] = static_cast<uint8_t>(bits & mask_of(count));
  }
}

// grad_x = m * grad_out, grad_grad = -step * m * c * grad_out. A thread takes one block of four;
// float32 moves 12.25 B an element.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kBlockThreads)
    langevin_step_backward_kernel(LangevinBackwardParams p, uint32_t n_blocks, Divider blocks) {
  using C = Compute<T>;
  const uint32_t i = blockIdx.x * kBlockThreads + threadIdx.x;
  if (i >= n_blocks) return;
  const uint32_t row = blocks(i), block = i - row * blocks.divisor;
  const int64_t at = row * p.dim + 4 * static_cast<int64_t>(block);
  const int count = block_size(p.dim, block);
  const C step = backward_step<C>(p, row);
  C out[4], dx[4], dgrad[4];
  widen_quad(load_quad<kWhole>(static_cast<const T*>(p.grad_out) + at, count), out);
  const unsigned bits = p.mask[i];
#pragma unroll
  for (int j = 0; j < 4; ++j) langevin_backward_element(out[j], bits >> j, step, &dx[j], &dgrad[j]);
  store_quad<kWhole>(narrow_quad<T>(dx), static_cast<T*>(p.grad_x) + at, count);
  store_quad<kWhole>(narrow_quad<T>(dgrad), static_cast<T*>(p.grad_grad) + at, count);
}

// Moves a pointer that is not null.
template <class P>
void advance(P*& pointer, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  if (pointer) pointer = reinterpret_cast<P*>(reinterpret_cast<Byte*>(pointer) + bytes);
}

// The samples from `row` on, but for the ids that count from one in rng.
template <class T>
LangevinParams from_row(LangevinParams p, int64_t row) {
  const int64_t moved = row * p.dim * static_cast<int64_t>(sizeof(T));
  const int64_t coefficients = row * static_cast<int64_t>(sizeof(Compute<T>));
  advance(p.x, moved);
  advance(p.grad, moved);
  advance(p.out, moved);
  advance(p.mask, row * blocks_per_row(p.dim));
  advance(p.step_sizes, coefficients);
  advance(p.noise_stds, coefficients);
  advance(p.sample_ids, row * static_cast<int64_t>(sizeof(int64_t)));
  return p;
}

template <class T>
LangevinBackwardParams from_row(LangevinBackwardParams p, int64_t row) {
  const int64_t moved = row * p.dim * static_cast<int64_t>(sizeof(T));
  advance(p.grad_out, moved);
  advance(p.grad_x, moved);
  advance(p.grad_grad, moved);
  advance(p.mask, row * blocks_per_row(p.dim));
  advance(p.step_sizes, row * static_cast<int64_t>(sizeof(Compute<T>)));
  return p;
}

template <class T, bool kWhole, bool kNoise>
int step(const LangevinParams& all, void* stream) {
  const auto common = common_coefficients<Compute<T>>(all);
  const bool plain = all.grad && !all.mask && !all.step_sizes && !all.noise_stds &&
                     !all.sample_ids && std::isinf(all.displacement_clip);
  return for_each_launch(all.batch, all.dim, [&](int64_t first, uint32_t rows, uint32_t blocks) {
    const LangevinParams p = from_row<T>(all, first);
    if (p.grad && p.grad_norm_clip - p.grad_norm_clip == 0) {
      const RowGroups<kBlockThreads> groups(blocks);
      return launch(langevin_step_norm_clip_kernel<T, kWhole, kNoise>, groups.grid(rows),
                    dim3(kBlockThreads), 0, stream, p, common, first, rows, groups);
    }
    return launch(plain ? langevin_step_kernel<T, kWhole, kNoise, true>
                        : langevin_step_kernel<T, kWhole, kNoise, false>,
                  block_grid(rows * blocks, kThreadBlocks), dim3(kBlockThreads), 0, stream, p,
                  common, first, rows * blocks, Divider(blocks));
  });
}

template <class T, bool kWhole>
int backward(const LangevinBackwardParams& all, void* stream) {
  return for_each_launch(all.batch, all.dim, [&](int64_t first, uint32_t rows, uint32_t blocks) {
    return launch(langevin_step_backward_kernel<T, kWhole>, block_grid(rows * blocks, 1),
                  dim3(kBlockThreads), 0, stream, from_row<T>(all, first), rows * blocks,
                  Divider(blocks));
  });
}

}  // namespace

int langevin_step_cuda(const LangevinParams& p, int64_t, int64_t, void* stream) {
  return visit_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    const bool noisy = p.noise_stds || p.noise_std != 0;
    if (are_quads<T>(p.dim, p.x, p.grad, p.out))
      return noisy ? step<T, true, true>(p, stream) : step<T, true, false>(p, stream);
    return noisy ? step<T, false, true>(p, stream) : step<T, false, false>(p, stream);
  });
}

int langevin_step_backward_cuda(const LangevinBackwardParams& p, int64_t, int64_t, void* stream) {
  return visit_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    return are_quads<T>(p.dim, p.grad_out, p.grad_x, p.grad_grad) ? backward<T, true>(p, stream)
                                                                  : backward<T, false>(p, stream);
  });
}

}  // namespace fastebm
