// Nearest references on a CUDA device, block after block of scores: see neighbor/blocks_cuda.h.
#include "neighbor/bytes_cuda.h"
#include "neighbor/direct_cuda.h"
#include "neighbor/rows_cuda.h"
#include "neighbor/select_cuda.h"

namespace fastebm {
namespace {

// Makes the queries ready, once for all references.
template <class X, class Y>
int launch_prepare(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  if (p.dim <= kDirectDim) return 0;
  if constexpr (std::is_same_v<Y, uint8_t>)
    if (b.grid_queries) return launch_quantize<X>(p, b, stream);
  return launch_split<X>(p, b, stream);
}

// From the scores of a block to the neighbours there. Queries on a grid come first; some of them
// may leave it and then go the way of the others, whose kernels see on the device if there are any.
template <class X, class Y>
int search_block(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  int error = 0;
  if constexpr (std::is_same_v<Y, uint8_t>) {
    if (b.grid_queries) {
      error = launch_byte_score(p, b, stream);
      if (!error) error = launch_select<X, Y, Grid::kBytes>(p, b, stream);
    }
  } else if constexpr (!std::is_same_v<Y, double>) {
    if (b.grid_queries) {
      error = launch_rounded_score<Y>(p, b, stream);
      if (!error) error = launch_select<X, Y, Grid::kBfloat16>(p, b, stream);
    }
  }
  if (!error)
    error = p.dim <= kDirectDim ? launch_direct_score<X>(p, b, stream)
                                : launch_tensor_score<Y>(p, b, stream);
  return error ? error : launch_select<X, Y, Grid::kNone>(p, b, stream);
}

template <class X, class Y>
int search(const NeighborParams& p, void* stream) {
  const ScoreBlock largest = plan_blocks(p, p.scratch).block;
  int error = 0;
  for (int64_t query = 0; query < p.n; query += largest.queries) {
    ScoreBlock b = largest;
    b.first_query = query;
    b.queries = static_cast<int>(std::min<int64_t>(b.queries, p.n - query));
    if (b.left_out && b.queries <= kRoundedQueries) b.grid_queries = nullptr;
    if (!error) error = launch_prepare<X, Y>(p, b, stream);
    for (int64_t reference = 0; reference < p.m; reference += largest.references) {
      b.first_reference = reference;
      b.references = static_cast<int>(std::min<int64_t>(largest.references, p.m - reference));
      b.columns = static_cast<int>(ceil_div(b.references, b.chunk));
      b.first = reference == 0;
      b.last = reference + b.references == p.m;
      if (!error) error = search_block<X, Y>(p, b, stream);
    }
  }
  return error;
}

// The gradient, see neighbor_gradient: a thread an element. Memory moves 8 B an element, and for
// each neighbour its element.
template <class X, class Y>
__global__ void __launch_bounds__(kRowThreads) gradient_kernel(NeighborBackwardParams p) {
  for_own_elements(p.n, p.dim, [&](int64_t i, int64_t e) {
    static_cast<X*>(p.grad_x)[i * p.dim + e] = neighbor_gradient<X, Y>(p, i, e);
  });
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
    const auto [grid, block] = over_rows(p.n, p.dim);
    if (p.x_dtype == Dtype::kFloat64)
      return launch(gradient_kernel<double, Y>, grid, block, 0, stream, p);
    return launch(gradient_kernel<float, Y>, grid, block, 0, stream, p);
  });
}

}  // namespace fastebm
