// Kernels over the elements of (rows, dim): a thread an element, a CUDA block elements of one row
// or as many short rows as fill it.
#pragma once
#include "launch/device.h"
#include "neighbor/blocks_cuda.h"

namespace fastebm {
namespace {

constexpr int kRowThreads = 256;

// Grid and block for rows, dim >= 1.
inline std::pair<dim3, dim3> over_rows(int64_t rows, int64_t dim) {
  unsigned wide = 1;
  while (wide < kRowThreads && wide < dim) wide *= 2;
  const unsigned tall = kRowThreads / wide;
  const int64_t along = std::min<int64_t>(ceil_div(dim, wide), 65535);
  return {dim3(static_cast<unsigned>(ceil_div(rows, tall)), static_cast<unsigned>(along)),
          dim3(wide, tall)};
}

// Calls f(row, element) for the elements of a thread: one, of samples that a grid can cover.
template <class F>
__device__ __forceinline__ void for_own_elements(int64_t rows, int64_t dim, F&& f) {
  const int64_t row = blockIdx.x * int64_t{blockDim.y} + threadIdx.y;
  if (row >= rows) return;
  for (int64_t e = blockIdx.y * blockDim.x + threadIdx.x; e < dim; e += gridDim.y * blockDim.x)
    f(row, e);
}

}  // namespace
}  // namespace fastebm
