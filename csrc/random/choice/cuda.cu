// Distinct slots on a CUDA device.
#include "launch/device.h"
#include "random/choice/strata.h"

namespace fastebm {
namespace {

constexpr int kChoiceThreads = 128;

// A thread takes one value; the block's key is made once, four words a thread. 8 B written a value,
// 16 B moved for one of `own`.
__global__ void __launch_bounds__(kChoiceThreads) choose_kernel(ChoiceParams p) {
  FASTEBM_SHARED(ChoiceKey, key);
  const int words = static_cast<int>(threadIdx.x);
  if (4 * words < choice_rounds(p)) choice_words(p, words, &key);
  __syncthreads();
  const int64_t i = blockIdx.x * static_cast<int64_t>(kChoiceThreads) + threadIdx.x;
  if (i < p.n)
    choose<1>(p, key, i);
  else if (i < p.n + p.n_slots)
    find<1>(p, key, i - p.n);
}

// A thread takes one row: 8 B written.
__global__ void __launch_bounds__(kChoiceThreads) choose_strata_kernel(StrataParams p) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kChoiceThreads) + threadIdx.x;
  if (i < p.n) choose_in_stratum(p, i);
}

unsigned choice_blocks(int64_t values) {
  return static_cast<unsigned>((values + kChoiceThreads - 1) / kChoiceThreads);
}

}  // namespace

int choose_slots_cuda(const ChoiceParams& p, void* stream) {
  return launch(choose_kernel, dim3(choice_blocks(p.n + p.n_slots)), dim3(kChoiceThreads), 0,
                stream, p);
}

int choose_strata_cuda(const StrataParams& p, void* stream) {
  return launch(choose_strata_kernel, dim3(choice_blocks(p.n)), dim3(kChoiceThreads), 0, stream, p);
}

}  // namespace fastebm
