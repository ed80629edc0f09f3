// How launchers that work on blocks of four elements are run.
#pragma once
#include "launch/ops.h"

namespace fastebm {

// Runs one over all blocks: in torch's thread pool on the CPU, kGrainBlocks at least to a thread
// (1024: 4096 elements, about 7 us of one core for a Langevin step); at once on a device.
template <auto kLaunch, bool kParallel, int64_t kGrainBlocks = 1024, class Params>
void run_blocks(const char* op, const Tensor& x, const Params& p) {
  const int64_t blocks = p.batch * ((p.dim + 3) / 4);
  if (blocks == 0) return;
  if constexpr (kParallel) {
    torch::stable::parallel_for(0, blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
      kLaunch(p, begin, end, nullptr);
    });
  } else {
    std::optional<DeviceGuard> guard;
    if (x.is_cuda()) guard.emplace(x.get_device_index());
    const int error = kLaunch(p, 0, blocks, current_stream(x));
    FASTEBM_CHECK(error == 0, op, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
}

}  // namespace fastebm
