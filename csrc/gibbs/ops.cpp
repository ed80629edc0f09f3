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
  STD_TORCH_CHECK(logits.dim() > 0, op, ": logits must have a batch dimension, (B, ...)");
  p.batch = logits.size(0);
  p.dim = sample_dim(logits);
  STD_TORCH_CHECK(p.dim < int64_t{1} << 32, op, ": a sample may hold at most 2^32 - 1 elements");
  check_same_device(op, "rng", rng, logits);
  STD_TORCH_CHECK(rng.scalar_type() == ScalarType::Long && rng.numel() == 4 && rng.is_contiguous(),
                  op, ": rng must be an int64 tensor of 4 values (ChainRNG.state)");
  STD_TORCH_CHECK(t >= 0, op, ": t must be >= 0, got ", t);
  if (sample_ids) {
    check_same_device(op, "sample_ids", *sample_ids, logits);
    STD_TORCH_CHECK(sample_ids->scalar_type() == ScalarType::Long && sample_ids->dim() == 1 &&
                        sample_ids->size(0) == p.batch && sample_ids->is_contiguous(),
                    op, ": sample_ids must be a contiguous int64 tensor (", p.batch, ",)");
  }
  STD_TORCH_CHECK(beta >= 0 && beta < kInfinity, op, ": beta must be finite and >= 0, got ", beta);
  STD_TORCH_CHECK(tag > 0 && tag < 256, op, ": tag must be in 1..255, got ", tag);
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
  for (int64_t i = 0; i < logits.dim(); ++i)
    STD_TORCH_CHECK(logits.stride(i) != 0 || logits.size(i) < 2, op,
                    ": elements of logits must not share memory, as they are written to; it is an "
                    "expanded tensor, clone it");
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
