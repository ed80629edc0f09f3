// Bernoulli(sigmoid(beta * logit)) on a CUDA device.
#include "device.h"
#include "gibbs.h"

namespace fastebm {
namespace {

constexpr int kGibbsThreads = 256;
constexpr int64_t kMaxGibbsBlocks = int64_t{1} << 31;  // of four elements, in one launch

// Four values moved at once (two moves for float64).
template <class T>
struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) Quad {
  T v[4];
};

// A thread takes one block of four elements of one sample; whole quads where kPacked. float32 moves
// 8 B an element, or 5 B to bytes.
template <class T, class Out, bool kPacked>
__global__ void __launch_bounds__(kGibbsThreads)
    bernoulli_sigmoid_kernel(BernoulliParams p, int64_t first_row, uint32_t n_blocks,
                             uint32_t blocks) {
  const uint32_t i = blockIdx.x * kGibbsThreads + threadIdx.x;
  if (i >= n_blocks) return;
  const uint32_t r = i / blocks, block = i - r * blocks;
  const int64_t row = first_row + r, at = row * p.dim + 4 * static_cast<int64_t>(block);
  const T* logits = static_cast<const T*>(p.logits) + at;
  Out* out = static_cast<Out*>(p.out) + at;
  const Words4 w = block_words(noise_key(p), sample_id(p, row), block);
  if (kPacked) {
    const Quad<T> a = *reinterpret_cast<const Quad<T>*>(logits);
    Quad<Out> x;
    bernoulli_block(a.v, x.v, 4, w, p.beta);
    *reinterpret_cast<Quad<Out>*>(out) = x;
  } else {
    const int64_t left = p.dim - 4 * static_cast<int64_t>(block);
    bernoulli_block(logits, out, left < 4 ? static_cast<int>(left) : 4, w, p.beta);
  }
}

template <class T>
bool is_packed(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Quad<T>) == 0;
}

template <class T, class Out, bool kPacked>
int draw(const BernoulliParams& p, void* stream) {
  const int64_t blocks = (p.dim + 3) / 4, most = kMaxGibbsBlocks / blocks - 1;
  for (int64_t first = 0; first < p.batch; first += most) {
    const int64_t rows = p.batch - first < most ? p.batch - first : most;
    const uint32_t n_blocks = static_cast<uint32_t>(rows * blocks);
    const int error =
        launch(bernoulli_sigmoid_kernel<T, Out, kPacked>,
               dim3((n_blocks + kGibbsThreads - 1) / kGibbsThreads), dim3(kGibbsThreads), 0, stream,
               p, first, n_blocks, static_cast<uint32_t>(blocks));
    if (error) return error;
  }
  return 0;
}

}  // namespace

int bernoulli_sigmoid_cuda(const BernoulliParams& p, int64_t, int64_t, void* stream) {
  return visit_types(p, [&](auto t, auto out) {
    using T = decltype(t);
    using Out = decltype(out);
    if (p.dim % 4 == 0 && is_packed<T>(p.logits) && is_packed<Out>(p.out))
      return draw<T, Out, true>(p, stream);
    return draw<T, Out, false>(p, stream);
  });
}

}  // namespace fastebm
