// What adjusted chains hold of a tile in shared memory, and what a thread does of a transition of
// its sample.
#pragma once
#include "mlp/adjusted/adjusted.h"
#include "mlp/chain/passes_cuda.h"

namespace fastebm {
namespace {

// Of four elements of a sample: what they add to ProposalSums, and how many are outside of the box.
struct alignas(16) ProposalPart {
  float along_x, along_y, square_y, outside;
};

// Of a sample, what one thread finds out for those that share it.
struct alignas(16) SampleFacts {
  float normals[2];   // that accept it
  float log_factor;   // of the proposal, where it is a jump
  float accepted[2];  // sums, of Langevin proposals and of jumps
};

// What these take of a tile's shared memory, with the current x and its gradient: its end.
FASTEBM_HD int state_bytes(const ChainPlan& plan, int samples) {
  const int fours = plan.columns[0] / 4, parts = fours * static_cast<int>(sizeof(ProposalPart));
  return 2 * fours * four_rows(samples) * 4 +
         samples * (parts + static_cast<int>(sizeof(SampleFacts))) + round_up(samples * 4, 16);
}

inline int adjusted_tile_bytes(const ChainPlan& plan, int samples, bool shared) {
  return float_tile_bytes(plan, samples, shared) + state_bytes(plan, samples);
}

// Of FloatTile x is the proposal. Besides: the current x and its
// gradient, of which a thread reads and writes its own share alone.
template <int kSamples, bool kShared>
struct AdjustedTile : FloatTile<kSamples, kShared> {
  float *current, *gradient;
  ProposalPart* parts;  // by four elements, a sample beside the other
  SampleFacts* facts;
  float* energy;  // of the samples at their proposals

  __device__ AdjustedTile(const ChainPlan& plan, unsigned char* at)
      : FloatTile<kSamples, kShared>(plan, at),
        current(reinterpret_cast<float*>(at + plan.tile_bytes - state_bytes(plan, kSamples))),
        gradient(current + this->floats(plan.columns[0])),
        parts(reinterpret_cast<ProposalPart*>(gradient + this->floats(plan.columns[0]))),
        facts(reinterpret_cast<SampleFacts*>(parts + plan.columns[0] / 4 * kSamples)),
        energy(reinterpret_cast<float*>(facts + kSamples)) {}
};

// Of one sample, elements as those of SampleShare.
struct Current {
  float *x, *gradient;
};

__device__ __forceinline__ NoiseKey key_of_step(const SampleShare& s, int64_t k, uint32_t tag) {
  return {s.key.key, s.key.step + static_cast<uint32_t>(k), tag};
}

// y = x - drift g + sigma n, to share.x, with noise_of(b) the noise of block b.
template <class F>
__device__ __forceinline__ void propose(const SampleShare& s, const Current& current, float drift,
                                        float sigma, F&& noise_of) {
#pragma unroll 1
  for (int b = s.first; 4 * b < s.dim; b += s.every) {
    const Normals4 n = noise_of(b);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (4 * b + j < s.dim) {
        const int at = s.at(b, j);
        s.x[at] = fma_rn(sigma, n.v[j], fma_rn(-drift, current.gradient[at], current.x[at]));
      }
  }
}

// Where element d of a sample lies.
struct InBlocks {
  int block, stride;
  FASTEBM_HD int operator()(int64_t d) const {
    const auto element = static_cast<unsigned>(d);
    return static_cast<int>(element / 4) * block + static_cast<int>(element % 4) * stride;
  }
};

// Of block b, with the proposal evaluated.
__device__ __forceinline__ ProposalPart proposal_part(const MlpAdjustedParams& p,
                                                      const SampleShare& s, const Current& current,
                                                      int b) {
  ProposalPart part{};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (const int d = 4 * b + j; d < s.dim) {
      const int at = s.at(b, j);
      const float y = s.x[at], u = y - current.x[at], g = s.grad[at];
      part.along_x = fma_rn(u, current.gradient[at], part.along_x);
      part.along_y = fma_rn(u, g, part.along_y);
      part.square_y = fma_rn(g, g, part.square_y);
      if (p.jumps.lo && !(y >= p.jumps.lo[d] && y <= p.jumps.hi[d])) part.outside += 1.0f;
    }
  return part;
}

__device__ __forceinline__ void keep_proposal(const SampleShare& s, const Current& current) {
#pragma unroll 1
  for (int b = s.first; 4 * b < s.dim; b += s.every)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (4 * b + j < s.dim) {
        const int at = s.at(b, j);
        current.x[at] = s.x[at];
        current.gradient[at] = s.grad[at];
      }
}

// A share whose x is the gradient, to read it in.
__device__ __forceinline__ SampleShare at_gradient(SampleShare s) {
  s.x = s.grad;
  return s;
}

// The normals that accept proposal k.
__device__ __forceinline__ Normals4 acceptance_normals(const SampleShare& s, int64_t k) {
  return normals4(key_of_step(s, k, kAcceptTag), s.id, 0);
}

}  // namespace
}  // namespace fastebm
