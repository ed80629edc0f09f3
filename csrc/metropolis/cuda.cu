// Jumps between the modes of a population on a CUDA device.
#include <algorithm>

#include "launch/device.h"
#include "metropolis/metropolis.h"

namespace fastebm {
namespace {

constexpr int kThreads = 128;

// A thread takes a sample: it looks at 16 centres twice, which other samples near it look at too.
__global__ void __launch_bounds__(kThreads) population_jump_kernel(JumpParams p) {
  for (int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x; row < p.batch;
       row += int64_t{gridDim.x} * kThreads)
    jump_row(p, row);
}

}  // namespace

int population_jump_cuda(const JumpParams& p, int64_t, int64_t, void* stream) {
  const int64_t blocks = std::min((p.batch + kThreads - 1) / kThreads, int64_t{1} << 20);
  return launch(population_jump_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                stream, p);
}

}  // namespace fastebm
