// Nearest references on a CUDA device.
#include "device.h"
#include "neighbor.h"

namespace fastebm {
namespace {

// One thread a query, every reference: a placeholder.
template <class X, class Y>
__global__ void exhaustive_kernel(NeighborParams p) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= p.n) return;
  Neighbor list[kMaxNeighbors];
  clear_neighbors(list, p.k);
  for (int64_t j = 0; j < p.m; ++j)
    if (!p.skip || p.skip[i] != j)
      add_neighbor(
          list, p.k,
          {exact_square(static_cast<const X*>(p.x) + i * p.dim,
                        static_cast<const Y*>(p.y) + j * p.dim, p.dim, p.y_scale, p.y_offset),
           j});
  store_neighbors<X>(p, i, list);
}

// The gradient: a CUDA block takes one query, a thread every 256th element.
template <class X, class Y>
__global__ void __launch_bounds__(256) gradient_kernel(NeighborBackwardParams p) {
  const int64_t i = blockIdx.x;
  for (int64_t e = threadIdx.x; e < p.dim; e += 256)
    static_cast<X*>(p.grad_x)[i * p.dim + e] = neighbor_gradient<X, Y>(p, i, e);
}

}  // namespace

int64_t nearest_neighbor_scratch_cuda(const NeighborParams&) { return 64; }

int nearest_neighbor_cuda(const NeighborParams& p, void* stream) {
  return visit_reference(p.y_dtype, [&](auto y_type) {
    using Y = decltype(y_type);
    const dim3 grid(static_cast<unsigned>((p.n + 63) / 64)), block(64);
    if (p.x_dtype == Dtype::kFloat64)
      return launch(exhaustive_kernel<double, Y>, grid, block, 0, stream, p);
    return launch(exhaustive_kernel<float, Y>, grid, block, 0, stream, p);
  });
}

int nearest_neighbor_backward_cuda(const NeighborBackwardParams& p, int64_t, int64_t,
                                   void* stream) {
  return visit_reference(p.y_dtype, [&](auto y_type) {
    using Y = decltype(y_type);
    const dim3 grid(static_cast<unsigned>(p.n)), block(256);
    if (p.x_dtype == Dtype::kFloat64)
      return launch(gradient_kernel<double, Y>, grid, block, 0, stream, p);
    return launch(gradient_kernel<float, Y>, grid, block, 0, stream, p);
  });
}

}  // namespace fastebm
