// Scores of queries on the grid of uint8 references: products of bytes on tensor cores.
#pragma once
#include "neighbor/quantize_cuda.h"
#include "neighbor/tensor_cuda.h"

namespace fastebm {
namespace {

constexpr int kByteStages = 3;

// A step's kByteStepDepth elements of a sample, as eight chunks of 16 bytes: chunk c of row r lies
// in place c ^ (r % 8), where ldmatrix and copies of a row find all banks, as in a TileRow.
using ByteRow = uint32_t[kByteStepDepth / 4];

// What a CUDA block holds in shared memory: 96 KB, or 72.
template <int kRows>
struct ByteTiles {
  ByteRow x[kByteStages][kRows], y[kByteStages][kTileColumns];
};

// Of a thread: one chunk in each step, of rows kApart apart, that it brings from memory into tiles;
// zeros after the slice and where there is no row. kCopied: asynchronously, from 16-byte aligned
// rows; otherwise it loads bytes, which wait in registers from load() to store().
template <int kRows, bool kCopied>
struct ByteChunks {
  static constexpr int kApart = kTensorThreads / 8, kCount = kRows / kApart;
  const uint8_t* from;  // of the first row, in the next step
  int64_t apart;        // from row to row
  int left, last;       // elements there are, from `from` on; rows, from the first one on
  int place;
  uint4 loaded[kCopied ? 1 : kCount];

  __device__ __forceinline__ ByteChunks(const uint8_t* rows, int64_t pitch, int count, int length)
      : apart(kApart * pitch) {
    const int chunk = threadIdx.x % 8, row = threadIdx.x / 8;
    from = rows + row * pitch + 16 * chunk;
    left = length - 16 * chunk;
    last = count - 1 - row;
    place = row * (kByteStepDepth / 4) + (chunk ^ (row & 7)) * 4;
  }
  // The next step's.
  __device__ __forceinline__ void load(ByteRow* tile) {
    const uint8_t* at = from;
#pragma unroll
    for (int i = 0; i < kCount; ++i, at += apart) {
      const bool there = i * kApart <= last;
      if constexpr (kCopied)
        copy_async(tile[i * kApart] + place, at, there && left > 0);
      else
        loaded[i] = bytes_at(at, there ? left : 0);
    }
    from += kByteStepDepth;
    left -= kByteStepDepth;
  }
  __device__ __forceinline__ void store(ByteRow* tile) const {
    if constexpr (!kCopied)
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        *reinterpret_cast<uint4*>(tile[i * kApart] + place) = loaded[i];
  }
  static __device__ __forceinline__ uint4 bytes_at(const uint8_t* at, int count) {
    uint32_t v[4] = {};
#pragma unroll
    for (int e = 0; e < 16; ++e)
      if (e < count) v[e / 4] |= static_cast<uint32_t>(at[e]) << e % 4 * 8;
    return make_uint4(v[0], v[1], v[2], v[3]);
  }
};

// scores[z][i][j] = |q_j|^2 - 2 qh_i.q_j over slice z of the elements, exact integers. A CUDA block
// takes kRows queries and kTileColumns references, a warp 64 queries and as many references as four
// warps leave it. Memory moves 1 B an element of a reference for each kRows queries. One barrier a
// step: after it the tile of this step is there, and that of the step before is free.
template <int kRows, bool kCopied>
__global__ void __launch_bounds__(kTensorThreads, 2)
    byte_score_kernel(NeighborParams p, ScoreBlock b) {
  constexpr int kDown = kRows / 64;                               // warps one below the other
  constexpr int kTall = 4, kWide = kTileColumns * kDown / 4 / 8;  // matrices of a warp's sums
  auto& tiles = *dynamic_shared<ByteTiles<kRows>>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp % kDown * 64, warp_column = warp / kDown * (8 * kWide);
  const int first_row = blockIdx.x * kRows, first_column = blockIdx.y * kTileColumns;
  const int64_t first = blockIdx.z * b.slice, width = byte_steps(p.dim) * kByteStepDepth;
  const int length = slice_length(p, b);
  // Where a lane's rows of the matrices lie that load_matrices() takes, for elements 0 to 31.
  const int x_place = (warp_row + lane % 16) * (kByteStepDepth / 4) + (lane / 16 ^ (lane & 7)) * 4;
  const int y_place = (warp_column + lane % 8 + lane / 16 * 8) * (kByteStepDepth / 4) +
                      (lane / 8 % 2 ^ (lane & 7)) * 4;
  const bool has_pairs =
      first_row + warp_row < b.queries && first_column + warp_column < b.references;

  int32_t sums[kTall][kWide][4] = {};
  uint32_t squares[kWide] = {};  // of a lane's elements of its column
  ByteChunks<kRows, true> x(b.x_bytes + first_row * width + first, width, b.queries - first_row,
                            length);
  ByteChunks<kTileColumns, kCopied> y(
      static_cast<const uint8_t*>(p.y) + (b.first_reference + first_column) * p.dim + first, p.dim,
      b.references - first_column, length);
  const auto multiply = [&](int stage, int part) {
    uint32_t columns[kWide][2];
#pragma unroll
    for (int c = 0; c < kWide; c += 2) {
      uint32_t pair[4];
      load_matrices<false>(pair, tiles.y[stage][8 * c] + (y_place ^ 8 * part));
#pragma unroll
      for (int i = 0; i < 4; ++i) columns[c + i / 2][i % 2] = pair[i];
    }
#pragma unroll
    for (int r = 0; r < kTall; ++r) {
      uint32_t rows[4];
      load_matrices<false>(rows, tiles.x[stage][16 * r] + (x_place ^ 8 * part));
      mma_bytes(sums[r], rows, columns);
    }
#pragma unroll
    for (int c = 0; c < kWide; ++c)
      squares[c] = add_squares(columns[c][1], add_squares(columns[c][0], squares[c]));
  };
  constexpr int kAhead = kByteStages - 1;  // steps that memory is asked for before they are needed
#pragma unroll
  for (int step = 0; step < kAhead; ++step) {
    if (step * kByteStepDepth < length) {
      x.load(tiles.x[step]);
      y.load(tiles.y[step]);
      y.store(tiles.y[step]);
    }
    commit_copies();
  }
  int stage = 0, next = kAhead, here = length;  // elements there are, from this step on
  for (; here >= kByteStepDepth; here -= kByteStepDepth) {
    wait_copies<kAhead - 1>();
    __syncthreads();
    const bool has_more = here > kAhead * kByteStepDepth;
    if (has_more) {
      x.load(tiles.x[next]);
      y.load(tiles.y[next]);
    }
    commit_copies();
    if (has_pairs)
#pragma unroll
      for (int part = 0; part < 4; ++part) multiply(stage, part);
    if (has_more) y.store(tiles.y[next]);
    stage = stage + 1 < kByteStages ? stage + 1 : 0;
    next = next + 1 < kByteStages ? next + 1 : 0;
  }
  if (here > 0) {  // the last step is a part of one
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int part = 0; part < 4; ++part)
      if (has_pairs && 32 * part < here) multiply(stage, part);
  }

  // The four lanes of a column add its parts; then each takes the two columns that it has sums of.
  const int g = lane / 4, t = lane % 4;  // see mma_bytes()
  uint32_t square0[kWide], square1[kWide];
#pragma unroll
  for (int c = 0; c < kWide; ++c) {
    uint32_t square = squares[c];
    square += __shfl_xor_sync(0xFFFFFFFFu, square, 1);
    square += __shfl_xor_sync(0xFFFFFFFFu, square, 2);
    square0[c] = __shfl_sync(0xFFFFFFFFu, square, 8 * t);
    square1[c] = __shfl_sync(0xFFFFFFFFu, square, 8 * t + 4);
  }
#pragma unroll
  for (int r = 0; r < 2 * kTall; ++r) {
    const int i = first_row + warp_row + 8 * r + g;
    if (i >= b.queries) continue;
    const ScoreRow scores(b, i, warp_column + 2 * t);
#pragma unroll
    for (int c = 0; c < kWide; ++c) {
      const int32_t* sum = &sums[r / 2][c][2 * (r % 2)];
      scores.store(8 * c, square0[c] - 2 * static_cast<uint32_t>(sum[0]),
                   square1[c] - 2 * static_cast<uint32_t>(sum[1]));
    }
  }
}

template <int kRows, bool kCopied>
int launch_byte_score(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(b.queries, kRows)),
                  static_cast<unsigned>(ceil_div(b.references, kTileColumns)),
                  static_cast<unsigned>(b.slices));
  return launch(byte_score_kernel<kRows, kCopied>, grid, dim3(kTensorThreads),
                sizeof(ByteTiles<kRows>), stream, p, b);
}

// Rows that may be copied get the larger tile.
inline int launch_byte_score(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  if (p.dim % 16 || reinterpret_cast<uintptr_t>(p.y) % 16)
    return launch_byte_score<64, false>(p, b, stream);
  return b.queries > 64 ? launch_byte_score<128, true>(p, b, stream)
                        : launch_byte_score<64, true>(p, b, stream);
}

}  // namespace
}  // namespace fastebm
