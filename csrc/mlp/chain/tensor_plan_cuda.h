// How a batch is cut into tiles of bfloat16, and which form of a kernel takes them.
#pragma once
#include <algorithm>

#include "mlp/chain/fragments_cuda.h"

namespace fastebm {
namespace {

// 16 samples to a CUDA block where that leaves several for each multiprocessor; of large networks,
// whose weights come anew to each in every step, one.
inline ChainPlan tensor_plan(const MlpChainParams& p, int most_shared_bytes) {
  ChainPlan plan = pack_plan(p.mlp, 2, most_shared_bytes);
  const int beside_slabs = most_shared_bytes - plan.weight_bytes();
  const int most = std::max(plan.widest, plan.columns[0]);
  plan.groups = most <= kLarge ? 1 : 2;
  plan.warps = pieces(most, plan.groups * kGroupFeatures);
  plan.tiles = 1;
  const auto tile_bytes = [&](int samples) {
    return plan.groups == 1 ? TensorTile<1>::bytes(plan, samples)
                            : TensorTile<2>::bytes(plan, samples);
  };
  plan.samples = p.step.batch > (plan.groups == 1 ? 32 : 16) * kChainBlocks ? 32 : 16;
  if (tile_bytes(plan.samples) > beside_slabs) plan.samples = 16;
  plan.tile_bytes = tile_bytes(plan.samples);
  plan.resident = fits_resident(plan);
  return with_slabs(plan, 2);
}

}  // namespace
}  // namespace fastebm
