// Search by bytes: samples are put on one grid of 256 steps, whole numbers are multiplied, and the
// triangle inequality says which references can still be the nearest. Here is what does not depend
// on the instruction set: the grid, the bounds, what lies where; the rest is in
// neighbor/bytes_simd.h.
//
// In units of the grid, with g(v) = (v - center) inverse by element, a whole-numbered sample h
// beside each g and residuals R >= |g - h|: | |g(x) - g(y)| - |h(x) - h(y)| | <= R(x) + R(y), and
// |g(x) - g(y)| is the distance of x and y but for a factor. References in uint8 are on the grid
// already; others are put on it tile by tile, in scratch.
#pragma once
#include <cmath>
#include <iterator>
#include <vector>

#include "neighbor/candidates.h"
#include "simd/simd.h"

namespace fastebm {

constexpr int kByteRows = 96, kBytePanel = 32, kByteQueries = 1024;
// Elements of one product: whole lines and AMX tiles, and exact, 65025 * 2048 < 2^31. The pitch
// keeps the rows of a tile off one another's cache sets.
constexpr int kByteDepth = 2048, kByteAlign = 64, kBytePitch = kByteDepth + 64;
constexpr int64_t kPackedBytes = 4 << 20;  // of a block's queries, where more than a panel
constexpr int64_t kMostPacked = 6500000;   // of a panel: scratch stays below 8 MB

struct ByteGrid {
  float* center;       // (dim,)
  float inverse;       // steps a unit of the data
  float row_residual;  // of a reference in uint8
};

// That of references in uint8; false where there is none.
inline bool uint8_grid(const NeighborParams& p, ByteGrid& grid) {
  std::fill_n(grid.center, p.dim, p.y_offset);
  grid.inverse = 1 / p.y_scale;
  double most = 0;
  for (int v = 0; v < 256; ++v) {
    const double value = reference_value(static_cast<uint8_t>(v), p.y_scale, p.y_offset);
    const double off = std::abs((value - p.y_offset) * grid.inverse - v);
    most = off <= most ? most : off;  // or a NaN
  }
  grid.row_residual = static_cast<float>(most * 1.0001 * std::sqrt(static_cast<double>(p.dim)));
  return std::isfinite(grid.inverse) &&
         grid.row_residual < 16 * std::sqrt(static_cast<float>(p.dim));
}

// At least the norm, from `squares`, the sum of the squares of computed g - h. With u = 2^-24:
// g is off by u |g| for the difference and u |g| for the product, g - h by u of itself, so a
// norm by 2 u 255 sqrt(dim) + 4 u of itself; the sum of squares is a chain of at most dim / 4.
inline float byte_residual(double squares, int64_t dim) {
  const double d = static_cast<double>(dim), chain = (d / 4 + 32) * kUnit;
  return static_cast<float>(std::sqrt(squares) * (1 + chain) + 600 * kUnit * std::sqrt(d));
}

// The distance of two whole-numbered samples is computed as the root of a sum of dim / kByteDepth
// exact squares, each rounded; `relative` leaves room for the roundings of the bounds.
struct ByteBounds {
  double relative;
  explicit ByteBounds(int64_t dim)
      : relative((static_cast<double>(dim) / kByteDepth + 16) * kUnit) {}
  float lower(float square, float x_residual, float y_residual) const {
    return static_cast<float>(std::sqrt(square) * (1 - relative) - x_residual - y_residual);
  }
  float upper(float square, float x_residual, float y_residual) const {
    return static_cast<float>(std::sqrt(square) * (1 + relative) + x_residual + y_residual);
  }
  // lower() <= threshold only where square <= (limit(threshold + x_residual) + limit(y_residual))^2
  // in floats. A NaN bounds nothing: it is not among the candidates.
  float limit(double v) const { return static_cast<float>(v * (1 + 2 * relative)); }
};

// A block of queries, packed for the products: (depths, panels, elements / kPer, kBytePanel, kPer)
// of words, kPer in 32 bits.
struct ByteBlock : QueryBlock {
  int panels;
  ByteGrid grid;
  void* x;
  int32_t* squares;  // (depths, panels * kBytePanel): sums of h^2
  float* residuals;  // (panels * kBytePanel,), NaN for one that has no neighbours
};

// One thread's share of the references.
struct ByteSlice : CandidateLists {
  void* y;         // (kByteRows, kBytePitch) of words
  uint8_t* bytes;  // (kByteDepth,): a sample on its way to a tile
  float* scores;   // (panels, kByteRows, kBytePanel): squares of distances
  float* limits;   // (panels * kBytePanel,)
  int* rescored;   // (queries,), kGivenUp where there were too many
};
constexpr int kGivenUp = -1;

// Search by bytes in any size: tests reach all of it that way.
inline bool& bytes_in_any_size() {
  static bool always = false;
  return always;
}

// Where bytes pay, by what was measured (Xeon with AMX, each level; normal samples and images).
// References in uint8 of so many elements and in such numbers; others have to be put on the grid.
inline bool bytes_may_pay(const NeighborParams& p, const CpuLevel& level, double candidates) {
  const bool words = level.products == Products::kWords, vnni = level.products == Products::kVnni;
  if (bytes_in_any_size()) return p.n > 0 && p.m > 0 && p.dim > 0;
  if (p.dim < (words ? 96 : 64) || p.n * p.m < 4096) return false;
  if (p.y_dtype == Dtype::kUint8) return p.m >= (words ? 512 : 128);
  // Floats' own products come close to those of words, and to VNNI's in the widest vectors.
  if (p.dim < 128 && (words || (vnni && level.simd == Simd::kAvx512))) return false;
  if (p.n < (words ? 128 : 64)) return false;
  // Cycles of a candidate, and saved by a pair's element: a third of them at least, as a sample's
  // candidates are few of those that a search meets.
  const double dim = static_cast<double>(p.dim), pairs = static_cast<double>(p.m) * dim;
  const double saved = words ? 0.01 : vnni ? 0.025 : 0.03;
  return candidates * (400 + 1.2 * dim) <= pairs * saved / 3;
}

// References, and rows of queries, all over them: pairs cost little beside the search's.
struct ByteSample {
  int references, queries;
  int64_t rows[8];
};

inline ByteSample byte_sample(const NeighborParams& p) {
  ByteSample sample;
  sample.queries = static_cast<int>(std::min<int64_t>(p.n, std::size(sample.rows)));
  for (int s = 0; s < sample.queries; ++s) sample.rows[s] = p.n * s / sample.queries;
  const int64_t share = std::min(p.m, p.n * p.m / 4096);
  sample.references = static_cast<int>(std::clamp<int64_t>(share, 16, kByteRows));
  return sample;
}

// A query has many references rescored from here on, of `seen`: a rescored pair costs as much as
// some 10 scored as floats.
inline int64_t many_rescored(const NeighborParams& p, int64_t seen) {
  return 2 * (kCandidates + p.k) + seen / 16;
}

// From here on it is given up to another search: where there are `many` of them, as that costs as
// much as some 32 queries even for one.
inline int64_t most_rescored(const NeighborParams& p, int64_t seen, int many) {
  return 2 * (kCandidates + p.k) + seen / 16 * (many + 32) / std::max(many, 1);
}

struct ByteScratch {
  ByteBlock block;
  int64_t most_queries;  // of a block
  int64_t* given_up;     // (most_queries,)
  void* rest;            // from here on, for another search between two blocks
  std::vector<ByteSlice> slices;
};

// Elements of a sample that lie in scratch: whole lines of the last depth, too.
inline int64_t byte_width(int64_t dim) { return (dim + kByteAlign - 1) / kByteAlign * kByteAlign; }

inline ByteScratch byte_scratch(const NeighborParams& p, int threads, int word, Carver& carver) {
  ByteScratch s{};
  const int64_t width = byte_width(p.dim), depths = (p.dim + kByteDepth - 1) / kByteDepth;
  const int64_t panels =
      std::min({(p.n + kBytePanel - 1) / kBytePanel, int64_t{kByteQueries / kBytePanel},
                std::max<int64_t>(1, kPackedBytes / (width * word * kBytePanel))});
  const int64_t queries = s.most_queries = panels * kBytePanel;
  s.given_up = carver.take<int64_t>(queries);
  s.block.grid.center = carver.take<float>(p.dim);
  s.rest = carver.take<char>(0);
  s.block.x = carver.take<char>(queries * width * word);
  s.block.squares = carver.take<int32_t>(queries * depths);
  s.block.residuals = carver.take<float>(queries);
  s.slices.resize(std::min<int64_t>(threads, (p.m + kByteRows - 1) / kByteRows));
  for (ByteSlice& slice : s.slices) {
    static_cast<CandidateLists&>(slice) = candidate_lists(queries, p.k, carver);
    slice.y = carver.take<char>(int64_t{kByteRows} * kBytePitch * word);
    slice.bytes = carver.take<uint8_t>(kByteDepth);
    slice.scores = carver.take<float>(queries * kByteRows);
    slice.limits = carver.take<float>(queries);
    slice.rescored = carver.take<int>(queries);
  }
  return s;
}

}  // namespace fastebm
