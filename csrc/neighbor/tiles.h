// Search by tiles, for larger samples: kTileRows references x kPanel queries, kDepth elements at a
// time. Here is what does not depend on the instruction set: the bound on scores, the lists of
// candidates, what lies where; the rest is in neighbor/tiles_simd.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "neighbor/candidates.h"

namespace fastebm {

constexpr int kFewQueries = 3;  // up to so many it is faster to rescore all than to score
// The pitch keeps the rows of a tile off one another's cache sets.
constexpr int kTileRows = 96, kPanel = 32, kDepth = 128, kPitch = kDepth + 16;
constexpr int kBlockQueries = 256;
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

// Scores stand for squares of real numbers. Those of exact_square() are off by (dim / 32 + 8) 2^-53
// of themselves, at most 2 |x'|^2 + 2 |y'|^2, and may be equal where these are not. The room for
// |y'|^2 is in its 64 u; this is for |x'|^2 in both squares that are compared.
inline float query_slack(double square, int64_t dim) {
  return static_cast<float>(5 * (static_cast<double>(dim) / 32 + 8) * 0x1p-53 * square);
}

// A block of queries, packed for the products: (depth / kDepth, panels, kDepth, kPanel).
struct TileBlock : QueryBlock {
  int panels;
  bool whole;     // x holds all depths; otherwise each slice packs one at a time
  float* x;       // centred
  float* center;  // (3, dim): the centre first
  float* slopes;  // (kBlockQueries,): times |y'| the first part of the bound
  float* slacks;  // (kBlockQueries,): query_slack(), for upper bounds
};

// One thread's share of the references.
struct TileSlice : CandidateLists {
  float* y;       // (kTileRows, kPitch)
  float* x;       // one depth of the block's queries, unless the block is whole
  float* scores;  // (panels, kTileRows, kPanel)
};

struct TileScratch {
  TileBlock block;
  std::vector<TileSlice> slices;
};

inline TileScratch tile_scratch(const NeighborParams& p, int64_t n, int threads, Carver& carver) {
  TileScratch s{};
  const int64_t queries = (std::min<int64_t>(kBlockQueries, n) + kPanel - 1) / kPanel * kPanel;
  const int64_t depths = (p.dim + kDepth - 1) / kDepth;
  s.block.whole = queries * depths * kDepth * 4 <= kWholeBytes;
  s.block.x = carver.take<float>(s.block.whole ? queries * depths * kDepth : 0);
  s.block.center = carver.take<float>(3 * p.dim);
  s.block.slopes = carver.take<float>(queries);
  s.block.slacks = carver.take<float>(queries);
  s.slices.resize(std::min<int64_t>(threads, (p.m + kTileRows - 1) / kTileRows));
  for (TileSlice& slice : s.slices) {
    static_cast<CandidateLists&>(slice) = candidate_lists(queries, p.k, carver);
    slice.y = carver.take<float>(kTileRows * kPitch);
    slice.x = carver.take<float>(s.block.whole ? 0 : queries * kDepth);
    slice.scores = carver.take<float>(queries * kTileRows);
  }
  return s;
}

}  // namespace fastebm
