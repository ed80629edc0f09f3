// The whole chain of a small MLP on a CUDA device: in float32, or in bfloat16 on tensor cores.
#include "mlp/chain/chain.h"

namespace fastebm {

int64_t mlp_chain_scratch_cuda(const MlpChainParams& p) {
  return p.bfloat16 ? tensor_chain_scratch_cuda(p) : float_chain_scratch_cuda(p);
}

int mlp_chain_cuda(const MlpChainParams& p, int64_t, int64_t, void* stream) {
  return p.bfloat16 ? tensor_chain_cuda(p, stream) : float_chain_cuda(p, stream);
}

}  // namespace fastebm
