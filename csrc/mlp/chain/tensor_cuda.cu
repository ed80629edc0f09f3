// Chains in bfloat16 on a CUDA device: how a batch is cut, and which kernel takes it.
#include "mlp/chain/tensor_cuda.h"

namespace fastebm {
namespace {

ChainPlan tensor_plan(const MlpChainParams& p) {
  ChainPlan plan = pack_plan(p.mlp, 2);
  const int shared = max_shared_bytes(), beside_slabs = shared - plan.weight_bytes();
  plan.warps = pieces(std::max(plan.widest, plan.columns[0]), kWarpFeatures);
  plan.tiles = 1;
  plan.samples = p.step.batch > 32 * kChainBlocks ? 32 : 16;
  plan.tile_bytes = TensorTile::bytes(plan, plan.samples);
  if (plan.tile_bytes > beside_slabs) {
    plan.samples = 16;
    plan.tile_bytes = TensorTile::bytes(plan, plan.samples);
  }
  plan.resident = true;
  plan.resident = plan.shared_bytes() <= shared;
  return plan;
}

int launch_tensor(const MlpChainParams& p, const ChainPlan& plan, void* stream) {
  const ChainBlocks blocks(p, plan);
  return visit_activation(p.mlp.activation, [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    return launch(plan.samples == 32 ? tensor_chain_kernel<kActivation, 2>
                                     : tensor_chain_kernel<kActivation, 1>,
                  blocks.grid, blocks.block, blocks.shared_bytes, stream, p, plan);
  });
}

}  // namespace

int64_t tensor_chain_scratch_cuda(const MlpChainParams& p) {
  return tensor_plan(p).scratch_bytes();
}

int tensor_chain_cuda(const MlpChainParams& p, void* stream) {
  const ChainPlan plan = tensor_plan(p);
  if (const int error = launch_pack<Bfloat16>(p, plan, stream)) return error;
  return launch_tensor(p, plan, stream);
}

}  // namespace fastebm
