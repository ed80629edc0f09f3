// Jumps between samples of a population on a CPU, sample by sample: a block of random words for
// each, and one for four elements of a uniform point.
#include <algorithm>

#include "metropolis/metropolis.h"

namespace fastebm {
namespace {

void jump_to(const float* x, const float* b_i, const float* b_j, int64_t dim, float* out) {
  for (int64_t d = 0; d < dim; ++d) out[d] = jump_element(x[d], b_i[d], b_j[d]);
}

void jump_anywhere(const JumpParams& p, uint64_t id, float* out) {
  for (int64_t d = 0; d < p.dim; d += 4) {
    const Words4 w = jump_words(noise_key(p), id, static_cast<uint32_t>(1 + d / 4));
    for (int64_t i = d; i < std::min(d + 4, p.dim); ++i)
      out[i] = uniform_element(w.v[i - d], p.lo[i], p.hi[i]);
  }
}

}  // namespace

int population_jump_cpu(const JumpParams& p, int64_t begin, int64_t end, void*) {
  for (int64_t row = begin; row < end; ++row) {
    const uint64_t id = sample_id(p, row);
    const Jump jump = jump_of(jump_words(noise_key(p), id, 0), p.size, p.uniform_below);
    float* out = p.out + row * p.dim;
    if (jump.uniform)
      jump_anywhere(p, id, out);
    else
      jump_to(p.x + row * p.dim, p.population + jump.i * p.dim, p.population + jump.j * p.dim,
              p.dim, out);
  }
  return 0;
}

}  // namespace fastebm
