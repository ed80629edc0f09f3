// From scores to neighbours.
#pragma once
#include "neighbor/exact_cuda.h"
#include "neighbor/quantize_cuda.h"
#include "neighbor/select_plan.h"
#include "neighbor/slices_cuda.h"

namespace fastebm {
namespace {

// Exact squares of this many take about as long as scores of floats of all references.
constexpr int kMostCandidates = 128;
static_assert(kMaxColumns <= 1 << 16, "a column's number has 16 bits");

// The k-th least of the 32 lanes' values, none of them NaN, in every lane.
__device__ inline float kth_least(float value, int k) {
  const int lane = threadIdx.x % 32;
  if (k == 1) {
    for (int h = 16; h > 0; h /= 2) value = fminf(value, __shfl_xor_sync(0xFFFFFFFFu, value, h));
    return value;
  }
  int rank = 0;
#pragma unroll 8
  for (int l = 0; l < 32; ++l) {
    const float other = __shfl_sync(0xFFFFFFFFu, value, l);
    rank += other < value || (other == value && l < lane);
  }
  return __shfl_sync(0xFFFFFFFFu, value, __ffs(__ballot_sync(0xFFFFFFFFu, rank == k - 1)) - 1);
}

// |score - t| <= relative score + absolute for all references of a query.
struct LinearError {
  double relative, absolute;
};

// That of a ScoreError, without |y'|^2, which need not be read then: as t + |x'|^2 = |x' - y'|^2,
//   |y'|^2 <= 2 |x'|^2 + 2 |x' - y'|^2 <= 4 |x'|^2 + 2 (score + |score - t|),
// and what |score - t| is at most follows.
FASTEBM_HD LinearError linear_error(const ScoreError& error, double x_square) {
  const double reference = 2.0 * error.reference;
  return {(error.relative + reference) / (1 - reference),
          ((error.query + 2 * reference) * x_square + error.absolute) / (1 - reference)};
}

__device__ inline float rounded_up(double v) {
  return static_cast<float>(v + fabs(v) * 0x1p-22 + 0x1p-140);
}

// Whose points scores are of, where they are not of the samples.
enum class Grid { kNone, kBytes, kBfloat16 };

// |x' - xh| + |y' - yh| for all references, given the squares of both.
__device__ inline double rounded_residual(double own_square, double others_square, int64_t dim) {
  return (sqrt(own_square) + sqrt(others_square)) * (1 + 0x1p-10) +
         sqrt(static_cast<double>(dim)) * 0x1p-70;
}

// The k nearest of a query among the references of a block and those found in blocks before: a
// CUDA block takes one query.
//  1. Each column's score, four columns a thread at a time, or where there are many slices and so
//     few columns, one, with a quarter of the slices of four; it stays in shared memory.
//     The threads fall into 32 classes: the upper bound of the k-th of the classes' least scores is
//     not below the block's k-th least square, as each is that of another chunk. Of a query on a
//     grid scores are of |xh - yh|^2, and what they say of squares is in neighbor/grid_cuda.h.
//  2. Chunks whose score's lower bound is above it, or above the k-th square found before, are
//     dropped: bounds are linear in scores, so that this is a limit to these. The others'
//     references get exact squares: a lane each where chunks are large (kChunks), a warp each
//     otherwise, by which it is copied into shared memory first. On the grid, where more references
//     are left than fit there at once, those nearest on the grid come first: their squares, which
//     are true ones, drop most of the others.
//  3. The warps' lists are merged.
// A chunk with the skipped reference has no upper bound. A score that may have overflowed is a NaN,
// which bounds nothing. There is a kernel for queries on each grid, and one for the others. A query
// with too many candidates leaves the grid, which is where scores of samples tell more.
// Memory moves 4 B a score, and x and y for the exact squares.
template <class X, class Y, bool kChunks, Grid kGrid>
__global__ void __launch_bounds__(kChunks ? kChunkThreads : kMostThreads, kChunks ? 16 : 1)
    select_kernel(NeighborParams p, ScoreBlock b, SelectPlan plan) {
  constexpr bool kBytes = kGrid == Grid::kBytes, kRounded = kGrid == Grid::kBfloat16;
  constexpr bool kOnGrid = kBytes || kRounded;
  FASTEBM_SHARED(float[32], minima);  // of the classes
  FASTEBM_SHARED(double[32], sums);   // of warps
  FASTEBM_SHARED(double[32], left);   // of warps, and what follows of it; kRounded
  FASTEBM_SHARED(float[2], limits);
  FASTEBM_SHARED(int[3], counts);
  char* shared = dynamic_shared<char>();
  float* scores = reinterpret_cast<float*>(shared);  // of each column
  uint16_t* found = reinterpret_cast<uint16_t*>(shared + plan.found);
  double* x_values = reinterpret_cast<double*>(shared + plan.x);
  const int threads = kChunks ? kChunkThreads : blockDim.x, warps = threads / 32;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int64_t row = blockIdx.x, query = b.first_query + row;
  const int64_t dim = p.dim;
  const X* x = static_cast<const X*>(p.x) + query * p.dim;
  const Y* y = static_cast<const Y*>(p.y) + b.first_reference * p.dim;
  const int shift = kChunks ? __ffs(b.chunk) - 1 : 0;
  const int64_t skip = p.skip ? p.skip[query] - b.first_reference : -1;
  const int skip_column = skip < 0 || skip >= b.references ? -1 : static_cast<int>(skip) >> shift;

  GridQuery on_grid{};
  if constexpr (!kChunks)
    if (b.grid_queries) {
      on_grid = b.grid_queries[row];
      if (is_off_grid(on_grid) == kOnGrid) return;
    }

  // This and x are asked for before the scores, and used after them.
  double others_left = 0;  // of the references, a lane's part
  for (int z = lane; kRounded && z < b.slices; z += 32) others_left += b.left_out[z];
  constexpr int kEarly = kChunks ? 1 : 4;
  X own[kEarly];
  float center[kEarly];
  const auto load_x = [&](int64_t first) {
#pragma unroll
    for (int i = 0; i < kEarly; ++i) {
      const int64_t e = first + i * threads;
      own[i] = e < dim ? x[e] : X(0);
      if constexpr (!kBytes) center[i] = e < dim ? b.center[e] : 0;
    }
  };
  if constexpr (!kChunks)
    if (!kBytes || plan.keeps_x) load_x(thread);

  // What blocks before have left is the first warp's, to begin with.
  Neighbor* kept = b.lists + static_cast<int>(row) * p.k;
  Neighbor* lists = reinterpret_cast<Neighbor*>(shared + plan.lists);
  Neighbor* list = lists + warp * p.k;
  if (lane < p.k) list[lane] = warp == 0 && !b.first ? kept[lane] : no_neighbor();

  float least = INFINITY;
  const auto score_of = [&](int j, auto sum) {
    float score;
    if constexpr (kBytes)
      score = static_cast<float>(sum + static_cast<decltype(sum)>(on_grid.square));
    else
      score = fabsf(sum) < 0x1p124f ? sum : NAN;
    if (j < b.columns && j != skip_column) least = fminf(least, score);
    return score;
  };
  const auto add_quads = [&](auto quads, auto batch, auto zero) {
    constexpr int kQuads = decltype(quads)::value, kBatch = decltype(batch)::value;
    for (int from = 4 * thread; from < b.columns; from += 4 * threads * kQuads) {
      decltype(zero) sum[kQuads][4] = {};
      add_slices<kQuads, kBatch>(b, row, from, 4 * threads, 0, 1, sum);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const int j = from + 4 * threads * q;
        float score[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) score[c] = score_of(j + c, sum[q][c]);
        if (j < b.columns)
          *reinterpret_cast<float4*>(scores + j) =
              make_float4(score[0], score[1], score[2], score[3]);
      }
    }
  };
  const auto add_columns = [&](auto zero) {
    for (int first = 32 * warp; first < b.columns; first += threads) {
      const int j = first + lane % 8 * 4, mine = j + (lane & 8) / 4 + lane / 16;
      decltype(zero) sum[1][4] = {};
      add_slices<1, 4>(b, row, j, 0, lane / 8, 4, sum);
      const float score = score_of(mine, sum_of_own(sum[0]));
      if (mine < b.columns) scores[mine] = score;
    }
  };
  using Zero = std::conditional_t<kBytes, int32_t, float>;
  using LongZero = std::conditional_t<kBytes, int64_t, float>;
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  using Four = std::integral_constant<int, 4>;
  static_assert(255 * 255 * 4 * kMaxSlice <= INT32_MAX);
  if (kChunks || b.slices == 1)
    add_quads(Four(), One(), Zero{0});
  else if (b.slices <= 4)
    add_quads(Two(), Four(), Zero{0});
  else
    add_columns(LongZero{0});

  double x_square = kBytes ? on_grid.residual : 0, left_out = 0;
  if constexpr (!kChunks)
    if (!kBytes || plan.keeps_x)
      for (int64_t first = thread; first < dim; first += kEarly * threads) {
        if (first > thread) load_x(first);
#pragma unroll
        for (int i = 0; i < kEarly; ++i) {
          const int64_t e = first + i * threads;
          const double value = own[i];
          if (plan.keeps_x && e < dim) x_values[e] = value;
          if constexpr (kRounded) {  // as split_kernel
            const float centred = static_cast<float>(own[i] - center[i]);
            const double high = float_from_bits(bfloat16_pair(centred, centred) & 0xFFFF0000u);
            x_square += high * high;
            left_out += (value - center[i] - high) * (value - center[i] - high);
          } else if constexpr (!kBytes) {
            x_square += (value - center[i]) * (value - center[i]);
          }
        }
      }
  if constexpr (!kChunks && !kBytes) {
    x_square = warp_sum(x_square);
    if constexpr (kRounded) left_out = warp_sum(left_out);
    if (lane == 0) {
      sums[warp] = x_square;
      if constexpr (kRounded) left[warp] = left_out;
    }
  }
  for (int h = 1; h < warps; h *= 2) least = fminf(least, __shfl_xor_sync(0xFFFFFFFFu, least, h));
  if ((thread & (warps - 1)) == 0) minima[thread >> (__ffs(warps) - 1)] = least;
  if (thread < 3) counts[thread] = 0;
  __syncthreads();
  if (warp == 0) {
    const float kth = kth_least(minima[lane], p.k);
    if constexpr (!kChunks && !kBytes) x_square = warp_sum(lane < warps ? sums[lane] : 0);
    if constexpr (kRounded)
      on_grid = {x_square, rounded_residual(warp_sum(lane < warps ? left[lane] : 0),
                                            warp_sum(others_left), dim)};
    const auto [relative, absolute] =
        kBytes ? LinearError{0x1p-22, 0}
               : linear_error(kRounded ? b.rounded_error : b.error, x_square);
    double most = kth + kth * relative + absolute;
    if constexpr (kBytes) most = most_beside(most, on_grid);
    if constexpr (kRounded) most = most_beside(fmax(most + x_square, 0.0), on_grid) - x_square;
    if (!b.first) {
      const double square = lists[p.k - 1].square, slack = static_cast<double>(p.dim) * 0x1p-52;
      most = fmin(most, kOnGrid ? most_within(square, on_grid, b.grid) - (kBytes ? 0 : x_square)
                                : square - x_square + (square + x_square) * slack);
    }
    most = (most + absolute) / (1 - relative);
    if (!(relative < 0.5) || (!kBytes && !(x_square < 0x1p124))) most = HUGE_VAL;
    if (lane == 0) {
      limits[0] = x_square == x_square ? rounded_up(most) : NAN;
      limits[1] = kth;
    }
    if constexpr (kRounded) {
      __syncwarp();  // all have read `left`
      if (lane == 0) {
        left[0] = on_grid.residual;
        left[1] = absolute - x_square;
        left[2] = 1 - relative;
      }
    }
  }
  __syncthreads();
  float most = limits[0], above = -INFINITY;
  const int columns = most == most ? b.columns : 0;  // a NaN has no neighbours
  const float kth = limits[1];
  if constexpr (kRounded) on_grid.residual = left[0];

  for (int pass = 0;; ++pass) {
    for (int from = 4 * thread; from < columns; from += 4 * threads) {
      const float4 four = *reinterpret_cast<const float4*>(scores + from);
      const float score[4] = {four.x, four.y, four.z, four.w};
      if (score[0] > most && score[1] > most && score[2] > most && score[3] > most) continue;
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (!(score[c] > most) && !(kOnGrid && score[c] <= above) && from + c < columns &&
            !(kRounded && pass == 1 && score[c] != score[c]) &&  // a NaN's turn is the next pass
            (kChunks || from + c != skip_column))
          found[atomicAdd(&counts[pass], 1)] = static_cast<uint16_t>(from + c);
    }
    __syncthreads();
    const int count = counts[pass];
    if constexpr (kOnGrid) {
      if (pass == 0 && count > plan.stages && kth < most) {
        most = kth;
        continue;
      }
      if (count > kMostCandidates + 2 * p.k) {
        if (thread == 0) b.grid_queries[row].residual = HUGE_VAL;
        if constexpr (kBytes) split_query<X>(p, b, row);
        return;
      }
    }
    double farthest = 0;
    if constexpr (kChunks) {
      const int pieces = shift - 5;      // of 32, in bits
      Neighbor nearest = no_neighbor();  // of a lane, where k is 1
      for (int item = warp; item < count << pieces; item += warps) {
        const int64_t r = (static_cast<int64_t>(found[item >> pieces]) << shift) +
                          (item & ((1 << pieces) - 1)) * 32 + lane;
        Neighbor candidate{NAN, b.first_reference + r};
        if (r < b.references && r != skip)
          candidate.square =
              small_square(x, y + r * dim, static_cast<int>(dim), p.y_scale, p.y_offset);
        if (p.k > 1)
          add_lanes(list, p.k, candidate);
        else if (nearer(candidate, nearest))
          nearest = candidate;
      }
      nearest = warp_nearest(nearest);
      if (lane == 0) add_neighbor(list, p.k, nearest);
    } else if (warp < plan.stages) {
      Y* stage = reinterpret_cast<Y*>(shared + plan.stage + warp * plan.stage_bytes);
      const int length = plan.stage_bytes / static_cast<int>(sizeof(Y));
      for (int item = warp; item < count; item += plan.stages) {
        const int r = found[item];
        double square = 0;
        for (int64_t first = 0; first < dim; first += length) {
          const int here = dim - first < length ? static_cast<int>(dim - first) : length;
          copy_row(y + r * dim + first, here, stage);
          square = plan.keeps_x
                       ? add_elements(square, x_values + first, stage, here, p.y_scale, p.y_offset)
                       : add_elements(square, x + first, stage, here, p.y_scale, p.y_offset);
        }
        square = warp_sum(square);
        farthest = fmax(farthest, square);
        if (lane == 0) add_neighbor(list, p.k, {square, b.first_reference + r});
      }
    }
    if (!kOnGrid || pass != 1) break;
    // The k-th nearest is not farther than the farthest of these.
    if (lane == 0) sums[warp] = farthest;
    __syncthreads();
    farthest = sums[0];
    for (int w = 1; w < warps; ++w) farthest = fmax(farthest, sums[w]);
    above = kth;
    double within = most_within(farthest, on_grid, b.grid);
    if constexpr (kRounded) within = (within + left[1]) / left[2];
    most = fminf(limits[0], rounded_up(within));
  }

  // Each neighbour finds its own place; there is none at places that nobody finds.
  const auto store = [&](int c, Neighbor neighbor) {
    kept[c] = neighbor;
    if (b.last) store_neighbor<X>(p, query, c, neighbor);
  };
  if (p.k > 1 && thread < p.k) store(thread, no_neighbor());
  __syncthreads();
  if (p.k == 1) {
    if (warp > 0) return;
    const Neighbor nearest = warp_nearest(lane < warps ? lists[lane] : no_neighbor());
    if (lane == 0) store(0, nearest);
  } else if (thread < warps * p.k && lists[thread].index != INT64_MAX) {
    const int rank = rank_in_lists(lists, warps, p.k, thread);
    if (rank < p.k) store(rank, lists[thread]);
  }
}

template <class X, class Y, Grid kGrid>
int launch_select(const NeighborParams& p, const ScoreBlock& b, void* stream) {
  const dim3 grid(static_cast<unsigned>(b.queries));
  const SelectPlan plan = plan_select(p, b, sizeof(X), sizeof(Y));
  if constexpr (kGrid == Grid::kNone)
    if (p.dim <= kDirectDim)
      return launch(select_kernel<X, Y, true, kGrid>, grid, dim3(plan.threads), plan.bytes, stream,
                    p, b, plan);
  return launch(select_kernel<X, Y, false, kGrid>, grid, dim3(plan.threads), plan.bytes, stream, p,
                b, plan);
}

}  // namespace
}  // namespace fastebm
