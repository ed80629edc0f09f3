// How the CUDA kernels of perceptron chains cut batches, for networks of every size at the limits
// of shared memory of an A100 and an H100: each plan fits, and its parts are large enough for what
// the kernels put there. Prints "ok NAME" lines; test_chain_plans.py compiles it.
#include <cstdio>
#include <string>
#include <vector>

#include "mlp/adjusted/tile_cuda.h"
#include "mlp/chain/float_plan_cuda.h"
#include "mlp/chain/tensor_plan_cuda.h"

namespace fastebm {
namespace {

constexpr int kA100 = 163 * 1024, kH100 = 227 * 1024;
constexpr int kSizes[] = {1, 2, 33, 64, 65, 128, 129, 255, 256, 257, 290, 400, 511, 512};
constexpr int64_t kBatches[] = {1, 129, 300, 516, 2049, 4096, 4097, 9000, 100000};

int faults = 0, plans = 0;

void expect(bool right, const char* what, const MlpChainParams& p, int limit) {
  if (right || ++faults > 20) return;
  std::printf("wrong: %s, batch %lld, dim %lld, limit %d, widths", what,
              static_cast<long long>(p.step.batch), static_cast<long long>(p.mlp.dim), limit);
  for (int l = 0; l < p.mlp.hidden; ++l) std::printf(" %d", p.mlp.width[l]);
  std::printf("\n");
}

void check(const MlpChainParams& p, const ChainPlan& plan, int size, int most_threads) {
  const auto expect_of = [&](bool right, const char* what) {
    expect(right, what, p, plan.most_shared_bytes);
  };
  ++plans;
  expect_of(plan.shared_bytes() <= plan.most_shared_bytes, "shared memory");
  expect_of(plan.warps >= 1 && 32 * plan.warps <= most_threads, "threads");
  expect_of(plan.samples * plan.tiles >= 1 && plan.weight_bytes() % 16 == 0, "tiles");
  for (int l = 0; l < plan.layers && !plan.resident; ++l) {
    const int forward = plan.slab(plan.rows[l]), back = plan.slab(plan.columns[l]);
    expect_of(plan.rows[l] * (forward + 16) <= plan.stage_bytes, "stage of a forward slab");
    expect_of(back / size * plan.pitch[l] <= plan.stage_bytes, "stage of a slab of rows");
    expect_of(forward % (size == 2 ? 64 : 16) == 0, "steps of a slab");
  }
}

void check_float(const MlpChainParams& p, int limit) {
  const ChainPlan chain = float_plan(p, limit, float_tile_bytes);
  const ChainPlan adjusted = float_plan(p, limit, adjusted_tile_bytes);
  for (const ChainPlan& plan : {chain, adjusted}) {
    check(p, plan, 4, tile_threads(plan.shared_tile));
    const int features = 32 * plan.groups * (plan.shared_tile ? plan.warps - 1 : 1);
    expect(plan.widest <= features, "features of all warps", p, limit);
    const int slab = plan.resident ? kChunk : plan.slab(plan.columns[0]) / 4;
    expect(slab % chunk_rows(plan) == 0, "chunks of a slab", p, limit);
    const int chunks = (plan.rows[0] + kChunk - 1) / kChunk;
    const int room = (plan.shared_tile ? 2 : 1) * most_rows(plan);
    if (plan.columns[0] <= narrow(plan.shared_tile))
      expect(chunks * plan.columns[0] <= room, "room of chunks", p, limit);
    expect(plan.columns[0] <= most_rows(plan), "room of the gradient", p, limit);
  }
}

template <int kGroups>
void check_tensor_tile(const MlpChainParams& p, const ChainPlan& plan) {
  const TensorTile<kGroups> tile(plan, plan.samples, nullptr);
  const auto at = [](const void* part) { return reinterpret_cast<uintptr_t>(part); };
  const uintptr_t end = at(tile.second) + 2 * plan.samples * tile.pitch;
  expect(end == static_cast<uintptr_t>(plan.tile_bytes), "end of a tile", p, kH100);
  expect(tile.pitch >= plan.widest && tile.rounded_pitch >= plan.columns[0], "rows", p, kH100);
  const uintptr_t next = kGroups == 1 ? at(tile.squares) : end;
  expect(at(tile.grad) + 4 * plan.samples * tile.x_pitch <= next, "the gradient", p, kH100);
}

void check_tensor(const MlpChainParams& p, int limit) {
  const ChainPlan plan = tensor_plan(p, limit);
  check(p, plan, 2, kMostTensorThreads);
  const int most = std::max(plan.widest, plan.columns[0]);
  expect(most <= plan.warps * plan.groups * kGroupFeatures, "features of all warps", p, limit);
  plan.groups == 1 ? check_tensor_tile<1>(p, plan) : check_tensor_tile<2>(p, plan);
}

void check_networks(int hidden) {
  for (const int dim : kSizes)
    for (const int first : kSizes)
      for (const int other : kSizes)
        for (const int64_t batch : kBatches) {
          MlpChainParams p{};
          p.step.batch = batch;
          p.mlp.dim = dim;
          p.mlp.hidden = hidden;
          for (int l = 0; l < hidden; ++l) p.mlp.width[l] = l % 2 ? other : first;
          for (const int limit : {kA100, kH100}) {
            check_float(p, limit);
            check_tensor(p, limit);
          }
        }
}

}  // namespace
}  // namespace fastebm

int main() {
  for (int hidden = 1; hidden <= fastebm::kMaxHidden; ++hidden) {
    fastebm::check_networks(hidden);
    if (fastebm::faults == 0 && fastebm::plans > 0)
      std::printf("ok %d hidden layers, %d plans\n", hidden, fastebm::plans);
  }
  return fastebm::faults != 0;
}
