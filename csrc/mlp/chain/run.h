// What operators that run chains of a small perceptron share: tables of coefficients, and the run
// on a CPU.
#pragma once
#include "langevin/check.h"
#include "launch/scratch.h"
#include "mlp/chain/chain.h"
#include "mlp/chain/coefficient.h"
#include "mlp/check.h"

namespace fastebm {

// A table of a coefficient, (K or 1, B or 1) for K steps: its data and strides, or null for none.
inline const void* coefficient_table(const char* op, const char* what, const OptionalTensor& t,
                                     const Tensor& x, int64_t steps, int64_t* stride) {
  if (!t) return nullptr;
  check_float32(op, what, *t, x);
  FASTEBM_CHECK(t->dim() == 2 && (t->size(0) == 1 || t->size(0) == steps) &&
                    (t->size(1) == 1 || t->size(1) == x.size(0)),
                op, ": ", what, " must have shape (K or 1, B or 1) with K = ", steps,
                " and B = ", x.size(0));
  for (int i = 0; i < 2; ++i) stride[i] = t->size(i) == 1 ? 0 : t->stride(i);
  return t->const_data_ptr();
}

// A coefficient for `steps` steps, a number or a table.
inline ChainCoefficient chain_coefficient(const char* op, const char* what, double value,
                                          const char* whats, const OptionalTensor& table,
                                          const Tensor& x, int64_t steps) {
  check_coefficient(op, what, value, x);
  ChainCoefficient c{value, nullptr, {0, 0}};
  c.table = static_cast<const float*>(coefficient_table(op, whats, table, x, steps, c.stride));
  return c;
}

// Fills in the scratch, and runs in torch's thread pool.
inline void run_mlp_chain_cpu(MlpChainParams p) {
  if (p.step.batch == 0 || p.n_steps == 0) return;
  const int64_t bytes =
      mlp_chain_scratch_cpu(&p, static_cast<int>(torch::stable::get_num_threads()));
  Scratch large;
  p.scratch = kept_scratch<MlpChainParams>(bytes, &large).take(bytes);
  std::atomic<int64_t> next{0};
  p.next = &next;
  torch::stable::parallel_for(
      0, p.tasks, 1, [&](int64_t begin, int64_t end) { mlp_chain_cpu(p, begin, end, nullptr); });
}

}  // namespace fastebm
