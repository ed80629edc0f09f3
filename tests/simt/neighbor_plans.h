// What a search has for memory, and what its errors add up to: nothing of it runs on the device.
#pragma once
#include <algorithm>

#include "neighbor_search.h"

namespace fastebm {
namespace {

// The scratch of any search is what neighbor/blocks_cuda.h says.
void test_scratch() {
  int64_t most = 0;
  for (int64_t dim : {1, 2, 16, 17, 100, 784, 3072, 49152, 65536, 200000})
    for (int64_t n : {1, 64, 65, 128, 1000, 2049, 300000})
      for (int64_t m : {16, 129, 1000, 100000, 10000000})
        for (int k : {1, 16})
          for (Dtype type : {Dtype::kFloat32, Dtype::kUint8}) {
            NeighborParams p{};
            p.y_dtype = type, p.y_scale = 1, p.n = n, p.m = m, p.dim = dim, p.k = k;
            const int64_t bytes = plan_blocks(p, nullptr).bytes;
            if (dim <= 65536 || type == Dtype::kUint8) most = std::max(most, bytes);
          }
  const bool fits = 60000000 < most && most <= 70000000;
  std::printf("%s scratch: %.1f MB\n", fits ? "ok" : "FAILED", static_cast<double>(most) / 1e6);
  failures += !fits;
}

// A score that is off by all that a ScoreError allows, of a reference as long as its distance
// allows, is off by no more than the linear error says, and where the distance is |x'|, by all.
void test_linear_errors() {
  double most = 0, at_length = 0;
  for (int64_t slice : {192, 2048})
    for (double x_square : {0.0, 1e-9, 1.0, 3e5})
      for (double distance : {0.0, 1e-3, 0.5, 1.0, 2.0, 1e3})
        for (double side : {-1.0, 1.0}) {
          const ScoreError error = score_error(4 * slice, slice, 4);
          const double length = std::sqrt(x_square), far = distance * (length + 1e-6);
          const double y_square = (length + far) * (length + far);
          const double off = error.query * x_square + error.reference * y_square + error.absolute;
          const LinearError linear = linear_error(error, x_square);
          const double score = far * far - x_square + side * off;
          const double ratio = off / (linear.relative * score + linear.absolute);
          most = std::max(most, ratio);
          if (x_square == 1 && distance == 1 && side < 0) at_length = std::max(at_length, ratio);
        }
  const bool right = most < 1 + 1e-9 && at_length > 0.99;
  std::printf("%s linear errors: %.4f, %.4f\n", right ? "ok" : "FAILED", most, at_length);
  failures += !right;
}

// Scores, lists, numbers of columns, x and references follow one another in the shared memory that
// there is; those that wait for exact squares, or the parts of one, begin at 16 bytes.
void test_select_plans() {
  bool right = true;
  for (int64_t dim : {17, 100, 784, 3072, 49152, 200000})
    for (int64_t n : {1, 128, 129, 1000, 2048})
      for (int64_t m : {16, 1000, 10000, 1000000})
        for (int k : {1, 16})
          for (size_t x_size : {4, 8})
            for (size_t y_size : {1, 2, 4, 8}) {
              NeighborParams p{};
              p.y_dtype = y_size == 1 ? Dtype::kUint8 : Dtype::kFloat32;
              p.y_scale = 1, p.n = n, p.m = m, p.dim = dim, p.k = k;
              const ScoreBlock b = plan_blocks(p, nullptr).block;
              const SelectPlan plan = plan_select(p, b, x_size, y_size);
              const int64_t pitch = b.pitch, size = static_cast<int64_t>(y_size);
              const int warps = plan.threads / 32;
              right = right && (warps == 8 || warps == 16 || warps == 32) && plan.stages >= 1;
              right = right && plan.stages <= warps && plan.lists >= 4 * pitch;
              right = right && plan.found - plan.lists >= 16 * warps * k;
              right = right && plan.x - plan.found >= 2 * pitch;
              right = right && plan.stage - plan.x >= (plan.keeps_x ? 8 * dim : 0);
              right = right && plan.bytes - plan.stage >= plan.stages * plan.stage_bytes;
              right = right && plan.bytes + 512 <= max_shared_bytes();
              right = right && (plan.lists | plan.found | plan.x | plan.stage) % 16 == 0;
              right = right && (plan.stage_bytes >= dim * size ? plan.stage_bytes % 16 == 0
                                                               : plan.stage_bytes % 512 == 0);
              right = right && plan.stage_bytes > 0;
            }
  std::printf("%s plans of shared memory\n", right ? "ok" : "FAILED");
  failures += !right;
}

}  // namespace
}  // namespace fastebm
