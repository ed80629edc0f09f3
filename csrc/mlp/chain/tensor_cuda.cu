// Chains in bfloat16 on a CUDA device.
#include "mlp/chain/tensor_cuda.h"
#include "mlp/chain/tensor_plan_cuda.h"

namespace fastebm {
namespace {

template <int kActivation, int kGroups>
int launch_tensor(const MlpChainParams& p, const ChainPlan& plan, void* stream) {
  const ChainBlocks blocks(p, plan);
  return launch(plan.samples == 32 ? tensor_chain_kernel<kActivation, 2, kGroups>
                                   : tensor_chain_kernel<kActivation, 1, kGroups>,
                blocks.grid, blocks.block, blocks.shared_bytes, stream, p, plan);
}

}  // namespace

int64_t tensor_chain_scratch_cuda(const MlpChainParams& p) {
  return tensor_plan(p, max_shared_bytes()).scratch_bytes();
}

int tensor_chain_cuda(const MlpChainParams& params, void* stream) {
  MlpChainParams p = params;
  if (p.row_bias) p.mlp.bias[0] = nullptr;  // sums begin with the samples' own
  const ChainPlan plan = tensor_plan(p, max_shared_bytes());
  if (const int error = launch_pack<Bfloat16>(p, plan, stream)) return error;
  if (plan.groups == 2) return launch_tensor<kAnyActivation, 2>(p, plan, stream);
  return visit_activation(p.mlp.activation, [&](auto activation) {
    return launch_tensor<static_cast<int>(decltype(activation)::value), 1>(p, plan, stream);
  });
}

}  // namespace fastebm
