// The Langevin step on a CPU: a scalar path, and an AVX2 path that gives the same bits.
// Mapping: blocks of four elements, numbered through the batch; a thread owns a range of them.
#include <algorithm>

#include "langevin.h"
#include "philox_avx2.h"
#include "simd.h"

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
  Compute<T> scale = 1;
  if (clips_norm(p))
    scale = norm_clip_scale<Compute<T>>(
        row_sum_of_squares(static_cast<const T*>(p.grad) + row * p.dim, p.dim), p.grad_norm_clip);
  return row_coefficients(p, row, scale);
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
FASTEBM_AVX2 inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
FASTEBM_AVX2 inline __m256 load8(const Bfloat16* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
FASTEBM_AVX2 inline __m256 load8(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FASTEBM_AVX2 inline void store8(float* p, __m256 v) { _mm256_storeu_ps(p, v); }
FASTEBM_AVX2 inline void store8(Bfloat16* p, __m256 v) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i w = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(w, w), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
FASTEBM_AVX2 inline void store8(Float16* p, __m256 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

struct Bits8 {  // of eight elements: was not clamped, was not clipped
  unsigned inside, unclipped;
};

// langevin_element() for eight elements. min and max return their second operand for NaN.
template <class T>
FASTEBM_AVX2 inline Bits8 step8(const T* x, const T* grad, T* out, __m256 n,
                                const RowCoefficients<float>& c, bool want_bits) {
  const __m256 clip = _mm256_set1_ps(c.clip), unclip = _mm256_set1_ps(-c.clip);
  const __m256 lo = _mm256_set1_ps(c.lo), hi = _mm256_set1_ps(c.hi);
  const __m256 raw = grad ? load8(grad) : _mm256_setzero_ps();
  const __m256 g = _mm256_mul_ps(_mm256_set1_ps(c.scale), raw);
  const __m256 clipped = _mm256_min_ps(clip, _mm256_max_ps(unclip, g));
  __m256 y = _mm256_fmadd_ps(_mm256_set1_ps(-c.step), clipped, load8(x));
  y = _mm256_fmadd_ps(_mm256_set1_ps(c.sigma), n, y);
  store8(out, _mm256_min_ps(hi, _mm256_max_ps(lo, y)));
  if (!want_bits) return {};
  const auto within = [](__m256 v, __m256 low, __m256 high) FASTEBM_AVX2 {
    return static_cast<unsigned>(_mm256_movemask_ps(
        _mm256_and_ps(_mm256_cmp_ps(v, low, _CMP_GE_OQ), _mm256_cmp_ps(v, high, _CMP_LE_OQ))));
  };
  return {within(y, lo, hi), within(g, unclip, clip)};
}

FASTEBM_AVX2 inline Bits8 step8(const double* x, const double* grad, double* out, __m256 n,
                                const RowCoefficients<double>& c, bool) {
  alignas(32) float noise[8];
  _mm256_store_ps(noise, n);
  const unsigned a = langevin_block(x, grad, out, 4, noise, c);
  const unsigned b = langevin_block(x + 4, grad ? grad + 4 : grad, out + 4, 4, noise + 4, c);
  return {(a & 15u) | (b & 15u) << 4, a >> 4 | (b & 0xf0u)};
}

// Elements [at, at + 32), which are blocks [first_block, first_block + 8) of the batch.
template <class T>
FASTEBM_AVX2 inline void step32(const LangevinParams& p, int64_t at, int64_t first_block,
                                const Normals32& n, const RowCoefficients<Compute<T>>& c) {
  for (int i = 0; i < 4; ++i) {
    const int64_t j = at + 8 * i;
    const T* grad = p.grad ? static_cast<const T*>(p.grad) + j : nullptr;
    const Bits8 bits = step8(static_cast<const T*>(p.x) + j, grad, static_cast<T*>(p.out) + j,
                             n.v[i], c, p.mask != nullptr);
    if (p.mask) {
      uint8_t* mask = p.mask + first_block + 2 * i;
      mask[0] = static_cast<uint8_t>((bits.inside & 15u) | (bits.unclipped & 15u) << 4);
      mask[1] = static_cast<uint8_t>(bits.inside >> 4 | (bits.unclipped & 0xf0u));
    }
  }
}

template <class T>
FASTEBM_AVX2 void step_avx2(const LangevinParams& p, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_per_row(p.dim);
  const NoiseKey key = noise_key(p);
  const bool noisy = needs_noise(p), per_row = rows_differ(p), whole_blocks = p.dim % 4 == 0;
  int64_t row = begin / blocks, block = begin % blocks, row_of_c = row;
  auto c = coefficients_of<T>(p, row);
  const auto advance = [&](int64_t n) {
    begin += n;
    block += n;
    while (block >= blocks) {
      block -= blocks;
      ++row;
    }
  };
  Normals32 n{};
  while (begin < end) {
    if (per_row && row != row_of_c) c = coefficients_of<T>(p, row_of_c = row);
    const int count = static_cast<int>(std::min<int64_t>(8, end - begin));
    const bool one_row = count == 8 && block + 8 <= blocks;
    if (noisy && one_row) {
      n = normals32(key, counters_of_sample(sample_id(p, row), static_cast<uint32_t>(block)));
    } else if (noisy) {
      uint64_t ids[8] = {}, at[8] = {};
      int64_t r = row, b = block;
      for (int i = 0; i < count; ++i) {
        ids[i] = sample_id(p, r);
        at[i] = static_cast<uint64_t>(b);
        if (++b == blocks) b = 0, ++r;
      }
      n = normals32(key, counters_of_blocks(ids, at));
    }
    if (one_row && 4 * (block + 8) <= p.dim) {
      step32<T>(p, row * p.dim + 4 * block, begin, n, c);
      advance(8);
    } else if (count == 8 && whole_blocks && !per_row) {
      step32<T>(p, 4 * begin, begin, n, c);
      advance(8);
    } else {  // ragged ends, and rows with coefficients of their own
      alignas(32) float noise[32];
      for (int i = 0; i < 4; ++i) _mm256_store_ps(noise + 8 * i, n.v[i]);
      for (int i = 0; i < count; ++i) {
        if (per_row && row != row_of_c) c = coefficients_of<T>(p, row_of_c = row);
        step_block<T>(p, row, block, blocks, noise + 4 * i, c);
        advance(1);
      }
    }
  }
}
#endif

template <class T>
void step(const LangevinParams& p, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx2) return step_avx2<T>(p, begin, end);
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
