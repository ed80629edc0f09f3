// Jumps between the modes of a population on a CPU, sample by sample.
#include "metropolis/metropolis.h"

namespace fastebm {

int population_jump_cpu(const JumpParams& p, int64_t begin, int64_t end, void*) {
  for (int64_t row = begin; row < end; ++row) jump_row(p, row);
  return 0;
}

}  // namespace fastebm
