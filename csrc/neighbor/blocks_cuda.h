// How the pairs of queries and references are cut into blocks on a CUDA device, what a block of
// scores means, and where things lie in scratch.
//
// A score kernel gives each query a cheap score per chunk of references; the select kernel drops
// what provably is not among the k nearest and takes the exact squares of the rest. Samples of at
// most kDirectDim elements are scored by differences, the least square of a chunk of 32 to 128;
// larger ones on tensor cores, one reference a chunk: s = |y'|^2 - 2 x'.y' of centred samples.
// Where samples can be put on a grid, cheaper scores s = |yh|^2 - 2 xh.yh of its points come first,
// and those of samples are for queries that these leave too many references (grid_cuda.h): of bytes
// where references are uint8, in integers, else of bfloat16 where samples are large.
//
// Scratch, at most 70 MB: 32 MiB of scores, as they stay in the L2 cache on their way to the select
// kernel; the queries of larger samples once more, 32 MiB or, where this is more and references are
// no bytes, 128 queries; lists.
#pragma once
#include <algorithm>

#include "neighbor/grid_cuda.h"

namespace fastebm {

constexpr int kDirectDim = 16, kDirectWarps = 8, kMaxChunk = 128;
constexpr int kTileColumns = 128, kTileDepth = 32;  // of the tensor cores' kernels
constexpr int kByteStepDepth = 128;                 // where they multiply bytes
constexpr int64_t kScores = int64_t{8} << 20;       // of 4 bytes; as many elements of queries
// From so many elements and above so many queries, products of bfloat16 alone come first: they take
// a third of the tensor cores' time, and what finds nothing to do after them some 6 us.
constexpr int64_t kRoundedDim = 512, kRoundedQueries = 64;
constexpr int64_t kMaxColumns = 16384;  // scores a query has in a block
constexpr int64_t kDirectQueries = int64_t{1} << 16, kTileQueries = 2048;
constexpr int64_t kEnoughBlocks = 256;  // CUDA blocks to fill a device
constexpr int64_t kMinSlice = 192, kMaxSlice = 2048, kMaxSlices = 1024;
constexpr int64_t kMaxByteSlice = 32768;  // so that sums of bytes' products fit
static_assert(255 * 255 * kMaxByteSlice <= INT32_MAX && kMaxByteSlice % kByteStepDepth == 0);

// |score - t| <= relative |score| + query |x'|^2 + reference |y'|^2 + absolute, where t is the
// chunk's least exact square, less |x'|^2 for centred samples; unless something overflowed.
struct ScoreError {
  float relative, query, reference, absolute;
};

// Direct: a square is a sum of dim fused products, dim + 2 roundings deep, and a rounding to
// float32 where float64 is summed; less than 2^-140 is lost to underflow.
//
// Centred, with u = 2^-24, per slice of `slice` elements and L = slice:
//  - the samples are centred and rounded to float32, u each;
//  - v = h + l + r, bfloat16 h and l, |v - h| <= 2^-8 |v|, |r| <= 2^-17 |v|: leaving out r and the
//    product of the two l costs 2^-15 |x'| |y'| (Cauchy and Schwarz, as for all products);
//  - 3 L / 16 products of matrices add to one accumulator. One may sum 2 times 8 or once 16
//    products with it, each term cut below the last bit of the largest, and cut the sum: less than
//    20 ulp of 2^-23 of all |products| so far. This is a model of the hardware, without the guard
//    bits that it was found to have (Fasi et al. 2021), and checked on it by tests alone;
//  - |y'|^2 is a chain of L / 8 fused products, and the slices are added one after another.
// Of scores of h alone, which say of h what others say of samples, nothing is left out, and L / 16
// products are added.
// 2 |x'| |y'| <= |x'|^2 + |y'|^2 makes the sum of it linear in the two squares. 32 u and 1 / 64 of
// all cover the other roundings: of the score, the bound itself, |x'|^2 and |y'|^2.
inline ScoreError score_error(int64_t dim, int64_t slice, int64_t slices, bool rounded = false) {
  const double u = 0x1p-24, d = static_cast<double>(dim), depth = static_cast<double>(slice);
  if (dim <= kDirectDim) return {static_cast<float>((d + 5) * u), 0, 0, 0x1p-140f};
  const double room = (static_cast<double>(2 * slices) + 32) * u;
  const double product =
                   (rounded ? 0 : 0x1p-15) + (rounded ? 1 : 3) * depth / 16 * 20 * 2 * u + room,
               square = depth / 8 * u + room;
  return {0, static_cast<float>(product * 65 / 64),
          static_cast<float>((product + square) * 65 / 64), static_cast<float>(d * 0x1p-118)};
}

// One block of scores, as the kernels see it.
struct ScoreBlock {
  int64_t first_query, first_reference;
  int queries, references;
  int chunk, columns;               // references per score, scores per query
  int slices;                       // partial scores to add
  int64_t slice;                    // elements of a sample in each
  int64_t pitch;                    // of a query's scores, a multiple of 8
  bool first, last;                 // of the blocks of these queries
  ScoreError error, rounded_error;  // the latter of scores of bfloat16 alone
  ReferenceGrid grid;               // of bytes; of bfloat16: steps of 1
  float* center;                    // (dim,), and zeros to the next multiple of kTileDepth
  uint32_t* x_parts;                // (queries, steps, 2, kTileDepth / 2): see split_kernel
  float* y_squares;                 // (slices, pitch): parts of |y'|^2
  float* scores;                    // (slices, queries, pitch); int32 of queries on the grid
  Neighbor* lists;                  // (queries, k), sorted
  uint8_t* x_bytes;                 // (queries, byte_steps, kByteStepDepth): qh, and zeros
  float* left_out;          // (slices,): most of |y' - yh|^2; null: bfloat16 does not come first
  GridQuery* grid_queries;  // (queries,); null without a grid
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Steps of kTileDepth, or of kByteStepDepth, elements that make up a sample.
FASTEBM_HD int64_t tile_steps(int64_t dim) { return (dim + kTileDepth - 1) / kTileDepth; }
FASTEBM_HD int64_t byte_steps(int64_t dim) { return (dim + kByteStepDepth - 1) / kByteStepDepth; }

// Do scores of bfloat16 alone come first?
inline bool can_round(const NeighborParams& p) {
  const bool narrow = p.y_dtype != Dtype::kUint8 && p.y_dtype != Dtype::kFloat64;
  return narrow && p.dim >= kRoundedDim && p.n > kRoundedQueries && p.dim % 4 == 0 &&
         reinterpret_cast<uintptr_t>(p.y) % 16 == 0;
}

// The largest block, and its scratch.
struct BlockPlan {
  ScoreBlock block;
  int64_t bytes;
};

inline BlockPlan plan_blocks(const NeighborParams& p, void* scratch) {
  ScoreBlock b{};
  int64_t queries, columns, slices = 1, slice = p.dim;
  if (p.dim <= kDirectDim) {
    queries = std::min(p.n, kDirectQueries / p.k);
    b.chunk = kMaxChunk;
    while (b.chunk > 32 && ceil_div(p.m, b.chunk) * ceil_div(queries, 128) < 8 * kEnoughBlocks)
      b.chunk /= 2;
    columns = std::min({ceil_div(p.m, b.chunk), kMaxColumns, kScores / queries});
  } else {
    b.chunk = 1;
    slice = std::max(kMaxSlice, ceil_div(p.dim, kMaxSlices));
    slices = ceil_div(p.dim, slice);
    if (slice <= kMaxByteSlice) b.grid = reference_grid(p);
    const bool on_grid = b.grid.inverse != 0;
    const int64_t split = on_grid
                              ? 4 * kScores / (5 * byte_steps(p.dim) * kByteStepDepth)
                              : std::max<int64_t>(128, kScores / (tile_steps(p.dim) * kTileDepth));
    queries =
        std::min({p.n, kTileQueries, std::max<int64_t>(1, split >= 128 ? split / 128 * 128 : split),
                  std::max<int64_t>(64, kScores / (kTileColumns * slices))});
    columns = std::min(p.m, kMaxColumns);
    const int64_t tiles = ceil_div(queries, 128) * ceil_div(columns, kTileColumns);
    slices = std::max(slices, std::min(kEnoughBlocks / tiles, p.dim / kMinSlice));
    const int depth = on_grid ? kByteStepDepth : kTileDepth;
    slice = ceil_div(ceil_div(p.dim, slices), depth) * depth;
    slices = ceil_div(p.dim, slice);
    const int64_t most = kScores / ((queries + 1) * slices) / kTileColumns * kTileColumns;
    columns = std::min(columns, std::max<int64_t>(kTileColumns, most));
  }
  b.queries = static_cast<int>(queries);
  b.columns = static_cast<int>(columns);
  b.references = static_cast<int>(std::min(p.m, columns * b.chunk));
  b.slices = static_cast<int>(slices);
  b.slice = slice;
  b.pitch = ceil_div(columns, 8) * 8;
  b.error = score_error(p.dim, slice, slices);
  b.rounded_error = score_error(p.dim, slice, slices, true);

  int64_t bytes = 0;
  const auto take = [&](int64_t count, size_t size) {
    char* at = static_cast<char*>(scratch) + bytes;
    bytes += ceil_div(count * static_cast<int64_t>(size), 64) * 64;
    return at;
  };
  b.lists = reinterpret_cast<Neighbor*>(take(queries * p.k, sizeof(Neighbor)));
  const int64_t width = tile_steps(p.dim) * kTileDepth;
  b.center = reinterpret_cast<float*>(take(b.chunk == 1 ? width : 0, sizeof(float)));
  b.x_parts =
      reinterpret_cast<uint32_t*>(take(b.chunk == 1 ? queries * width : 0, sizeof(uint32_t)));
  b.y_squares = reinterpret_cast<float*>(take(b.chunk == 1 ? slices * b.pitch : 0, sizeof(float)));
  b.scores = reinterpret_cast<float*>(take(slices * queries * b.pitch, sizeof(float)));
  if (b.grid.inverse != 0) {
    b.grid_queries = reinterpret_cast<GridQuery*>(take(queries, sizeof(GridQuery)));
    b.x_bytes = reinterpret_cast<uint8_t*>(take(queries * byte_steps(p.dim) * kByteStepDepth, 1));
  } else if (can_round(p)) {
    b.grid = ReferenceGrid{1, 0, 1, 0, HUGE_VAL};
    b.grid_queries = reinterpret_cast<GridQuery*>(take(queries, sizeof(GridQuery)));
    b.left_out = reinterpret_cast<float*>(take(slices, sizeof(float)));
  }
  return {b, bytes};
}

}  // namespace fastebm
