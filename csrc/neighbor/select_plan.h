// How a CUDA block of the select kernel finds the neighbours of its query.
#pragma once
#include "launch/device.h"
#include "neighbor/blocks_cuda.h"

namespace fastebm {

constexpr int kChunkThreads = 64;  // chunks are few and cheap to look at
constexpr int kFewestThreads = 256, kMostThreads = 1024;

// Threads, and what of the shared memory is for what.
struct SelectPlan {
  int threads;
  int stages, stage_bytes;  // references that wait for their exact squares, or a part of one
  bool keeps_x;             // in float64, for all exact squares
  int lists, found, x, stage, bytes;  // where these begin, after the scores of columns; the end
};

// Few queries get many threads each, as it is latency that they wait for; more share a
// multiprocessor. Exact squares get the shared memory that is left for as many CUDA blocks as that
// has registers for, or for fewer where this is too little.
inline SelectPlan plan_select(const NeighborParams& p, const ScoreBlock& b, size_t x_size,
                              size_t y_size) {
  constexpr int64_t kReserved = 1024, kStatic = 768, kEnough = 4096, kLeast = 512;
  const int64_t all = max_shared_bytes() + kReserved;
  SelectPlan plan{};
  const int64_t width = b.slices > 4 ? b.columns : b.columns / 4;  // that scores keep busy
  plan.threads = kMostThreads;
  while (plan.threads > kFewestThreads &&
         (plan.threads / 2 >= width || int64_t{b.queries} * plan.threads > 128 * kMostThreads))
    plan.threads /= 2;
  if (p.dim <= kDirectDim) plan.threads = kChunkThreads;
  int64_t left = 0;
  for (int blocks = kMostThreads / plan.threads;; blocks = blocks > 1 ? blocks / 2 : 1) {
    plan.lists = static_cast<int>(b.pitch * sizeof(float));
    plan.found = plan.lists + plan.threads / 32 * p.k * static_cast<int>(sizeof(Neighbor));
    plan.x = plan.found + static_cast<int>(b.pitch * sizeof(uint16_t));
    plan.bytes = plan.stage = plan.x;
    if (p.dim <= kDirectDim) return plan;
    left = all / blocks - kReserved - kStatic - plan.x;
    if (left >= kEnough) break;
    if (blocks > 1) continue;
    if (left >= kLeast || plan.threads == kFewestThreads) break;
    plan.threads /= 2;
  }
  const int64_t row = ceil_div(p.dim * static_cast<int64_t>(y_size), 16) * 16;
  const int64_t x_bytes = ceil_div(p.dim * static_cast<int64_t>(sizeof(double)), 16) * 16;
  plan.keeps_x = x_size < sizeof(double) && left >= x_bytes + 8 * row;
  if (plan.keeps_x) plan.stage += static_cast<int>(x_bytes), left -= x_bytes;
  plan.stages = static_cast<int>(std::clamp<int64_t>(left / row, 1, plan.threads / 32));
  plan.stage_bytes = static_cast<int>(std::min(row, std::max(left / kLeast, int64_t{1}) * kLeast));
  plan.bytes = plan.stage + plan.stages * plan.stage_bytes;
  return plan;
}

}  // namespace fastebm
