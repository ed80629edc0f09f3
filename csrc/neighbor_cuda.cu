// Nearest references on a CUDA device, block after block of scores: see neighbor_blocks_cuda.h.
#include "element_blocks_cuda.h"
#include "neighbor_direct_cuda.h"
#include "neighbor_select_cuda.h"
#include "neighbor_tensor_cuda.h"

namespace fastebm {
namespace {

template <class X>
int launch_center(const NeighborParams& p, float* center, void* stream) {
  return launch(center_kernel<X>, dim3(static_cast<unsigned>(ceil_div(p.dim, 256))), dim3(256), 0,
                stream, p, center);
}

template <class X>
int launch_score(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  return p.dim <= kDirectDim ? launch_direct_score<X>(p, b, stream)
                             : launch_tensor_score(p, b, stream);
}

template <class X, class Y>
int search(const NeighborParams& p, void* stream) {
  const ScoreBlock largest = plan_blocks(p, p.scratch).block;
  int error = p.dim <= kDirectDim ? 0 : launch_center<X>(p, largest.center, stream);
  for (int64_t query = 0; query < p.n; query += largest.queries)
    for (int64_t reference = 0; reference < p.m; reference += largest.references) {
      ScoreBlock b = largest;
      b.first_query = query;
      b.first_reference = reference;
      b.queries = static_cast<int>(std::min<int64_t>(b.queries, p.n - query));
      b.references = static_cast<int>(std::min<int64_t>(b.references, p.m - reference));
      b.columns = static_cast<int>(ceil_div(b.references, b.chunk));
      b.first = reference == 0;
      b.last = reference + b.references == p.m;
      if (!error) error = launch_score<X>(p, b, stream);
      if (!error) error = launch_select<X, Y>(p, b, stream);
    }
  return error;
}

// The gradient: a group of threads takes a query, a thread every block of four elements that is its
// own. Reads 4 B of each winner and of the query, and writes 4 B, an element.
template <class X, class Y, bool kWhole>
__global__ void __launch_bounds__(kBlockThreads)
    gradient_kernel(NeighborBackwardParams p, RowGroups<kBlockThreads> groups) {
  const int64_t i = groups.row();
  if (i >= p.n) return;
  for (int64_t e = 4 * groups.lane(); e < p.dim; e += 4 * groups.lanes()) {
    const int64_t at = i * p.dim + e;
    const int count = block_size(p.dim, e / 4);
    X x[4], sum[4]{};
    unpack(load_quad<kWhole>(static_cast<const X*>(p.x) + at, count), x);
    for (int64_t c = i * p.k; c < (i + 1) * p.k; ++c) {
      const X slope = neighbor_slope<X>(p, c);
      Y winner[4];
      unpack(load_quad<kWhole>(static_cast<const Y*>(p.winners) + c * p.dim + e, count), winner);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] += neighbor_pull(p, slope, x[j], winner[j]);
    }
    store_quad<kWhole>(pack(sum), static_cast<X*>(p.grad_x) + at, count);
  }
}

template <class X, class Y>
int backward(const NeighborBackwardParams& p, void* stream) {
  const RowGroups<kBlockThreads> groups((p.dim + 3) / 4);
  const bool whole = are_quads<X>(p.dim, p.x, p.grad_x) && are_quads<Y>(p.dim, p.winners);
  return launch(whole ? gradient_kernel<X, Y, true> : gradient_kernel<X, Y, false>,
                groups.grid(p.n), dim3(kBlockThreads), 0, stream, p, groups);
}

}  // namespace

int64_t nearest_neighbor_scratch_cuda(const NeighborParams& p) {
  return plan_blocks(p, nullptr).bytes;
}

int nearest_neighbor_cuda(const NeighborParams& p, void* stream) {
  return visit_reference(p.y_dtype, [&](auto y_type) {
    using Y = decltype(y_type);
    if (p.x_dtype == Dtype::kFloat64) return search<double, Y>(p, stream);
    if constexpr (std::is_same_v<Y, double>)
      return 1;  // cudaErrorInvalidValue: the operator has refused it
    else
      return search<float, Y>(p, stream);
  });
}

int nearest_neighbor_backward_cuda(const NeighborBackwardParams& p, int64_t, int64_t,
                                   void* stream) {
  return visit_reference(p.y_dtype, [&](auto y_type) {
    using Y = decltype(y_type);
    return p.x_dtype == Dtype::kFloat64 ? backward<double, Y>(p, stream)
                                        : backward<float, Y>(p, stream);
  });
}

}  // namespace fastebm
