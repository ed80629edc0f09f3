// Bernoulli(sigmoid(beta * logit)) on a CPU: a scalar path, and AVX2 and AVX-512 paths that give
// the same bits. Mapping: blocks of four elements, numbered through the batch; a thread owns a
// range of them.
#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "gibbs/gibbs.h"
#include "simd/simd.h"

namespace fastebm {
namespace {

template <class T, class Out>
void draw_scalar(const BernoulliParams& p, int64_t begin, int64_t end) {
  const int64_t blocks = (p.dim + 3) / 4;
  const NoiseKey key = noise_key(p);
  for (; begin < end; ++begin) {
    const int64_t row = begin / blocks, block = begin - row * blocks, at = row * p.dim + 4 * block;
    bernoulli_block(static_cast<const T*>(p.logits) + at, static_cast<Out*>(p.out) + at,
                    static_cast<int>(std::min<int64_t>(4, p.dim - 4 * block)),
                    block_words(key, sample_id(p, row), block), p.beta);
  }
}

#if defined(__x86_64__)
// clang-format off
namespace avx2 {
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "random/philox_simd.h"
#include "random/batch_simd.h"
#include "gibbs/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2

namespace avx512 {
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "random/philox_simd.h"
#include "random/batch_simd.h"
#include "gibbs/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
// clang-format on
#endif

}  // namespace

int bernoulli_sigmoid_cpu(const BernoulliParams& p, int64_t begin, int64_t end, void*) {
  return visit_types(p, [&](auto t, auto out) {
    using T = decltype(t);
    using Out = decltype(out);
    if (begin == end) return 0;
#if defined(__x86_64__)
    if (simd_level() == Simd::kAvx512) return avx512::draw<T, Out>(p, begin, end);
    if (simd_level() == Simd::kAvx2) return avx2::draw<T, Out>(p, begin, end);
#endif
    draw_scalar<T, Out>(p, begin, end);
    return 0;
  });
}

}  // namespace fastebm
