// Not there yet.
#include "mlp/adjusted/adjusted.h"

namespace fastebm {

int mlp_adjusted_cuda(const MlpAdjustedParams&, int64_t, int64_t, void*) {
  return 801;  // cudaErrorNotSupported
}

int64_t mlp_adjusted_scratch_cuda(const MlpAdjustedParams&) { return 0; }
}  // namespace fastebm
