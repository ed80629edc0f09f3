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
  bool uniform;       // whether the next proposal, a jump, is a uniform point
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

// Of FloatTile x is the proposal, and noise its random part. Besides: the current x and its
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

// The random part of proposal k, to where x has the blocks `first`, `first` + `every`, ...: noise,
// or for a jump the difference of two samples or a uniform point. Returns whether it is the latter.
__device__ __forceinline__ bool draw_proposal(const MlpAdjustedParams& p, const SampleShare& s,
                                              int64_t k, bool is_jump, int first, int every,
                                              float* to) {
  const NoiseKey key = key_of_step(s, k, kJumpTag);
  Jump jump{};
  if (is_jump) jump = jump_of(jump_words(key, s.id, 0), p.size, p.uniform_below);
#pragma unroll 1
  for (int b = first; 4 * b < s.dim; b += every) {
    float v[4];
    if (!is_jump) {
      const Normals4 n = share_noise(s, k, b);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = n.v[j];
    } else if (jump.uniform) {
      const Words4 words = jump_words(key, s.id, static_cast<uint32_t>(1 + b));
#pragma unroll
      for (int j = 0; j < 4; ++j)
        v[j] = 4 * b + j < s.dim ? uniform_element(words.v[j], p.lo[4 * b + j], p.hi[4 * b + j])
                                 : 0.0f;
    } else {
      const float* b_i = p.population + jump.i * s.dim + 4 * b;
      const float* b_j = p.population + jump.j * s.dim + 4 * b;
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = 4 * b + j < s.dim ? b_i[j] - b_j[j] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (4 * b + j < s.dim) to[s.at(b, j)] = v[j];
  }
  return jump.uniform;
}

// y, to share.x: x - drift g + sigma n, or a jump's. `random` is what draw_proposal() gave.
__device__ __forceinline__ void propose(const SampleShare& s, const Current& current,
                                        const float* random, bool jumps, bool uniform, float drift,
                                        float sigma) {
#pragma unroll 1
  for (int b = s.first; 4 * b < s.dim; b += s.every)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (4 * b + j < s.dim) {
        const int at = s.at(b, j);
        const float v = random[at], x = current.x[at];
        const float langevin = fma_rn(sigma, v, fma_rn(-drift, current.gradient[at], x));
        s.x[at] = uniform ? v : jumps ? x + v : langevin;
      }
}

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
      if (p.lo && !(y >= p.lo[d] && y <= p.hi[d])) part.outside += 1.0f;
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
