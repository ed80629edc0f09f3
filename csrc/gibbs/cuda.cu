// Bernoulli(sigmoid(beta * logit)) on a CUDA device.
#include <type_traits>

#include "gibbs/gibbs.h"
#include "launch/element_blocks_cuda.h"

namespace fastebm {
namespace {

// The draws of one block, as they are stored.
template <class T, class Out>
__device__ __forceinline__ Quad<Out> draw_quad(const Quad<T>& logits, const Words4& w, float beta) {
  Compute<T> logit[4];
  widen_quad(logits, logit);
  if constexpr (std::is_same_v<Out, uint8_t>) {
    uint32_t bytes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float size;
      const uint32_t one = bernoulli_draw(static_cast<float>(logit[i]), w.v[i], beta, &size);
      bytes |= (size != size ? 255u : one & 1u) << 8 * i;
    }
    return {{bytes}};
  } else {
    Compute<Out> x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      x[i] = bernoulli_element(static_cast<float>(logit[i]), w.v[i], beta);
    return narrow_quad<Out>(x);
  }
}

// A thread takes kThreadBlocks blocks of four elements, kBlockThreads apart, of which it loads all
// before it makes their words. float32 moves 8 B an element, or 5 B to bytes.
template <class T, class Out, bool kWhole>
__global__ void __launch_bounds__(kBlockThreads)
    bernoulli_sigmoid_kernel(BernoulliParams p, int64_t first_row, uint32_t n_blocks,
                             Divider blocks) {
  constexpr int kOwn = kThreadBlocks;
  const uint32_t first = blockIdx.x * (kOwn * kBlockThreads) + threadIdx.x;
  if (first >= n_blocks) return;
  const NoiseKey key = noise_key(p);
  int64_t at[kOwn];
  int count[kOwn];
  Quad<T> logits[kOwn];
  Words4 words[kOwn];
#pragma unroll
  for (int b = 0; b < kOwn; ++b) {
    const uint32_t i = first + b * kBlockThreads;
    const bool there = i < n_blocks;
    const uint32_t row = there ? blocks(i) : 0, block = i - row * blocks.divisor;
    at[b] = kWhole ? 4 * static_cast<int64_t>(i) : row * p.dim + 4 * static_cast<int64_t>(block);
    count[b] = !there ? 0 : kWhole ? 4 : block_size(p.dim, block);
    logits[b] = load_quad<kWhole>(static_cast<const T*>(p.logits) + at[b], count[b]);
    words[b] = noise_counter(key, sample_id(p, first_row + row), block);
  }
  philox4x32(words, static_cast<uint32_t>(key.key), static_cast<uint32_t>(key.key >> 32));
#pragma unroll
  for (int b = 0; b < kOwn; ++b)
    store_quad<kWhole>(draw_quad<T, Out>(logits[b], words[b], p.beta),
                       static_cast<Out*>(p.out) + at[b], count[b]);
}

template <class T, class Out, bool kWhole>
int draw(const BernoulliParams& all, void* stream) {
  return for_each_launch(all.batch, all.dim, [&](int64_t first, uint32_t rows, uint32_t blocks) {
    BernoulliParams p = all;
    p.logits = static_cast<const T*>(all.logits) + first * all.dim;
    p.out = static_cast<Out*>(all.out) + first * all.dim;
    return launch(bernoulli_sigmoid_kernel<T, Out, kWhole>,
                  block_grid(rows * blocks, kThreadBlocks), dim3(kBlockThreads), 0, stream, p,
                  first, rows * blocks, Divider(blocks));
  });
}

}  // namespace

int bernoulli_sigmoid_cuda(const BernoulliParams& p, int64_t, int64_t, void* stream) {
  return visit_types(p, [&](auto t, auto out) {
    using T = decltype(t);
    using Out = decltype(out);
    return are_quads<T>(p.dim, p.logits) && are_quads<Out>(p.dim, p.out)
               ? draw<T, Out, true>(p, stream)
               : draw<T, Out, false>(p, stream);
  });
}

}  // namespace fastebm
