// Samples on a CUDA device: a group of threads takes one, and a thread of it every so-many-th four
// of elements. Sums over a sample are in the order of launch/rows.h.
#pragma once
#include "launch/element_blocks_cuda.h"
#include "launch/rows.h"
#include "launch/sums_cuda.h"

namespace fastebm {

using SampleGroups = RowGroups<kRowThreads>;

// What a thread adds up of kCount sums: of each four partial ones, element by element.
template <class C, int kCount>
struct ThreadSums {
  C v[kCount][4] = {};

  // Puts the sums of the group into out[0 .. kCount), for all of its threads. All threads of the
  // block are here.
  __device__ void fold(int lanes, C (&out)[kCount]) const {
    for (int s = 0; s < kCount; ++s) out[s] = fold_four(v[s][0], v[s][1], v[s][2], v[s][3]);
    group_sums<kRowThreads>(out, lanes);
  }
};

// Four elements of a sample from `at` on, of which there are `count`, and zeros; kWhole as in
// load_quad().
template <class C, bool kWhole>
__device__ __forceinline__ void load_four(const void* p, int64_t at, int count, C (&to)[4]) {
  unpack(load_quad<kWhole>(static_cast<const C*>(p) + at, count), to);
}
template <class C, bool kWhole>
__device__ __forceinline__ void store_four(const C (&from)[4], void* p, int64_t at, int count) {
  store_quad<kWhole>(pack(from), static_cast<C*>(p) + at, count);
}

// Queues kernel(p, first row, groups) for all of `batch` samples of `dim` elements.
template <class P>
int launch_rows(void (*kernel)(P, int64_t, SampleGroups), int64_t batch, int64_t dim, const P& p,
                void* stream) {
  const SampleGroups groups((dim + 3) / 4);
  constexpr int64_t kMost = int64_t{1} << 30;  // blocks of a grid hold one sample at least
  for (int64_t first = 0; first < batch; first += kMost) {
    const int64_t rows = batch - first < kMost ? batch - first : kMost;
    const int error =
        launch(kernel, groups.grid(rows), dim3(kRowThreads), 0, stream, p, first, groups);
    if (error) return error;
  }
  return 0;
}

}  // namespace fastebm
