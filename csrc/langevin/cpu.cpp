// The Langevin step on a CPU: a scalar path, and AVX2 and AVX-512 paths that give the same bits.
// Mapping: blocks of four elements, numbered through the batch; a thread owns a range of them.
#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "langevin/langevin.h"
#include "simd/simd.h"

namespace fastebm {
namespace {

// Sum of squares of one sample's gradient, in the order of the CUDA kernel: 256 threads take blocks
// in turn, lanes are folded in halves inside each warp, then the eight warps are.
template <class T>
FASTEBM_HD double row_sum_of_squares(const T* grad, int64_t dim) {
  double part[256] = {};
  for (int64_t b = 0; 4 * b < dim; ++b) {
    double sum = part[b % 256];
    for (int64_t i = 4 * b; i < std::min(4 * b + 4, dim); ++i) {
      const double g = static_cast<double>(widen(grad[i]));
      sum = fma_rn(g, g, sum);
    }
    part[b % 256] = sum;
  }
  for (int w = 0; w < 256; w += 32)
    for (int half = 16; half; half /= 2)
      for (int i = 0; i < half; ++i) part[w + i] += part[w + i + half];
  for (int half = 4; half; half /= 2)
    for (int i = 0; i < half; ++i) part[32 * i] += part[32 * (i + half)];
  return part[0];
}

bool clips_norm(const LangevinParams& p) { return p.grad && std::isfinite(p.grad_norm_clip); }

bool needs_noise(const LangevinParams& p) { return p.noise_stds || p.noise_std != 0; }

bool rows_differ(const LangevinParams& p) { return p.step_sizes || p.noise_stds || clips_norm(p); }

template <class T>
FASTEBM_HD RowCoefficients<Compute<T>> coefficients_of(const LangevinParams& p, int64_t row) {
  auto c = common_coefficients<Compute<T>>(p);
  if (clips_norm(p))
    c.scale = norm_clip_scale<Compute<T>>(
        row_sum_of_squares(static_cast<const T*>(p.grad) + row * p.dim, p.dim), p.grad_norm_clip);
  return row_coefficients(p, row, c);
}

template <class T>
FASTEBM_HD void step_block(const LangevinParams& p, int64_t row, int64_t block, int64_t blocks,
                           const float* noise, const RowCoefficients<Compute<T>>& c) {
  const int64_t at = row * p.dim + 4 * block;
  const int count = static_cast<int>(std::min<int64_t>(4, p.dim - 4 * block));
  const T* grad = p.grad ? static_cast<const T*>(p.grad) + at : nullptr;
  const uint8_t bits = langevin_block(static_cast<const T*>(p.x) + at, grad,
                                      static_cast<T*>(p.out) + at, count, noise, c);
  if (p.mask) p.mask[row * blocks + block] = bits;
}

template <class T>
void step_scalar(const LangevinParams& p, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_per_row(p.dim);
  const NoiseKey key = noise_key(p);
  const bool noisy = needs_noise(p);
  while (begin < end) {
    const int64_t row = begin / blocks, stop = std::min(end, (row + 1) * blocks);
    const auto c = coefficients_of<T>(p, row);
    for (; begin < stop; ++begin) {
      const int64_t block = begin - row * blocks;
      Normals4 n{};
      if (noisy) n = normals4(key, sample_id(p, row), static_cast<uint32_t>(block));
      step_block<T>(p, row, block, blocks, n.v, c);
    }
  }
}

#if defined(__x86_64__)
// clang-format off
namespace avx2 {
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "random/philox_simd.h"
#include "random/batch_simd.h"
#include "langevin/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2

namespace avx512 {
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "random/philox_simd.h"
#include "random/batch_simd.h"
#include "langevin/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
// clang-format on
#endif

template <class T>
void step(const LangevinParams& p, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx512) return avx512::step<T>(p, begin, end);
  if (simd_level() == Simd::kAvx2) return avx2::step<T>(p, begin, end);
#endif
  step_scalar<T>(p, begin, end);
}

template <class T>
void backward(const LangevinBackwardParams& p, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_per_row(p.dim);
  for (; begin < end; ++begin)
    langevin_backward_block<T>(p, begin / blocks, begin % blocks, blocks);
}

}  // namespace

int langevin_step_cpu(const LangevinParams& p, int64_t begin, int64_t end, void*) {
  return visit_dtype(p.dtype, [&](auto t) {
    if (begin < end) step<decltype(t)>(p, begin, end);
    return 0;
  });
}

int langevin_step_backward_cpu(const LangevinBackwardParams& p, int64_t begin, int64_t end, void*) {
  return visit_dtype(p.dtype, [&](auto t) {
    backward<decltype(t)>(p, begin, end);
    return 0;
  });
}

}  // namespace fastebm
