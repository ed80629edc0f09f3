// The whole chain of a small MLP on a CUDA device: how a batch is cut, and which kernel takes it.
#include "mlp_chain_float_cuda.h"
#include "mlp_chain_tensor_cuda.h"

namespace fastebm {
namespace {

constexpr int kEnoughBlocks = 128;  // CUDA blocks to fill a device
constexpr int kMinWarps = 4;        // of a block, to fill a multiprocessor

// Whether all weights fit beside what `warps` warps need, `tile` bytes each.
bool fits(const ChainPlan& plan, int tile, int warps, int shared) {
  return plan.weight_bytes() + tile * warps <= shared;
}

int ceil_div(int64_t n, int64_t by) { return static_cast<int>((n + by - 1) / by); }

template <int kGroups, int kSamples>
int launch_float(const MlpChainParams& p, ChainPlan plan, void* stream) {
  const int tile = FloatTile<kSamples>::bytes(plan), shared = max_shared_bytes();
  const int tiles = ceil_div(p.step.batch, kSamples);
  int warps = ceil_div(tiles, kEnoughBlocks);
  warps = warps > kChainThreads / 32 ? kChainThreads / 32 : warps;
  plan.resident = true;
  plan.resident = fits(plan, tile, warps < kMinWarps ? warps : kMinWarps, shared);
  while (warps > 1 && !fits(plan, tile, warps, shared)) --warps;
  if (warps > kMinWarps && warps < 2 * kMinWarps) warps = kMinWarps;
  plan.warps = warps;
  plan.samples = kSamples;
  return launch(float_chain_kernel<kGroups, kSamples>,
                dim3(static_cast<unsigned>(ceil_div(tiles, warps))), dim3(32u * warps),
                static_cast<size_t>(plan.weight_bytes() + warps * tile), stream, p, plan);
}

// 32 kGroups features are the most that a layer or a sample has.
template <int kGroups>
int launch_float(const MlpChainParams& p, const ChainPlan& plan, void* stream) {
  if (p.step.batch >= 4096) return launch_float<kGroups, 8>(p, plan, stream);
  if (p.step.batch >= 1024) return launch_float<kGroups, 4>(p, plan, stream);
  return launch_float<kGroups, 2>(p, plan, stream);
}

template <Activation kActivation, int kTiles>
int launch_tensor(const MlpChainParams& p, ChainPlan plan, void* stream) {
  plan.samples = 16 * kTiles;
  const int tile = TensorTile(plan, plan.samples).bytes();
  plan.resident = true;
  plan.resident = fits(plan, tile, 1, max_shared_bytes());
  return launch(tensor_chain_kernel<kActivation, kTiles>,
                dim3(static_cast<unsigned>(ceil_div(p.step.batch, plan.samples))),
                dim3(32u * plan.warps), static_cast<size_t>(plan.weight_bytes() + tile), stream, p,
                plan);
}

int widest_layer(const ChainPlan& plan) {
  int widest = plan.columns[0];
  for (int l = 0; l < plan.layers; ++l) widest = widest < plan.rows[l] ? plan.rows[l] : widest;
  return widest;
}

}  // namespace

int64_t mlp_chain_scratch_cuda(const MlpChainParams& p) {
  return pack_plan(p.mlp, p.bfloat16 ? 2 : 4).bytes;
}

int mlp_chain_cuda(const MlpChainParams& p, int64_t, int64_t, void* stream) {
  if (p.step.batch == 0 || p.n_steps == 0) return 0;
  ChainPlan plan = pack_plan(p.mlp, p.bfloat16 ? 2 : 4);
  const int widest = widest_layer(plan);
  if (p.bfloat16) {
    plan.warps = ceil_div(widest, 32);
    if (const int error = launch_pack<Bfloat16>(p, plan, stream)) return error;
    return visit_activation(p.mlp.activation, [&](auto activation) {
      constexpr Activation kActivation = decltype(activation)::value;
      return p.step.batch > 16 * 2 * kEnoughBlocks ? launch_tensor<kActivation, 2>(p, plan, stream)
                                                   : launch_tensor<kActivation, 1>(p, plan, stream);
    });
  }
  if (const int error = launch_pack<float>(p, plan, stream)) return error;
  if (widest <= 64) return launch_float<2>(p, plan, stream);
  return widest <= 128 ? launch_float<4>(p, plan, stream) : launch_float<8>(p, plan, stream);
}

}  // namespace fastebm
