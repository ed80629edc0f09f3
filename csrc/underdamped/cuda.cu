// The underdamped step on a CUDA device.
#include "launch/element_blocks_cuda.h"
#include "underdamped/underdamped.h"

namespace fastebm {
namespace {

// v -= kick g; x += drift v; v = decay v + sigma n; x += drift v, x reflected at the box. A thread
// takes one block of four elements, which it alone reads and writes; float32 moves 20 B an element,
// and 8 B more for a box of single elements, which the caches keep where samples share it.
template <class T, bool kWhole, bool kNoise>
__global__ void __launch_bounds__(kBlockThreads)
    underdamped_step_kernel(UnderdampedParams p, int64_t first_row, uint32_t n_blocks,
                            Divider blocks) {
  using C = Compute<T>;
  const uint32_t i = blockIdx.x * kBlockThreads + threadIdx.x;
  if (i >= n_blocks) return;
  const uint32_t of_launch = blocks(i), block = i - of_launch * blocks.divisor;
  const int64_t row = first_row + of_launch, at = row * p.dim + 4 * static_cast<int64_t>(block);
  const int count = block_size(p.dim, block);
  T *to_x = static_cast<T*>(p.x) + at, *to_v = static_cast<T*>(p.v) + at;
  C x[4], v[4], grad[4];
  widen_quad(load_quad<kWhole>(static_cast<const T*>(to_x), count), x);
  widen_quad(load_quad<kWhole>(static_cast<const T*>(to_v), count), v);
  widen_quad(load_quad<kWhole>(static_cast<const T*>(p.grad) + at, count), grad);
  const auto c = underdamped_coefficients<C>(p, row);
  Normals4 n{};
  if (kNoise) n = normals4(noise_key(p), sample_id(p, row), block);
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < count)
      underdamped_element<C>(&x[j], &v[j], grad[j], n.v[j], c,
                             faces_of<C>(p, row, 4 * static_cast<int64_t>(block) + j));
  store_quad<kWhole>(narrow_quad<T>(x), to_x, count);
  store_quad<kWhole>(narrow_quad<T>(v), to_v, count);
}

template <class T, bool kWhole>
int step(const UnderdampedParams& p, void* stream) {
  const bool noisy = p.noise_stds || p.noise_std != 0;
  return for_each_launch(p.batch, p.dim, [&](int64_t first, uint32_t rows, uint32_t blocks) {
    return launch(noisy ? underdamped_step_kernel<T, kWhole, true>
                        : underdamped_step_kernel<T, kWhole, false>,
                  block_grid(rows * blocks, 1), dim3(kBlockThreads), 0, stream, p, first,
                  rows * blocks, Divider(blocks));
  });
}

}  // namespace

int underdamped_step_cuda(const UnderdampedParams& p, int64_t, int64_t, void* stream) {
  return visit_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    return are_quads<T>(p.dim, p.x, p.v, p.grad) ? step<T, true>(p, stream)
                                                 : step<T, false>(p, stream);
  });
}

}  // namespace fastebm
