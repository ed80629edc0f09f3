// The whole chain in float32, in two forms. Large batches: a warp has samples of its own and all
// features of them, and meets others only to share the weights. Small ones, and large networks
// (kShared): the warps of a CUDA block share a tile of samples, each has 32 features of a layer, of
// large networks 64, and one more warp draws the noise meanwhile.
#pragma once
#include "mlp/chain/passes_cuda.h"

namespace fastebm {
namespace {

// What the sample's gradient is multiplied by. Squares are summed by block of four elements, and
// the blocks in order, by each thread that has a part of the sample.
template <int kSamples, bool kShared>
__device__ __forceinline__ float clip_scale(const SampleShare& s, double bound, double* squares) {
  for (int b = s.first; 4 * b < s.dim; b += s.every) squares[b * kSamples] = add_squares(s, b, 0);
  tile_barrier<kShared>();
  double sum = 0;
  for (int b = 0; 4 * b < s.dim; ++b) sum += squares[b * kSamples];
  return norm_clip_scale<float>(sum, bound);
}

// All steps of x <- clamp(x - step * clip(grad E(x)) + sigma n), see mlp/chain/chain.h. A tile
// has kSamples samples. kShared: a CUDA block has one tile, warp w the features from 32 kGroups w
// on, and the last warp draws noise; a barrier ends each layer. Else a warp has a tile. A lane has
// kGroups features of each layer, or twice as many of half the tile, see lanes_of_feature(). Step
// (and noise, in a tile of a warp) go by blocks of four elements of one sample, a thread always to
// the same sample. Memory moves 8 B an element of x for the whole chain, and the weights once a
// CUDA block, or, where they are not resident, twice in each step; a step reads each weight twice a
// tile out of shared memory and does two multiplications a weight and sample. Row biases, a base
// and a box of tensors are read in each step, 4 B a feature and sample and 16 B an element, and
// stay in the caches. x, and at the last step the gradient, are written by the threads that step
// them.
template <int kGroups, int kSamples, bool kShared>
__global__ void __launch_bounds__(tile_threads(kShared), blocks_beside(kGroups, kSamples, kShared))
    float_chain_kernel(const __grid_constant__ MlpChainParams p,
                       const __grid_constant__ ChainPlan plan) {
  using Tile = FloatTile<kSamples, kShared>;
  unsigned char* shared = dynamic_shared<unsigned char>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int member = kShared ? threadIdx.x : lane, members = kShared ? blockDim.x : 32;
  const Tile tile(plan, shared + plan.weight_bytes() + (kShared ? 0 : warp * plan.tile_bytes));
  const int64_t first_row =
      (kShared ? int64_t{blockIdx.x} : int64_t{blockIdx.x} * plan.tiles + warp) * kSamples;
  const SampleShare share = sample_share(
      p, first_row + member % kSamples, tile.x + member % kSamples, tile.first + member % kSamples,
      four_rows(kSamples), kSamples, member / kSamples, members / kSamples);
  const bool noisy = share.noisy && !p.noise_first, draws = kShared && warp + 1 == plan.warps;
  read_share(share, p.step.x, plan.columns[0]);
  WeightStream<float> weights(p.mlp, plan, p.scratch, shared);

  const bool same = !p.step.step_sizes && !p.step.noise_stds;  // in all steps
  const RowCoefficients<float> of_all = chain_coefficients(p, 0, share.row, 1.0f);
  for (int64_t k = 0; k < p.n_steps; ++k) {
    RowCoefficients<float> c = same ? of_all : chain_coefficients(p, k, share.row, 1.0f);
    if (p.noise_first) {
      add_noise(share, k, c.sigma);
      c.sigma = 0;
    }
    tile_barrier<kShared>();
    const float* values =
        forward_pass<kGroups, kSamples, kShared>(p, plan, weights, tile, first_row, shared, [&] {
          if (draws && noisy)
            draw_noise(share, k, lane / kSamples, 32 / kSamples, tile.noise + lane % kSamples);
        });
    if (k + 1 == p.n_steps && p.energy) {
      write_energy<kSamples>(p.mlp, kShared ? threadIdx.x / 32 : 0, kShared ? blockDim.x / 32 : 1,
                             p.step.batch - first_row,
                             reinterpret_cast<const float*>(shared + plan.last),
                             plan.rows[plan.layers - 1], values, tile.x, p.energy + first_row);
      tile_barrier<kShared>();
    }
    backward_pass<kGroups, kSamples, kShared>(plan, weights, tile, share, false);
    if (p.mlp.base_precision) add_base(p.mlp, share);
    if (k + 1 == p.n_steps && p.grad) write_share(share, share.grad, p.grad);
    if (p.step.grad_norm_clip - p.step.grad_norm_clip == 0)
      c.scale = clip_scale<kSamples, kShared>(share, p.step.grad_norm_clip,
                                              tile.squares + member % kSamples);
    if constexpr (kShared)
      take_step(p, share, c, [&](int b) {
        Normals4 n{};
        for (int j = 0; j < 4 && noisy; ++j)
          n.v[j] = tile.noise[share.at(b, j) + member % kSamples];
        return n;
      });
    else
      take_step(p, share, c, [&](int b) { return noisy ? share_noise(share, k, b) : Normals4{}; });
  }
  weights.finish();
  write_share(share, share.x, p.step.out);
}

}  // namespace
}  // namespace fastebm
