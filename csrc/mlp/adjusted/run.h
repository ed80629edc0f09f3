// The run of adjusted chains on a CPU, which operators share.
#pragma once
#include <vector>

#include "mlp/adjusted/adjusted.h"
#include "mlp/chain/run.h"

namespace fastebm {

// Fills in the scratch, and runs in torch's thread pool.
inline void run_mlp_adjusted_cpu(MlpAdjustedParams p) {
  const int64_t bytes =
      mlp_adjusted_scratch_cpu(&p, static_cast<int>(torch::stable::get_num_threads()));
  std::vector<float> columns;
  if (p.every > 0 && p.jumps.size > 0) {
    columns.resize(static_cast<size_t>(p.jumps.dim * column_stride(p.jumps)));
    jump_columns(columns.data(), &p.jumps);
  }
  Scratch large;
  p.chain.scratch = kept_scratch<MlpAdjustedParams>(bytes, &large).take(bytes);
  std::atomic<int64_t> next{0};
  p.chain.next = &next;
  torch::stable::parallel_for(0, p.chain.tasks, 1, [&](int64_t begin, int64_t end) {
    mlp_adjusted_cpu(p, begin, end, nullptr);
  });
}

}  // namespace fastebm
