// Chains in bfloat16 on a CUDA device: how a batch is cut, and which kernel takes it.
#include "mlp/chain/tensor_cuda.h"

namespace fastebm {
namespace {

// 16 samples to a CUDA block where that leaves several for each multiprocessor; of large networks,
// whose weights come anew to each in every step, one.
ChainPlan tensor_plan(const MlpChainParams& p) {
  ChainPlan plan = pack_plan(p.mlp, 2);
  const int beside_slabs = max_shared_bytes() - plan.weight_bytes();
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

template <int kActivation, int kGroups>
int launch_tensor(const MlpChainParams& p, const ChainPlan& plan, void* stream) {
  const ChainBlocks blocks(p, plan);
  return launch(plan.samples == 32 ? tensor_chain_kernel<kActivation, 2, kGroups>
                                   : tensor_chain_kernel<kActivation, 1, kGroups>,
                blocks.grid, blocks.block, blocks.shared_bytes, stream, p, plan);
}

}  // namespace

int64_t tensor_chain_scratch_cuda(const MlpChainParams& p) {
  return tensor_plan(p).scratch_bytes();
}

int tensor_chain_cuda(const MlpChainParams& params, void* stream) {
  MlpChainParams p = params;
  if (p.row_bias) p.mlp.bias[0] = nullptr;  // sums begin with the samples' own
  const ChainPlan plan = tensor_plan(p);
  if (const int error = launch_pack<Bfloat16>(p, plan, stream)) return error;
  if (plan.groups == 2) return launch_tensor<kAnyActivation, 2>(p, plan, stream);
  return visit_activation(p.mlp.activation, [&](auto activation) {
    return launch_tensor<static_cast<int>(decltype(activation)::value), 1>(p, plan, stream);
  });
}

}  // namespace fastebm
