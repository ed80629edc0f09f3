// Schemas, checks and registration of the operators of Gibbs sampling.
#include "gibbs/gibbs.h"
#include "launch/block_run.h"

namespace fastebm {
namespace {

constexpr int64_t kGrainBlocks = 2048;  // 8192 elements

// The arguments the two operators share, checked and turned into what the kernels read.
BernoulliParams bernoulli_params(const char* op, const Tensor& logits, const Tensor& rng, int64_t t,
                                 const OptionalTensor& sample_ids, double beta, int64_t tag) {
  BernoulliParams p{};
  p.dtype = dtype_of(op, "logits", logits);
  FASTEBM_CHECK(logits.dim() > 0, op, ": logits must have a batch dimension, (B, ...)");
  p.batch = logits.size(0);
  p.dim = sample_dim(logits);
  FASTEBM_CHECK(p.dim < int64_t{1} << 32, op, ": a sample may hold at most 2^32 - 1 elements");
  check_sample_ids(op, sample_ids, logits, p.batch);
  check_stream(op, rng, logits, t, 1, sample_ids ? 0 : p.batch);
  FASTEBM_CHECK(beta >= 0 && beta < kInfinity, op, ": beta must be finite and >= 0, got ", beta);
  check_finite(op, "beta", beta);
  check_tag(op, tag);
  p.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  p.t = static_cast<uint32_t>(t);
  p.sample_ids = static_cast<const int64_t*>(data_or_null(sample_ids));
  p.beta = static_cast<float>(beta);
  p.tag = static_cast<uint32_t>(tag);
  return p;
}

template <BernoulliLauncher kLaunch, bool kParallel>
Tensor bernoulli_sigmoid(const Tensor& logits_in, const Tensor& rng, int64_t t,
                         const OptionalTensor& sample_ids, double beta, bool bytes, int64_t tag) {
  const char* op = "bernoulli_sigmoid";
  BernoulliParams p = bernoulli_params(op, logits_in, rng, t, sample_ids, beta, tag);
  const Tensor logits = dense(logits_in);
  Tensor out = bytes ? empty_strided_on(logits, logits.sizes().data(), logits.strides().data(),
                                        logits.dim(), aoti_torch_dtype_uint8())
                     : empty_as(logits);
  p.logits = logits.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.bytes = bytes;
  run_blocks<kLaunch, kParallel, kGrainBlocks>(op, logits, p);
  return out;
}

template <BernoulliLauncher kLaunch, bool kParallel>
void bernoulli_sigmoid_(Tensor logits, const Tensor& rng, int64_t t,
                        const OptionalTensor& sample_ids, double beta, int64_t tag) {
  const char* op = "bernoulli_sigmoid_";
  BernoulliParams p = bernoulli_params(op, logits, rng, t, sample_ids, beta, tag);
  check_written(op, "logits", logits);
  Tensor out = dense(logits);
  p.logits = p.out = out.mutable_data_ptr();
  run_blocks<kLaunch, kParallel, kGrainBlocks>(op, logits, p);
  if (!logits.is_contiguous()) torch::stable::copy_(logits, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "bernoulli_sigmoid(Tensor logits, Tensor rng, int t, Tensor? sample_ids, float beta, "
      "bool bytes, int tag) -> Tensor");
  m.def(
      "bernoulli_sigmoid_(Tensor(a!) logits, Tensor rng, int t, Tensor? sample_ids, float beta, "
      "int tag) -> ()");
}

#define FASTEBM_IMPL(device, parallel)                                           \
  m.impl("bernoulli_sigmoid",                                                    \
         TORCH_BOX((&bernoulli_sigmoid<bernoulli_sigmoid_##device, parallel>))); \
  m.impl("bernoulli_sigmoid_",                                                   \
         TORCH_BOX((&bernoulli_sigmoid_<bernoulli_sigmoid_##device, parallel>)))

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  FASTEBM_IMPL(cuda, false);
#else
  FASTEBM_IMPL(cpu, true);
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) { FASTEBM_IMPL(cuda, false); }
#endif

}  // namespace fastebm
