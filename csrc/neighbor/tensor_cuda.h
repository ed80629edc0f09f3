// Scores of larger samples: products on tensor cores.
#pragma once
#include <type_traits>

#include "neighbor/split_cuda.h"
#include "random/philox.h"

namespace fastebm {
namespace {

constexpr int kTensorThreads = 128, kStages = 2;
constexpr int kQuads = kTileColumns * kTileDepth / 4 / kTensorThreads;  // of a thread, a step
constexpr int kQuadGroups = 4;  // of copies, that these quads come in

// A step's kTileDepth elements of a sample, in a row of 128 bytes: eight chunks of eight bfloat16,
// chunk 4 h + i the high (h = 0) or low parts (h = 1) of elements 8 i .. 8 i + 7. Chunk c of row r
// lies in place c ^ (r % 8), so that
//  - ldmatrix, which reads one chunk of eight rows in a go, finds them in all eight places: 32
//  banks;
//  - eight lanes that copy a row's chunks fill it whole;
//  - 16 lanes that store halves of four chunks, of rows r and r + 4, fill both halves of the banks,
//    as the places of high parts in these rows differ by 4.
using TileRow = uint32_t[kTileDepth];

// Four elements of a reference, as they are.
template <class Y>
struct alignas(4 * sizeof(Y)) FourElements {
  Y v[4];
};

// What a CUDA block holds in shared memory: of float 81 KB, or 65.
template <int kRows, class Y>
struct Tiles {
  TileRow x[kStages][kRows], y[kStages][kTileColumns];
  FourElements<Y> raw[kQuads][kTensorThreads];  // a thread's own
  float center[kStages][kTileDepth];
  float y_squares[kTileColumns];
};

// Elements of a sample in this CUDA block's slice.
__device__ __forceinline__ int slice_length(const NeighborParams& p, const ScoreBlock& b) {
  const int64_t left = p.dim - blockIdx.z * b.slice;
  return static_cast<int>(left < b.slice ? left : b.slice);
}

// Asks for a copy of a value, or of zeros; makes it at once where it is too small for copy_async().
template <class T>
__device__ __forceinline__ void copy_value(T* to, const T* from, bool valid) {
  constexpr int kBytes = sizeof(T) < 16 ? sizeof(T) : 16;
  if constexpr (kBytes < 4)
    *to = valid ? *from : T{};
  else
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T)); i += kBytes)
      copy_async<kBytes>(reinterpret_cast<char*>(to) + i, reinterpret_cast<const char*>(from) + i,
                         valid);
}

// Of a thread: the four elements at one place in each step, of kQuads references kApart rows apart,
// that it brings from memory into tiles. They are copied to a place of the thread's own, which
// takes no registers, and have a step to come, in which the tile before is multiplied. store() and
// load() are called for all rows in turn, step after step, load() a step ahead.
template <class Y, bool kWhole, bool kRounded>
struct ReferenceQuads {
  static constexpr int kApart = 16;
  const Y* from;         // what is loaded next
  const float* center;   // of these elements
  int64_t apart, back;   // from row to row, and from the last one to the first of the next step
  int left, last;        // elements there are, from `from` on; rows, from the first one on
  int row, place;        // of the first row in a tile: its number, and the place of high parts
  FourElements<Y>* own;  // of the first row
  float scale, offset;
  float middle[4];  // taken off the elements that are stored next
  float squares[kQuads], left_out[kRounded ? kQuads : 1];  // the latter of what low parts stand for

  __device__ __forceinline__ ReferenceQuads(const NeighborParams& p, const ScoreBlock& b,
                                            FourElements<Y>* raw)
      : apart(kApart * p.dim),
        back(kTileDepth - (kQuads - 1) * apart),
        own(raw + threadIdx.x),
        scale(p.y_scale),
        offset(p.y_offset),
        squares{},
        left_out{} {
    const int quad = threadIdx.x % 8, group = threadIdx.x / 8;
    row = (group & 8) | (group & 1) << 2 | (group >> 1 & 3);  // lanes 8 to 15: 4 rows further
    place = row * kTileDepth + (quad / 2 ^ (row & 7)) * 4 + quad % 2 * 2;
    const int first = blockIdx.y * kTileColumns + row;
    from = static_cast<const Y*>(p.y) + (b.first_reference + first) * p.dim + blockIdx.z * b.slice +
           4 * quad;
    center = b.center + blockIdx.z * b.slice + 4 * quad;
    left = slice_length(p, b) - 4 * quad;
    last = b.references - 1 - first;
  }
  // The centre of the step that is loaded next, by the first threads for all.
  __device__ __forceinline__ void copy_center(float* to) {
    if (threadIdx.x >= kTileDepth / 4) return;
    copy_async(to + 4 * threadIdx.x, center, left > 0);
    center += kTileDepth;
  }
  // Row i's elements; zeros after the slice and where there is no row.
  __device__ __forceinline__ void load(int i) {
    FourElements<Y>& to = own[i * kTensorThreads];
    const bool there = i * kApart <= last;
    if constexpr (kWhole) {
      copy_value(&to, reinterpret_cast<const FourElements<Y>*>(from), there && left > 0);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) copy_value(&to.v[e], from + e, there && e < left);
    }
    if (i + 1 < kQuads) {
      from += apart;
    } else {
      from += back;
      left -= kTileDepth;
    }
  }
  // Before the first row is stored: that step's centre. Zeros after the slice are of what they
  // stand for.
  __device__ __forceinline__ void take_center(const float* center) {
    const int quad = threadIdx.x % 8;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      middle[e] = center[4 * quad + e];
      if constexpr (std::is_same_v<Y, uint8_t>)
        if (e >= left + kTileDepth) middle[e] = offset;
    }
  }
  // Row i, split, into a tile.
  __device__ __forceinline__ void store(int i, TileRow* tile) {
    const FourElements<Y> raw = own[i * kTensorThreads];
    float v[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      v[e] = static_cast<float>(reference_value(raw.v[e], scale, offset) - middle[e]);
      if (!kRounded) squares[i] = fma_rn(v[e], v[e], squares[i]);
    }
    uint2 high, low;
    split(v[0], v[1], high.x, low.x);
    split(v[2], v[3], high.y, low.y);
    uint32_t* to = tile[i * kApart];
    *reinterpret_cast<uint2*>(to + place) = high;
    if constexpr (kRounded) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t pair = e < 2 ? high.x : high.y;
        const float h = float_from_bits(e % 2 ? pair & 0xFFFF0000u : pair << 16);
        squares[i] = fma_rn(h, h, squares[i]);
        left_out[i] = fma_rn(v[e] - h, v[e] - h, left_out[i]);
      }
    } else {
      *reinterpret_cast<uint2*>(to + (place ^ kTileDepth / 2)) = low;
    }
  }
};

// Do the scores of query i on a grid leave something to do?
__device__ __forceinline__ bool is_left(const ScoreBlock& b, int i) {
  return i < b.queries && is_off_grid(b.grid_queries[i]);
}

// Has it a score of this kernel? Of bytes not where it is on the grid; others, of which it is rare
// that one is left, all have where one has.
template <class Y>
__device__ __forceinline__ bool is_scored(const ScoreBlock& b, int i) {
  if constexpr (std::is_same_v<Y, uint8_t>)
    if (b.grid_queries) return is_left(b, i);
  return i < b.queries;
}

// Of a thread: where it stores the scores of query i, from that column of its tile on.
struct ScoreRow {
  float* to;
  int left;  // columns there are, of the pitch: after the last reference something is stored

  __device__ __forceinline__ ScoreRow(const ScoreBlock& b, int i, int column) {
    const int j = blockIdx.y * kTileColumns + column;
    to = b.scores + (int64_t{blockIdx.z} * b.queries + i) * b.pitch + j;
    left = static_cast<int>(b.pitch) - j;
  }
  // Two scores' bits.
  __device__ __forceinline__ void store(int column, uint32_t score0, uint32_t score1) const {
    if (column < left) *reinterpret_cast<uint2*>(to + column) = make_uint2(score0, score1);
  }
};

// Of a thread: a chunk in each step of the queries' parts, of rows kApart apart, that it copies
// into tiles; zeros for rows without a score. kRounded: of their high parts.
template <int kRows, class Y, bool kRounded>
struct QueryChunks {
  static constexpr int kChunks = kRounded ? 4 : 8, kApart = kTensorThreads / kChunks;
  const uint32_t* from;
  int64_t apart;
  int place;
  unsigned scored = 0;  // a bit for each of the rows

  __device__ __forceinline__ QueryChunks(const NeighborParams& p, const ScoreBlock& b) {
    const int chunk = threadIdx.x % kChunks, row = threadIdx.x / kChunks;
    const int first = blockIdx.x * kRows + row;
    const int64_t width = tile_steps(p.dim) * kTileDepth;
    place = row * kTileDepth + (chunk ^ (row & 7)) * 4;
    from = b.x_parts + first * width + blockIdx.z * b.slice + 4 * chunk;
    apart = kApart * width;
#pragma unroll
    for (int i = 0; i < kRows / kApart; ++i)
      scored |= static_cast<unsigned>(is_scored<Y>(b, first + i * kApart)) << i;
  }
  // The next step's, if there is one.
  __device__ __forceinline__ void copy(TileRow* tile, bool valid) {
    const uint32_t* at = from;
    const unsigned rows = valid ? scored : 0;
#pragma unroll
    for (int i = 0; i < kRows / kApart; ++i, at += apart)
      copy_async(tile[i * kApart] + place, at, rows >> i & 1);
    from += kTileDepth;
  }
};

// scores[z][i][j] = |y'_j|^2 - 2 x'_i.y'_j over slice z of the elements, y_squares[z][j] = |y'_j|^2
// over it. A CUDA block takes kRows queries and kTileColumns references, a warp half of each.
// x' is split into bfloat16 h + l, and y' too: x'.y' ~ h.h + h.l + l.h, 6 operations of the tensor
// cores an element of a pair. Memory moves 4 B an element of a reference for each kRows queries;
// these come split (split_kernel), references are split here, once, between the products of the
// step before. One barrier a step: after it the tiles of the next are there, and this one's free.
// Where there is a grid and no query is left, a CUDA block only reads that.
// kRounded: scores of the h alone, two operations an element, and the most that any reference is
// off its h in this slice, of those whose score is a number; with room for the rounding of y'.
template <int kRows, class Y, bool kWhole, bool kRounded>
__global__ void __launch_bounds__(kTensorThreads, 2)
    tensor_score_kernel(NeighborParams p, ScoreBlock b) {
  constexpr int kTall = kRows / 2 / 16, kWide = kTileColumns / 2 / 8;  // matrices of a warp's sums
  if (!kRounded && b.grid_queries) {  // first of all: further down nvcc 13.0 spills in the loop
    bool any = false;
    for (int i = threadIdx.x % 32; i < kRows; i += 32) any |= is_left(b, blockIdx.x * kRows + i);
    if (!__ballot_sync(0xFFFFFFFFu, any)) return;
  }
  constexpr int kGroup = kQuads / kQuadGroups, kParts = kRounded ? 1 : 2;
  FASTEBM_SHARED(float[kTensorThreads / 32], farthest);  // of warps; kRounded
  auto& tiles = *dynamic_shared<Tiles<kRows, Y>>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / 2 * (kRows / 2), warp_column = warp % 2 * (kTileColumns / 2);
  const int steps = (slice_length(p, b) + kTileDepth - 1) / kTileDepth;
  // Where a lane's rows of the matrices lie that load_matrices() takes, for elements 0 to 15.
  const int x_place = (warp_row + lane % 16) * kTileDepth + (lane / 16 ^ (lane & 7)) * 4;
  const int y_place =
      (warp_column + lane % 8 + lane / 16 * 8) * kTileDepth + (lane / 8 % 2 ^ (lane & 7)) * 4;

  float sums[kTall][kWide][4] = {};
  ReferenceQuads<Y, kWhole, kRounded> quads(p, b, tiles.raw[0]);
  QueryChunks<kRows, Y, kRounded> chunks(p, b);
  // A group of quads into the tile of a stage, and the next step's in their place.
  const auto convert = [&](int group, int stage) {
    wait_copies<kQuadGroups - 1>();
#pragma unroll
    for (int i = 0; i < kGroup; ++i) quads.store(group * kGroup + i, tiles.y[stage]);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) quads.load(group * kGroup + i);
    commit_copies();
  };
  chunks.copy(tiles.x[0], true);
  quads.copy_center(tiles.center[0]);
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    quads.load(i);
    if (i % kGroup == kGroup - 1) commit_copies();
  }
  quads.copy_center(tiles.center[1]);
  wait_copies<kQuadGroups - 1>();
  __syncthreads();
  quads.take_center(tiles.center[0]);
#pragma unroll
  for (int group = 0; group < kQuadGroups; ++group) convert(group, 0);
  wait_copies<kQuadGroups - 1>();
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages, next = kStages - 1 - stage;
    const int x_at = x_place + stage * (kRows * kTileDepth);  // stages first: fewer registers
    const int y_at = y_place + stage * (kTileColumns * kTileDepth);
    quads.take_center(tiles.center[next]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t y_high[kWide][2], y_low[kWide][2];
#pragma unroll
      for (int c = 0; c < kWide; c += 2)
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          auto& of_part = part ? y_low : y_high;
          uint32_t pair[4];
          load_matrices<false>(pair, tiles.y[0][8 * c] + (y_at ^ (16 * part + 8 * half)));
#pragma unroll
          for (int i = 0; i < 4; ++i) of_part[c + i / 2][i % 2] = pair[i];
        }
#pragma unroll
      for (int r = 0; r < kTall; ++r) {
        uint32_t x_high[4], x_low[4];
        load_matrices<false>(x_high, tiles.x[0][16 * r] + (x_at ^ 8 * half));
        if constexpr (!kRounded) {
          load_matrices<false>(x_low, tiles.x[0][16 * r] + (x_at ^ (16 + 8 * half)));
          mma_bfloat16(sums[r], x_high, y_low);
          mma_bfloat16(sums[r], x_low, y_high);
        }
        mma_bfloat16(sums[r], x_high, y_high);
        if (half == 0 && r == 0) {  // among products, in the first group
          chunks.copy(tiles.x[next], step + 1 < steps);
          quads.copy_center(tiles.center[stage]);
        }
        constexpr int kTimes = kTall / (kQuadGroups / 2);  // rows of matrices to a group
        if (r % kTimes == kTimes - 1) convert(half * (kQuadGroups / 2) + r / kTimes, next);
      }
    }
    wait_copies<kQuadGroups - 1>();  // for the first group
    __syncthreads();
  }
  wait_copies<0>();

  // The eight lanes of a row add their parts of |y'|^2; then each lane takes the two columns that
  // it has sums of.
  const auto sum_of_row = [](float part) {
    part += __shfl_xor_sync(0xFFFFFFFFu, part, 1);
    part += __shfl_xor_sync(0xFFFFFFFFu, part, 2);
    return part + __shfl_xor_sync(0xFFFFFFFFu, part, 4);
  };
  float far = 0;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const float square = sum_of_row(quads.squares[i]);
    const int column = quads.row + i * quads.kApart, j = blockIdx.y * kTileColumns + column;
    if constexpr (kRounded) {
      const float off = sqrtf(sum_of_row(quads.left_out[i])) + 0x1p-22f * sqrtf(square);
      if (j < b.references && off < INFINITY) far = fmaxf(far, off);
    }
    if (threadIdx.x % 8 > 0) continue;
    tiles.y_squares[column] = square;
    // For tests alone: without this store nvcc 13.0 spills in the loop above (bench/sass.py).
    // Of bytes the first CUDA blocks may have nothing to do: each one writes the same.
    if (!kRounded && (blockIdx.x == 0 || std::is_same_v<Y, uint8_t>) && j < b.pitch)
      b.y_squares[blockIdx.z * b.pitch + j] = square;
  }
  if constexpr (kRounded) {
    far = fmaxf(far, __shfl_xor_sync(0xFFFFFFFFu, far, 8));
    far = fmaxf(far, __shfl_xor_sync(0xFFFFFFFFu, far, 16));
    if (lane == 0) farthest[warp] = far;
  }
  __syncthreads();
  if (kRounded && threadIdx.x == 0 && blockIdx.x == 0) {
    for (const float other : farthest) far = fmaxf(far, other);
    far *= far;  // its bits are ordered as it is
    atomicMax(reinterpret_cast<int*>(b.left_out + blockIdx.z), static_cast<int>(float_bits(far)));
  }
  const int g = lane / 4, t = lane % 4;  // see mma_bfloat16()
  float2 squares[kWide];
#pragma unroll
  for (int c = 0; c < kWide; ++c)
    squares[c] = *reinterpret_cast<const float2*>(tiles.y_squares + warp_column + 8 * c + 2 * t);
#pragma unroll
  for (int r = 0; r < 2 * kTall; ++r) {
    const int i = blockIdx.x * kRows + warp_row + 8 * r + g;
    if (!is_scored<Y>(b, i)) continue;
    const ScoreRow scores(b, i, warp_column + 2 * t);
#pragma unroll
    for (int c = 0; c < kWide; ++c) {
      const float* sum = &sums[r / 2][c][2 * (r % 2)];
      scores.store(8 * c, float_bits(fma_rn(-2.0f, sum[0], squares[c].x)),
                   float_bits(fma_rn(-2.0f, sum[1], squares[c].y)));
    }
  }
}

template <int kRows, class Y, bool kWhole, bool kRounded = false>
int launch_tensor_score(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(b.queries, kRows)),
                  static_cast<unsigned>(ceil_div(b.references, kTileColumns)),
                  static_cast<unsigned>(b.slices));
  return launch(tensor_score_kernel<kRows, Y, kWhole, kRounded>, grid, dim3(kTensorThreads),
                sizeof(Tiles<kRows, Y>), stream, p, b);
}

// Rows of four elements that may be read at once get the larger tile; of bytes few queries come
// here.
template <class Y>
int launch_tensor_score(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  if (p.dim % 4 || reinterpret_cast<uintptr_t>(p.y) % sizeof(FourElements<Y>))
    return launch_tensor_score<64, Y, false>(p, b, stream);
  if constexpr (sizeof(Y) <= 4 && sizeof(Y) > 1)
    if (b.queries > 64) return launch_tensor_score<128, Y, true>(p, b, stream);
  return launch_tensor_score<64, Y, true>(p, b, stream);
}

// Of bfloat16 alone, see can_round().
template <class Y>
int launch_rounded_score(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  return launch_tensor_score<128, Y, true, true>(p, b, stream);
}

}  // namespace
}  // namespace fastebm
