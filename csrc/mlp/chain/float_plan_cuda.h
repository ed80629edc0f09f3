// How a batch is cut into tiles of float32, and which form of a kernel takes them.
#pragma once
#include <algorithm>

#include "mlp/chain/products_cuda.h"

namespace fastebm {
namespace {

constexpr int kFullWarps = 4;  // to fill a multiprocessor

// A tile of float32 has as many samples as leave four warps for each multiprocessor: more share a
// read of weights. Where there are four tiles, a warp takes each, and so many in a CUDA block share
// its weights. Those are resident where they leave room for the tiles that there is work for, up to
// four; in slabs they leave room for more than that, but each is read again in every step. One warp
// of a scheduler waits half of its time (measured on an H200): with 128 features, of which a lane
// has sums enough also of half the samples, there are twice the tiles until there are eight. Layers
// of more than kLarge features have too many sums for one warp, so all warps share a tile.
//
// tile_bytes(plan, samples, whether all warps share a tile) is what a tile takes of shared memory.
template <class F>
ChainPlan float_plan(const MlpChainParams& p, int most_shared_bytes, F&& tile_bytes) {
  ChainPlan plan = pack_plan(p.mlp, 4, most_shared_bytes);
  const int beside_slabs = most_shared_bytes - plan.weight_bytes();
  plan.samples = kMostSamples;
  plan.tile_bytes = tile_bytes(plan, plan.samples, false);
  if (p.step.batch >= kMostSamples * kFullWarps * kChainBlocks && plan.widest <= kLarge &&
      plan.tile_bytes <= beside_slabs) {
    plan.groups = plan.widest <= 64 ? 2 : plan.widest <= 128 ? 4 : 8;
    if (plan.groups == 4 && p.step.batch < 2 * kMostSamples * kFullWarps * kChainBlocks) {
      plan.samples = kMostSamples / 2;
      plan.tile_bytes = tile_bytes(plan, plan.samples, false);
    }
    plan.tiles = kFullWarps * kMostSamples / plan.samples;
    plan.resident = fits_resident(plan);
    plan.tiles = std::min(pieces(p.step.batch, plan.samples * kChainBlocks), kChainThreads / 32);
    while (plan.tiles > 1 && !plan.fits()) --plan.tiles;
    if (plan.tiles > kFullWarps) plan.tiles -= plan.tiles % kFullWarps;
    plan.warps = plan.tiles;
    return with_slabs(plan, 4);
  }
  plan.shared_tile = true;
  plan.groups = plan.widest <= kLarge ? 1 : 2;
  plan.tiles = 1;
  plan.warps = pieces(plan.widest, 32 * plan.groups) + 1;  // and one that draws noise
  const auto bytes = [&] { return plan.tile_bytes = tile_bytes(plan, plan.samples, true); };
  const int tiles = kChainBlocks * std::max(kFullWarps / (plan.warps - 1), 1);
  while (plan.samples > 1 && (p.step.batch <= tiles * plan.samples / 2 || bytes() > beside_slabs))
    plan.samples /= 2;
  bytes();
  plan.resident = fits_resident(plan);
  return with_slabs(plan, 4);
}

// What a kernel has for constants of a plan.
template <int kGroups_, int kSamples_, bool kShared_>
struct FloatForm {
  static constexpr int kGroups = kGroups_, kSamples = kSamples_;
  static constexpr bool kShared = kShared_;
};

template <int kGroups, class F>
int visit_shared_form(const ChainPlan& plan, F&& f) {
  switch (plan.samples) {
    case 8:
      return f(FloatForm<kGroups, 8, true>{});
    case 4:
      return f(FloatForm<kGroups, 4, true>{});
    case 2:
      return f(FloatForm<kGroups, 2, true>{});
    default:
      return f(FloatForm<kGroups, 1, true>{});
  }
}

// Returns f(form) of the plan's one among those that there are.
template <class F>
int visit_form(const ChainPlan& plan, F&& f) {
  if (plan.shared_tile)
    return plan.groups == 2 ? visit_shared_form<2>(plan, f) : visit_shared_form<1>(plan, f);
  switch (plan.groups) {
    case 8:
      return f(FloatForm<8, 8, false>{});
    case 4:
      return plan.samples == 8 ? f(FloatForm<4, 8, false>{}) : f(FloatForm<4, 4, false>{});
    default:
      return f(FloatForm<2, 8, false>{});
  }
}

}  // namespace
}  // namespace fastebm
