// Chains in float32 on a CUDA device: how a batch is cut, and which kernel takes it.
#include "mlp/chain/float_cuda.h"

namespace fastebm {
namespace {

constexpr int kFullWarps = 4;  // to fill a multiprocessor

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

}  // namespace

int64_t float_chain_scratch_cuda(const MlpChainParams& p) { return float_plan(p).scratch_bytes(); }

int float_chain_cuda(const MlpChainParams& p, void* stream) {
  const ChainPlan plan = float_plan(p);
  if (const int error = launch_pack<float>(p, plan, stream)) return error;
  return launch_float(p, plan, stream);
}

}  // namespace fastebm
