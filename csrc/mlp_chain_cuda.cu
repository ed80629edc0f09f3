// The whole chain of a small MLP on a CUDA device: how a batch is cut, and which kernel takes it.
#include "mlp_chain_float_cuda.h"
#include "mlp_chain_tensor_cuda.h"

namespace fastebm {
namespace {

constexpr int kChainBlocks = 128;  // CUDA blocks to fill a device
constexpr int kFullWarps = 4;      // of float32, to fill a multiprocessor

int pieces(int64_t n, int64_t size) { return static_cast<int>((n + size - 1) / size); }

// Weights are resident where they leave room for as many warps as there is work for, up to four;
// in slabs they leave room for more than that, but each is read again in every step.
template <int kGroups, int kSamples>
int launch_float(const MlpChainParams& p, ChainPlan plan, void* stream) {
  const int shared = max_shared_bytes(), tiles = pieces(p.step.batch, kSamples);
  int warps = std::min(pieces(tiles, kChainBlocks), kChainThreads / 32);
  plan.tile_bytes = FloatTile<kSamples>::bytes(plan);
  plan.resident = true;
  plan.resident = plan.shared_bytes(std::min(warps, kFullWarps)) <= shared;
  while (warps > 1 && plan.shared_bytes(warps) > shared) --warps;
  if (warps > kFullWarps) warps -= warps % kFullWarps;
  plan.warps = warps;
  return launch(float_chain_kernel<kGroups, kSamples>,
                dim3(static_cast<unsigned>(pieces(tiles, warps))), dim3(32u * warps),
                static_cast<size_t>(plan.shared_bytes(warps)), stream, p, plan);
}

// More samples a warp share more reads of weights, but fewer warps share the work. 32 kGroups
// features are the most that a layer or a sample has.
template <int kGroups>
int launch_float(const MlpChainParams& p, const ChainPlan& plan, void* stream) {
  const int room = max_shared_bytes() - plan.weight_bytes();  // beside slabs
  if (p.step.batch >= 4096 && FloatTile<8>::bytes(plan) <= room)
    return launch_float<kGroups, 8>(p, plan, stream);
  if (p.step.batch >= 1024 && FloatTile<4>::bytes(plan) <= room)
    return launch_float<kGroups, 4>(p, plan, stream);
  return launch_float<kGroups, 2>(p, plan, stream);
}

int launch_float(const MlpChainParams& p, const ChainPlan& plan, void* stream) {
  const int most = std::max(plan.widest, plan.columns[0]);
  if (most <= 64) return launch_float<2>(p, plan, stream);
  return most <= 128 ? launch_float<4>(p, plan, stream) : launch_float<8>(p, plan, stream);
}

template <Activation kActivation, int kTiles>
int launch_tensor(const MlpChainParams& p, ChainPlan plan, void* stream) {
  plan.warps = pieces(std::max(plan.widest, plan.columns[0]), 32);
  plan.tile_bytes = TensorTile::bytes(plan, 16 * kTiles);
  plan.resident = true;
  plan.resident = plan.shared_bytes(1) <= max_shared_bytes();
  return launch(tensor_chain_kernel<kActivation, kTiles>,
                dim3(static_cast<unsigned>(pieces(p.step.batch, 16 * kTiles))),
                dim3(32u * plan.warps), static_cast<size_t>(plan.shared_bytes(1)), stream, p, plan);
}

int launch_tensor(const MlpChainParams& p, const ChainPlan& plan, void* stream) {
  const int room = max_shared_bytes() - plan.weight_bytes();
  return visit_activation(p.mlp.activation, [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    if (p.step.batch > 2 * 16 * kChainBlocks && TensorTile::bytes(plan, 32) <= room)
      return launch_tensor<kActivation, 2>(p, plan, stream);
    return launch_tensor<kActivation, 1>(p, plan, stream);
  });
}

ChainPlan chain_plan(const MlpChainParams& p) { return pack_plan(p.mlp, p.bfloat16 ? 2 : 4); }

}  // namespace

int64_t mlp_chain_scratch_cuda(const MlpChainParams& p) { return chain_plan(p).bytes; }

int mlp_chain_cuda(const MlpChainParams& p, int64_t, int64_t, void* stream) {
  const ChainPlan plan = chain_plan(p);
  const int error =
      p.bfloat16 ? launch_pack<Bfloat16>(p, plan, stream) : launch_pack<float>(p, plan, stream);
  if (error) return error;
  return p.bfloat16 ? launch_tensor(p, plan, stream) : launch_float(p, plan, stream);
}

}  // namespace fastebm
