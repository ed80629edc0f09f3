// Search by tiles, for larger samples: kTileRows references x kPanel queries, kDepth elements at a
// time. Here is what does not depend on the instruction set: the bound on scores, the lists of
// candidates, what lies where; the rest is in neighbor/tiles_simd.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "neighbor/search.h"

namespace fastebm {

// The pitch keeps the rows of a tile off one another's cache sets.
constexpr int kTileRows = 96, kPanel = 32, kDepth = 128, kPitch = kDepth + 16;
constexpr int kBlockQueries = 256, kFewQueries = 3, kCandidates = 32;
constexpr int64_t kWholeBytes = 4 << 20;  // packed queries are kept up to this size

// A score is s = |y'|^2 - 2 x'.y', computed; t the same with the exact centred samples. Each
// product is a sum of dim / kDepth sums of kDepth fused products, so with u = 2^-24
//   |s - t| <= 2 kappa |x'| |y'| + c |y'|^2,  kappa = (kDepth + dim / kDepth + 16) u, c = 64 u;
// the 16, and 64 for the 48 roundings of |y'|^2, leave room for those of x', y', s and the bound
// itself. Underflow is covered by `tiny`, and by adding norm_floor() to both norms.
struct TileRow {
  float square, norm, error;
};

inline double norm_floor(int64_t dim) { return static_cast<double>(dim) * 0x1p-100; }

inline TileRow tile_row(double square, int64_t dim) {
  const double tiny = static_cast<double>(dim) * 0x1p-120;
  return {static_cast<float>(square),
          static_cast<float>(std::sqrt(square) * 1.0001 + norm_floor(dim)),
          static_cast<float>(64 * kUnit * square + tiny)};
}

inline float query_slope(double square, int64_t dim) {
  const double kappa = (kDepth + static_cast<double>(dim) / kDepth + 16) * kUnit;
  return static_cast<float>(2 * kappa * (std::sqrt(square) * 1.001 + norm_floor(dim)));
}

// A block of queries, packed for the products: (depth / kDepth, panels, kDepth, kPanel).
struct TileBlock {
  int64_t first;
  int queries, panels;
  bool whole;     // x holds all depths; otherwise each slice packs one at a time
  float* x;       // centred
  float* center;  // (3, dim): the centre first
  float* slopes;  // (kBlockQueries,): times |y'| the first part of the bound
};

struct Candidate {
  float lower;
  int32_t index;
};

// One thread's share of the references. For each query: the k smallest upper bounds of scores, of
// which the largest is the threshold; what the threshold does not rule out; and exact neighbours.
// Of true neighbours none is lost: k references are at most as far as the threshold says, so one
// whose lower bound is above it has k nearer ones.
struct TileSlice {
  float* y;       // (kTileRows, kPitch)
  float* x;       // one depth of the block's queries, unless the block is whole
  float* scores;  // (panels, kTileRows, kPanel)
  float* thresholds;
  float* uppers;  // (kBlockQueries, k)
  int* counts;
  Candidate* candidates;  // (kBlockQueries, kCandidates)
  Neighbor* lists;        // (kBlockQueries, k)
  int k;

  void start(const TileBlock& block) const {
    std::fill_n(uppers, block.queries * k, HUGE_VALF);
    std::fill_n(counts, block.queries, 0);
    std::fill_n(thresholds, block.queries, HUGE_VALF);
    std::fill(thresholds + block.queries, thresholds + block.panels * kPanel, -HUGE_VALF);
  }

  template <class Rescore>
  void take(int q, int32_t j, float lower, float upper, const Rescore& rescore) const {
    SmallestK<float>::insert(uppers + q * k, k, upper);
    thresholds[q] = uppers[q * k + k - 1];
    candidates[q * kCandidates + counts[q]++] = {lower, j};
    if (counts[q] == kCandidates) {
      prune(q);
      if (counts[q] > kCandidates / 2) finish(q, rescore);
    }
  }

  void prune(int q) const {
    Candidate* own = candidates + q * kCandidates;
    const float threshold = thresholds[q];
    counts[q] =
        static_cast<int>(std::remove_if(own, own + counts[q],
                                        [=](const Candidate& c) { return c.lower > threshold; }) -
                         own);
  }

  template <class Rescore>
  void finish(int q, const Rescore& rescore) const {
    prune(q);
    for (int c = 0; c < counts[q]; ++c) rescore(q, candidates[q * kCandidates + c].index);
    counts[q] = 0;
  }
};

template <class X>
float centred(X x, float center) {
  return static_cast<float>(x - static_cast<X>(center));
}

struct TileScratch {
  TileBlock block;
  std::vector<TileSlice> slices;
};

inline TileScratch tile_scratch(const NeighborParams& p, int threads, Carver& carver) {
  TileScratch s;
  const int64_t queries = (std::min<int64_t>(kBlockQueries, p.n) + kPanel - 1) / kPanel * kPanel;
  const int64_t depths = (p.dim + kDepth - 1) / kDepth;
  s.block.whole = queries * depths * kDepth * 4 <= kWholeBytes;
  s.block.x = carver.take<float>(s.block.whole ? queries * depths * kDepth : 0);
  s.block.center = carver.take<float>(3 * p.dim);
  s.block.slopes = carver.take<float>(queries);
  s.slices.resize(std::min<int64_t>(threads, (p.m + kTileRows - 1) / kTileRows));
  for (TileSlice& slice : s.slices) {
    slice.y = carver.take<float>(kTileRows * kPitch);
    slice.x = carver.take<float>(s.block.whole ? 0 : queries * kDepth);
    slice.scores = carver.take<float>(queries * kTileRows);
    slice.thresholds = carver.take<float>(queries);
    slice.uppers = carver.take<float>(queries * p.k);
    slice.counts = carver.take<int>(queries);
    slice.candidates = carver.take<Candidate>(queries * kCandidates);
    slice.lists = carver.take<Neighbor>(queries * p.k);
    slice.k = p.k;
  }
  return s;
}

}  // namespace fastebm
