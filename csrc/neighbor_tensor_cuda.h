// Scores of larger samples: products on tensor cores.
#pragma once
#include "device.h"
#include "neighbor_blocks_cuda.h"
#include "neighbor_direct_cuda.h"

namespace fastebm {
namespace {

constexpr int kStages = 3, kCenterRows = 32;

// The centre that scores are computed around: any would do, and the nearer to all samples the
// smaller is the error. The mean of at most 32 queries; a thread an element.
template <class X>
__global__ void __launch_bounds__(256) center_kernel(NeighborParams p, float* center) {
  const int64_t e = blockIdx.x * int64_t{256} + threadIdx.x;
  if (e >= p.dim) return;
  const int rows = p.n < kCenterRows ? static_cast<int>(p.n) : kCenterRows;
  X sum = 0;
#pragma unroll 8
  for (int r = 0; r < rows; ++r) sum += static_cast<const X*>(p.x)[p.n * r / rows * p.dim + e];
  const float mean = static_cast<float>(sum / static_cast<X>(rows));
  center[e] = mean - mean == 0 ? mean : 0;
}

// What a CUDA block holds in shared memory: kStages tiles of kTileDepth elements of its queries and
// references, in rows of eight float4 whose places are swapped in odd rows, so that neither the
// copies nor the reads of fragments meet in a bank.
template <int kRows>
struct Tiles {
  float rows[kStages][kRows + kTileColumns][kTileDepth];
  float center[kStages][kTileDepth];
  float y_squares[kTileColumns];
};

// Elements of a sample in this CUDA block's slice.
__device__ __forceinline__ int slice_length(const NeighborParams& p, const ScoreBlock& b) {
  const int64_t left = p.dim - blockIdx.z * b.slice;
  return static_cast<int>(left < b.slice ? left : b.slice);
}

__device__ __forceinline__ int place(int row, int quad) { return (quad ^ ((row & 1) << 2)) * 4; }

// Four elements from `at` on of x or y, centred; zeros after the first `count`.
template <bool kX, class C>
__device__ __forceinline__ float4 centered(const NeighborParams& p, int64_t at, const float* center,
                                           int count) {
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[i] = 0;
    if (i < count) {
      const C value = kX ? static_cast<const C*>(p.x)[at + i] : reference_at<C>(p, at + i);
      v[i] = static_cast<float>(value - center[i]);
    }
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}

// Fills kSamples rows of a stage with elements from, from + 1, ... of the slice; zeros after its
// end and for samples that are not there. Where kAsync, by copies of four float32, centred when
// they are read; from any other type and alignment, centred, by loads.
template <bool kAsync, bool kX, int kSamples, int kThreads>
__device__ __forceinline__ void load_rows(const NeighborParams& p, const ScoreBlock& b,
                                          float (*rows)[kTileDepth], int from) {
  const int quad = threadIdx.x % 8, element = from + 4 * quad;
  const int count = slice_length(p, b) - element;
  const int first = (kX ? blockIdx.x : blockIdx.y) * kSamples, end = kX ? b.queries : b.references;
  const int64_t slice = blockIdx.z * b.slice + element;
#pragma unroll 1
  for (int row = threadIdx.x / 8; row < kSamples; row += kThreads / 8) {
    const int64_t sample = (kX ? b.first_query : b.first_reference) + first + row;
    const bool valid = first + row < end && count > 0;
    float* to = &rows[row][place(row, quad)];
    if constexpr (kAsync)
      copy_async(to,
                 static_cast<const float*>(kX ? p.x : p.y) + (valid ? sample * p.dim + slice : 0),
                 valid);
    else if (p.x_dtype == Dtype::kFloat64)
      *reinterpret_cast<float4*>(to) =
          centered<kX, double>(p, sample * p.dim + slice, b.center + slice, valid ? count : 0);
    else
      *reinterpret_cast<float4*>(to) =
          centered<kX, float>(p, sample * p.dim + slice, b.center + slice, valid ? count : 0);
  }
}

template <bool kAsync, int kRows>
__device__ __forceinline__ void load_stage(const NeighborParams& p, const ScoreBlock& b,
                                           Tiles<kRows>& tiles, int stage, int from) {
  load_rows<kAsync, true, kRows, 2 * kRows>(p, b, tiles.rows[stage], from);
  load_rows<kAsync, false, kTileColumns, 2 * kRows>(p, b, tiles.rows[stage] + kRows, from);
  if constexpr (kAsync)
    for (int quad = threadIdx.x; quad < 8; quad += 2 * kRows) {
      const int element = from + 4 * quad;
      const bool valid = element < slice_length(p, b);
      copy_async(&tiles.center[stage][4 * quad],
                 b.center + (valid ? blockIdx.z * b.slice + element : 0), valid);
    }
}

// Two floats as bfloat16 high and low parts.
__device__ __forceinline__ void split(float v0, float v1, uint32_t& high, uint32_t& low) {
  high = bfloat16_pair(v0, v1);
  low = bfloat16_pair(v0 - float_from_bits(high << 16), v1 - float_from_bits(high & 0xFFFF0000u));
}

// scores[z][i][j] = |y'_j|^2 - 2 x'_i.y'_j over slice z of the elements, y_squares[z][j] = |y'_j|^2
// over it. A CUDA block takes kRows queries and kTileColumns references, a warp 64 and 32 of them.
// x' is split into bfloat16 h + l, and y' too: x'.y' ~ h.h + h.l + l.h, 6 operations of the tensor
// cores an element of a pair. Memory moves 4 B an element of a reference for each kRows queries.
template <bool kAsync, int kRows>
__global__ void __launch_bounds__(2 * kRows, kRows == 64 ? 3 : 2)
    tensor_score_kernel(NeighborParams p, ScoreBlock b) {
  constexpr int kAcross = kTileColumns / 32;
  auto& tiles = *dynamic_shared<Tiles<kRows>>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;  // of the fragments: see mma_bfloat16()
  const int warp_row = warp / kAcross * 64, warp_column = warp % kAcross * 32;
  const int steps = (slice_length(p, b) + kTileDepth - 1) / kTileDepth;

  float sums[4][4][4] = {}, y_squares[4] = {};
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) load_stage<kAsync>(p, b, tiles, s, s * kTileDepth);
    commit_copies();
  }
  for (int step = 0, stage = 0; step < steps;
       ++step, stage = stage == kStages - 1 ? 0 : stage + 1) {
    wait_copies<kStages - 2>();
    __syncthreads();
    const int ahead = step + kStages - 1;
    if (ahead < steps)
      load_stage<kAsync>(p, b, tiles, stage == 0 ? kStages - 1 : stage - 1, ahead * kTileDepth);
    commit_copies();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int quad = 4 * half + t;
      float4 center = make_float4(0, 0, 0, 0);
      if constexpr (kAsync) center = *reinterpret_cast<float4*>(&tiles.center[stage][4 * quad]);
      // Lane t has elements 4 t .. 4 t + 3 of the 16: for x and y alike, so the order is free.
      const auto read = [&](int row) {
        float4 v = *reinterpret_cast<float4*>(&tiles.rows[stage][row][place(row, quad)]);
        if constexpr (kAsync) {
          v.x -= center.x, v.y -= center.y, v.z -= center.z, v.w -= center.w;
        }
        return v;
      };
      uint32_t y_high[4][2], y_low[4][2];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float4 v = read(kRows + warp_column + 8 * c + g);
        y_squares[c] = fma_rn(v.x, v.x, y_squares[c]);
        y_squares[c] = fma_rn(v.y, v.y, y_squares[c]);
        y_squares[c] = fma_rn(v.z, v.z, y_squares[c]);
        y_squares[c] = fma_rn(v.w, v.w, y_squares[c]);
        split(v.x, v.y, y_high[c][0], y_low[c][0]);
        split(v.z, v.w, y_high[c][1], y_low[c][1]);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        uint32_t x_high[4], x_low[4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float4 v = read(warp_row + 16 * r + 8 * h + g);
          split(v.x, v.y, x_high[h], x_low[h]);
          split(v.z, v.w, x_high[2 + h], x_low[2 + h]);
        }
        mma_bfloat16(sums[r], x_high, y_low);
        mma_bfloat16(sums[r], x_low, y_high);
        mma_bfloat16(sums[r], x_high, y_high);
      }
    }
  }

  // The four lanes of a column add their parts of |y'|^2; then each lane takes the two columns that
  // it has sums of.
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    float square = y_squares[c];
    square += __shfl_xor_sync(0xFFFFFFFFu, square, 1);
    square += __shfl_xor_sync(0xFFFFFFFFu, square, 2);
    const int column = warp_column + 8 * c + g, j = blockIdx.y * kTileColumns + column;
    if (warp_row > 0 || t > 0) continue;
    tiles.y_squares[column] = square;
    if (blockIdx.x == 0 && j < b.references) b.y_squares[blockIdx.z * b.pitch + j] = square;
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int column = warp_column + 8 * c + 2 * t, j = blockIdx.y * kTileColumns + column;
    const float square0 = tiles.y_squares[column], square1 = tiles.y_squares[column + 1];
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const int i = blockIdx.x * kRows + warp_row + 8 * r + g;
      const float* sum = &sums[r / 2][c][2 * (r % 2)];
      if (i < b.queries && j < b.references)  // j + 1 is inside the pitch
        *reinterpret_cast<float2*>(b.scores + (int64_t{blockIdx.z} * b.queries + i) * b.pitch + j) =
            make_float2(fma_rn(-2.0f, sum[0], square0), fma_rn(-2.0f, sum[1], square1));
    }
  }
}

inline bool copyable(const NeighborParams& p) {
  return p.x_dtype == Dtype::kFloat32 && p.y_dtype == Dtype::kFloat32 && p.dim % 4 == 0 &&
         (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.y)) % 16 == 0;
}

template <bool kAsync, int kRows>
int launch_tensor_score(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(b.queries, kRows)),
                  static_cast<unsigned>(ceil_div(b.references, kTileColumns)),
                  static_cast<unsigned>(b.slices));
  return launch(tensor_score_kernel<kAsync, kRows>, grid, dim3(2 * kRows), sizeof(Tiles<kRows>),
                stream, p, b);
}

inline int launch_tensor_score(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  if (copyable(p))
    return b.queries > 64 ? launch_tensor_score<true, 128>(p, b, stream)
                          : launch_tensor_score<true, 64>(p, b, stream);
  return b.queries > 64 ? launch_tensor_score<false, 128>(p, b, stream)
                        : launch_tensor_score<false, 64>(p, b, stream);
}

}  // namespace
}  // namespace fastebm
