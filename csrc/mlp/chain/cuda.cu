// The whole chain of a small MLP on a CUDA device: how a batch is cut, and which kernel takes it.
#include "mlp/chain/float_cuda.h"
#include "mlp/chain/tensor_cuda.h"

namespace fastebm {
namespace {

constexpr int kChainBlocks = 128;  // CUDA blocks to fill a device
constexpr int kFullWarps = 4;      // to fill a multiprocessor

int pieces(int64_t n, int64_t size) { return static_cast<int>((n + size - 1) / size); }

// A tile of float32 has as many samples as leave four warps for each multiprocessor: more share a
// read of weights. Where there are four tiles, a warp takes each, and so many in a CUDA block share
// its weights. Those are resident where they leave room for the tiles that there is work for, up to
// four; in slabs they leave room for more than that, but each is read again in every step.
ChainPlan float_plan(const MlpChainParams& p) {
  ChainPlan plan = pack_plan(p.mlp, 4);
  const int shared = max_shared_bytes(), beside_slabs = shared - plan.weight_bytes();
  plan.samples = kMostSamples;
  plan.tile_bytes = float_tile_bytes(plan, plan.samples, false);
  if (p.step.batch >= kMostSamples * kFullWarps * kChainBlocks && plan.tile_bytes <= beside_slabs) {
    plan.groups = plan.widest <= 64 ? 2 : plan.widest <= 128 ? 4 : 8;
    plan.tiles = kFullWarps;
    plan.resident = true;
    plan.resident = plan.shared_bytes() <= shared;
    plan.tiles = std::min(pieces(p.step.batch, plan.samples * kChainBlocks), kChainThreads / 32);
    while (plan.tiles > 1 && plan.shared_bytes() > shared) --plan.tiles;
    if (plan.tiles > kFullWarps) plan.tiles -= plan.tiles % kFullWarps;
    plan.warps = plan.tiles;
    return plan;
  }
  plan.groups = plan.tiles = 1;
  plan.warps = pieces(plan.widest, 32) + 1;  // and one that draws noise
  const auto bytes = [&] { return plan.tile_bytes = float_tile_bytes(plan, plan.samples, true); };
  const int tiles = kChainBlocks * std::max(kFullWarps / (plan.warps - 1), 1);
  while (plan.samples > 1 && (p.step.batch <= tiles * plan.samples / 2 || bytes() > beside_slabs))
    plan.samples /= 2;
  bytes();
  plan.resident = true;
  plan.resident = plan.shared_bytes() <= shared;
  return plan;
}

ChainPlan tensor_plan(const MlpChainParams& p) {
  ChainPlan plan = pack_plan(p.mlp, 2);
  const int shared = max_shared_bytes(), beside_slabs = shared - plan.weight_bytes();
  plan.warps = pieces(std::max(plan.widest, plan.columns[0]), 32);
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

ChainPlan chain_plan(const MlpChainParams& p) {
  return p.bfloat16 ? tensor_plan(p) : float_plan(p);
}

// How the blocks of a chain are launched.
struct ChainBlocks {
  dim3 grid, block;
  size_t shared_bytes;
  ChainBlocks(const MlpChainParams& p, const ChainPlan& plan)
      : grid(static_cast<unsigned>(pieces(p.step.batch, plan.samples * plan.tiles))),
        block(32u * plan.warps),
        shared_bytes(static_cast<size_t>(plan.shared_bytes())) {}
};

int launch_float(const MlpChainParams& p, const ChainPlan& plan, void* stream) {
  const auto [grid, block, bytes] = ChainBlocks(p, plan);
  switch (plan.groups) {
    case 8:
      return launch(float_chain_kernel<8, 8>, grid, block, bytes, stream, p, plan);
    case 4:
      return launch(float_chain_kernel<4, 8>, grid, block, bytes, stream, p, plan);
    case 2:
      return launch(float_chain_kernel<2, 8>, grid, block, bytes, stream, p, plan);
    default:
      break;
  }
  switch (plan.samples) {
    case 8:
      return launch(float_chain_kernel<1, 8>, grid, block, bytes, stream, p, plan);
    case 4:
      return launch(float_chain_kernel<1, 4>, grid, block, bytes, stream, p, plan);
    case 2:
      return launch(float_chain_kernel<1, 2>, grid, block, bytes, stream, p, plan);
    default:
      return launch(float_chain_kernel<1, 1>, grid, block, bytes, stream, p, plan);
  }
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

int64_t mlp_chain_scratch_cuda(const MlpChainParams& p) {
  const ChainPlan plan = chain_plan(p);
  return plan.resident ? 0 : plan.bytes;
}

int mlp_chain_cuda(const MlpChainParams& p, int64_t, int64_t, void* stream) {
  const ChainPlan plan = chain_plan(p);
  if (!plan.resident)
    if (const int error = p.bfloat16 ? launch_pack<Bfloat16>(p, plan, stream)
                                     : launch_pack<float>(p, plan, stream))
      return error;
  return p.bfloat16 ? launch_tensor(p, plan, stream) : launch_float(p, plan, stream);
}

}  // namespace fastebm
