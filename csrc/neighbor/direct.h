// Direct search, for small samples: blocks of transposed references, kQueries queries at a time.
// Here is what does not depend on the instruction set; the rest is in neighbor/direct_simd.h.
#pragma once
#include <algorithm>
#include <type_traits>

#include "neighbor/search.h"

namespace fastebm {

constexpr int kQueries = 4, kChunk = 16;
constexpr int64_t kDirectReferences = 8192, kDirectQueries = 4096;

template <class F>
void visit_small_dim(int dim, F&& f) {
  const auto at = [&](auto self, auto d) {
    if (dim == d.value) return f(d);
    if constexpr (d.value < kSmallDim) self(self, std::integral_constant<int, d.value + 1>{});
  };
  at(at, std::integral_constant<int, 1>{});
}

// What a score (a square in C) may be at most where the exact square is not above `kth_score` or,
// found before, `kth_square`. A sum of dim squared differences is off by at most dim + 2 roundings,
// and by what underflows.
template <class C>
C direct_threshold(C kth_score, double kth_square, int64_t dim) {
  const double unit = std::is_same_v<C, double> ? 0x1p-53 : kUnit;
  const double tiny = static_cast<double>(dim) * (std::is_same_v<C, double> ? 0x1p-1020 : 0x1p-124);
  const double gamma = static_cast<double>(dim + 4) * unit;
  const double bound =
      std::min(static_cast<double>(kth_score) * (1 + 2 * gamma), kth_square * (1 + gamma)) + tiny;
  return static_cast<C>(bound * (1 + 4 * unit));  // not rounded down
}

// Exact squares of the references first, first + stride, ..., kChunk of them and below `end`.
template <class X, class Y, int kDim>
void rescore_small(const NeighborParams& p, int64_t query, int64_t first, int64_t stride,
                   int64_t end, Neighbor* list) {
  const X* x = static_cast<const X*>(p.x) + query * kDim;
  const int64_t skip = p.skip ? p.skip[query] : -1;
  for (int64_t j = first; j < std::min(end, first + kChunk * stride); j += stride) {
    const Y* y = static_cast<const Y*>(p.y) + j * kDim;
    double part[kDim];  // exact_square() without the sums that are zero
    for (int i = 0; i < kDim; ++i) {
      const double difference =
          static_cast<double>(x[i]) - reference_value(y[i], p.y_scale, p.y_offset);
      part[i] = difference * difference;
    }
    for (int h = kSquareParts / 2; h; h /= 2)
      for (int l = 0; l + h < kDim && l < h; ++l) part[l] += part[l + h];
    if (j != skip) add_neighbor(list, p.k, {part[0], j});
  }
}

template <class X, class Y>
void rescore_small(const NeighborParams& p, int64_t query, int64_t first, int64_t stride,
                   int64_t end, Neighbor* list) {
  visit_small_dim(static_cast<int>(p.dim), [&](auto d) {
    rescore_small<X, Y, d.value>(p, query, first, stride, end, list);
  });
}

template <class X>
struct DirectScratch {
  X* y;  // (dim, pitch)
  int64_t pitch;
  Neighbor* lists;  // (queries of a block, k)
};

template <class X>
DirectScratch<X> direct_scratch(const NeighborParams& p, Carver& carver) {
  constexpr int64_t kWhole = kChunk * 64 / static_cast<int64_t>(sizeof(X));  // widest vectors
  DirectScratch<X> s;
  // Rows a cache line off a power of two, so that they do not fall on the same sets.
  s.pitch = std::min(kDirectReferences, (p.m + kWhole - 1) / kWhole * kWhole) + 16;
  s.y = carver.take<X>(p.dim * s.pitch);
  s.lists = carver.take<Neighbor>(std::min(kDirectQueries, p.n) * p.k);
  return s;
}

}  // namespace fastebm
