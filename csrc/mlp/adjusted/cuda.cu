// Metropolis-adjusted chains of a small MLP on a CUDA device, in float32.
#include "mlp/adjusted/tile_cuda.h"
#include "mlp/chain/float_plan_cuda.h"

namespace fastebm {
namespace {

// All transitions x <- y where log r > log u, else x, see mlp/adjusted/adjusted.h. Tiles, lanes and
// the passes through the network are those of float_chain_kernel. A thread proposes, sums and keeps
// the blocks of four elements of its share of one sample; all that have a share of it add up the
// sums of the blocks in order and so come to the same verdict, with energy, drift and |g|^2 of the
// current x in registers, x and gradient in shared memory. A jump is one thread's, the first of
// them. In a shared tile the last warp draws the next proposal's noise and this one's verdict while
// the others multiply the last layer forward, and sums the energy while they go back. Memory moves
// 16 B an element and 24 B a sample for all transitions, the centres twice for a jump, which stay
// in the caches, and the weights once a CUDA block.
template <int kGroups, int kSamples, bool kShared>
__global__ void __launch_bounds__(tile_threads(kShared), 1)
    adjusted_chain_kernel(const __grid_constant__ MlpAdjustedParams p,
                          const __grid_constant__ ChainPlan plan) {
  using Tile = AdjustedTile<kSamples, kShared>;
  const MlpChainParams& chain = p.chain;
  unsigned char* shared = dynamic_shared<unsigned char>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int member = kShared ? threadIdx.x : lane, members = kShared ? blockDim.x : 32;
  const int sample = member % kSamples;
  const Tile tile(plan, shared + plan.weight_bytes() + (kShared ? 0 : warp * plan.tile_bytes));
  const int64_t first_row =
      (kShared ? int64_t{blockIdx.x} : int64_t{blockIdx.x} * plan.tiles + warp) * kSamples;
  const SampleShare share =
      sample_share(chain, first_row + sample, tile.x + sample, tile.first + sample,
                   four_rows(kSamples), kSamples, member / kSamples, members / kSamples);
  const Current current = {tile.current + sample, tile.gradient + sample};
  ProposalPart* parts = tile.parts + sample;
  SampleFacts& facts = tile.facts[sample];
  float& energy_y = tile.energy[sample];
  const bool draws = kShared && warp + 1 == plan.warps, owns = 4 * share.first < share.dim;
  const bool writes = share.valid && share.first == 0;
  read_share(share, chain.step.x, plan.columns[0]);
  WeightStream<float> weights(chain.mlp, plan, chain.scratch, shared);

  int64_t to_jump = p.every > 0 ? p.every - p.first % p.every : 0;  // never 1 without jumps
  const auto draw_next = [&](int64_t k) {
    if (!draws) return;
    if (to_jump != 1) draw_noise(share, k + 1, lane / kSamples, 32 / kSamples, tile.noise + sample);
    const Normals4 n = acceptance_normals(share, k);
    if (lane >= kSamples) return;
    for (int i = 0; i < 2; ++i) facts.normals[i] = n.v[i];
  };
  const bool same = !chain.step.step_sizes && !chain.step.noise_stds;  // in all transitions
  RowCoefficients<float> c{};
  if (same) c = adjusted_coefficients(p, 0, share.row);
  const float root_dim = std::sqrt(static_cast<float>(share.dim));
  float energy = 0, drift = 0, square = 0;  // at x
  for (int i = 0; i < 2 && writes; ++i)
    facts.accepted[i] = p.acceptance[i * chain.step.batch + share.row];

  for (int64_t k = -1; k < chain.n_steps; ++k) {  // at -1 the start is accepted
    const bool starts = k < 0, jumps = !starts && --to_jump == 0;
    if (jumps) to_jump = p.every;
    if (!starts) {
      if (!same) {
        c = adjusted_coefficients(p, k, share.row);
        drift = drift_step(c.step, c.sigma, root_dim, square);
      }
      if (jumps) {
        tile_barrier<kShared>();  // all of x is there
        if (share.first == 0)
          facts.log_factor = jump_sample(p.jumps, key_of_step(share, k, kJumpTag), share.id,
                                         current.x, share.x, InBlocks{share.block, share.stride});
      } else {
        propose(share, current, drift, c.sigma, [&](int b) {
          if constexpr (kShared) {
            Normals4 n;
#pragma unroll
            for (int j = 0; j < 4; ++j) n.v[j] = tile.noise[share.at(b, j) + sample];
            return n;
          } else {
            return share_noise(share, k, b);
          }
        });
      }
    }
    if (starts && p.known) {
      read_share(at_gradient(share), chain.grad, plan.columns[0]);
      if (share.first == 0) energy_y = chain.energy[share.row];
      draw_next(k);
      tile_barrier<kShared>();
    } else {
      tile_barrier<kShared>();
      const float* values = forward_pass<kGroups, kSamples, kShared>(
          chain, plan, weights, tile, first_row, shared, [&] { draw_next(k); });
      if (!kShared || draws)
        write_energy<kSamples>(chain.mlp, 0, 1, kSamples,
                               reinterpret_cast<const float*>(shared + plan.last),
                               plan.rows[plan.layers - 1], values, tile.x, tile.energy);
      backward_pass<kGroups, kSamples, kShared>(plan, weights, tile, share, kShared);
      if (chain.mlp.base_precision) add_base(chain.mlp, share);
    }
#pragma unroll 1
    for (int b = share.first; 4 * b < share.dim; b += share.every)
      parts[b * kSamples] = proposal_part(p, share, current, b);
    if (share.dim > 4) tile_barrier<kShared>();  // else a sample is one thread's
    if (!owns) continue;
    ProposalSums<float> sums = {0, 0, square, 0};
    float outside = 0;
#pragma unroll 2
    for (int b = 0; 4 * b < share.dim; ++b) {
      const ProposalPart part = parts[b * kSamples];
      sums.along_x += part.along_x;
      sums.along_y += part.along_y;
      sums.square_y += part.square_y;
      outside += part.outside;
    }
    const float drift_y = drift_step(c.step, c.sigma, root_dim, sums.square_y);
    bool accepted = true;
    if (!starts) {
      float log_r = jumps ? jump_log_ratio(energy, energy_y, c.step, c.sigma, facts.log_factor)
                          : log_ratio(energy, energy_y, c.step, c.sigma, drift, drift_y, sums);
      if (outside != 0) log_r = -INFINITY;
      Normals4 n;
      if constexpr (kShared)
        n = {{facts.normals[0], facts.normals[1]}};
      else
        n = acceptance_normals(share, k);
      accepted = is_accepted(log_r, n.v[0], n.v[1]);
      const float taken = jumps ? (accepted ? 1.0f : 0.0f) : acceptance(log_r);
      if (writes) facts.accepted[jumps] += taken;
    }
    if (!accepted) continue;
    energy = energy_y;
    drift = drift_y;
    square = sums.square_y;
    keep_proposal(share, current);
  }
  weights.finish();
  write_share(share, current.x, chain.step.out);
  write_share(share, current.gradient, chain.grad);
  if (!writes) return;
  chain.energy[share.row] = energy;
  for (int i = 0; i < 2; ++i) p.acceptance[i * chain.step.batch + share.row] = facts.accepted[i];
}

ChainPlan adjusted_plan(const MlpAdjustedParams& p) {
  return float_plan(p.chain, max_shared_bytes(), adjusted_tile_bytes);
}

}  // namespace

int64_t mlp_adjusted_scratch_cuda(const MlpAdjustedParams& p) {
  return adjusted_plan(p).scratch_bytes();
}

int mlp_adjusted_cuda(const MlpAdjustedParams& p, int64_t, int64_t, void* stream) {
  const ChainPlan plan = adjusted_plan(p);
  if (const int error = launch_pack<float>(p.chain, plan, stream)) return error;
  return visit_form(plan, [&](auto form) {
    const auto [grid, block, bytes] = ChainBlocks(p.chain, plan);
    return launch(adjusted_chain_kernel<form.kGroups, form.kSamples, form.kShared>, grid, block,
                  bytes, stream, p, plan);
  });
}

}  // namespace fastebm
