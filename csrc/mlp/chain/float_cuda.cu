// Chains in float32 on a CUDA device.
#include "mlp/chain/float_cuda.h"
#include "mlp/chain/float_plan_cuda.h"

namespace fastebm {

int64_t float_chain_scratch_cuda(const MlpChainParams& p) {
  return float_plan(p, max_shared_bytes(), float_tile_bytes).scratch_bytes();
}

int float_chain_cuda(const MlpChainParams& p, void* stream) {
  const ChainPlan plan = float_plan(p, max_shared_bytes(), float_tile_bytes);
  if (const int error = launch_pack<float>(p, plan, stream)) return error;
  return visit_form(plan, [&](auto form) {
    const auto [grid, block, bytes] = ChainBlocks(p, plan);
    return launch(float_chain_kernel<form.kGroups, form.kSamples, form.kShared>, grid, block, bytes,
                  stream, p, plan);
  });
}

}  // namespace fastebm
