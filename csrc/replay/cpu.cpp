// Replayed samples on a CPU: one after another, each in a workspace that stays in the cache. The
// stages are compiled for several instruction sets.
#include <algorithm>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "replay/draw.h"
#include "simd/simd.h"

namespace fastebm {
namespace {

constexpr int kSumParts = 256;  // partial sums of an image's mean: pixel i goes to i % 256
constexpr int64_t kSlack = 64;  // floats after an array that vectors may touch

// One image: as read, dense; and the planes of the result, `stride` floats apart.
struct Workspace {
  float* loaded;
  float* image;
  float *line, *next_line;        // of one row, with a border
  int32_t *column, *next_column;  // the two taps of each column, after the
  int32_t* first_column;          // first of its vector
  float* weight;                  // of the second
  int64_t stride;
};

// Lays the workspace out from `at` on; returns its floats.
int64_t lay_out(const ReplayParams& p, float* at, Workspace* w) {
  const int64_t row = p.width + kMaxBlurKernel + kSlack;
  w->stride = p.height * p.width + kSlack;
  w->loaded = at;
  w->image = w->loaded + p.dim + kSlack;
  w->line = w->image + p.channels * w->stride;
  w->next_line = w->line + row;
  w->weight = w->next_line + row;
  w->column = reinterpret_cast<int32_t*>(w->weight + row);
  w->next_column = w->column + row;
  w->first_column = w->next_column + row;
  return p.dim + kSlack + p.channels * w->stride + 6 * row;
}

// The sum of the parts in the order of block_sum<256>() of the CUDA kernel: lanes are folded in
// halves inside each warp, then the eight warps are.
double fold_sum(const float* parts) {
  double sum[kSumParts];
  for (int i = 0; i < kSumParts; ++i) sum[i] = static_cast<double>(parts[i]);
  for (int warp = 0; warp < kSumParts; warp += 32)
    for (int half = 16; half; half /= 2)
      for (int i = 0; i < half; ++i) sum[warp + i] += sum[warp + i + half];
  for (int half = kSumParts / 64; half; half /= 2)
    for (int i = 0; i < half; ++i) sum[32 * i] += sum[32 * (i + half)];
  return sum[0];
}

// The weights of a blur whose terms warp_sum() of the CUDA kernel adds.
void draw_blur(const ReplayParams& p, double sigma, float* weight) {
  const int half = p.augmentation.kernel_size / 2;
  double term[kBlurTerms] = {}, sum[kBlurTerms];
  for (int x = 0; x <= half; ++x) term[x] = blur_term(x, sigma);
  for (int x = 0; x < kBlurTerms; ++x) sum[x] = x == 0 ? term[x] : 2 * term[x];
  for (int h = kBlurTerms / 2; h; h /= 2)
    for (int x = 0; x < h; ++x) sum[x] += sum[x + h];
  for (int x = 0; x <= half; ++x)
    weight[half + x] = weight[half - x] = static_cast<float>(term[x] / sum[0]);
}

Crop draw_crop(const ReplayParams& p, uint64_t id) {
  if (p.augmentation.scale.hi <= 0) return whole_image(p);
  Crop crop;
  for (int attempt = 0; attempt < kCropAttempts; ++attempt)
    if (try_crop(p, id, attempt, &crop)) return crop;
  return middle_crop(p);
}

// clang-format off
namespace plain {
#define FASTEBM_TARGET
#include "simd/plain.h"
#include "replay/color_simd.h"
#include "replay/simd.h"
template <class T>
void load_sample(const ReplayParams& p, uint64_t id, int64_t slot, int64_t begin, int64_t end,
                 float* to) {
  for (int64_t block = begin / 4; 4 * block < end; ++block)
    load_block<T>(p, id, slot, block, to + 4 * block);
}
#undef FASTEBM_TARGET
}  // namespace plain
#if defined(__x86_64__)
namespace avx2 {
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "random/philox_simd.h"
#include "replay/load_simd.h"
#include "replay/color_simd.h"
#include "replay/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2
namespace avx512 {
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "random/philox_simd.h"
#include "replay/load_simd.h"
#include "replay/color_simd.h"
#include "replay/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
#endif
// clang-format on

template <class Load, class Augment>
int gather(const ReplayParams& p, int64_t begin, int64_t end, void* scratch, Load load_sample,
           Augment augment) {
  Workspace w{};
  if (p.augment) {
    const int64_t floats = lay_out(p, static_cast<float*>(scratch), &w);
    std::memset(scratch, 0, sizeof(float) * static_cast<size_t>(floats));
  }
  for (int64_t row = begin; row < end; ++row) {
    const uint64_t id = sample_id(p, row);
    const int64_t index = p.index[row], slot = source_slot(p, id, index);
    record_draw(p, row, index, slot);
    float* out = p.out + row * p.dim;
    if (!p.augment || slot < 0) {
      load_sample(p, id, slot, 0, p.dim, out);
      continue;
    }
    SampleAugmentation s;
    s.crop = draw_crop(p, id);
    draw_color(p, id, &s);
    const double sigma = draw_sigma(p, id);
    s.blur = sigma > 0;
    if (s.blur) draw_blur(p, sigma, s.weight);
    const int64_t pixels = p.height * p.width;
    for (int64_t c = 0; c < p.channels; ++c)  // the rows that the crop has
      load_sample(p, id, slot, c * pixels + s.crop.top * p.width,
                  c * pixels + (s.crop.top + s.crop.height) * p.width, w.loaded);
    augment(p, s, w, out);
  }
  return 0;
}

}  // namespace

void replay_prepare_cpu(const ReplayParams& p) {
#if defined(__linux__)
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p.out), page = 2 << 20;
  const uintptr_t end = begin + sizeof(float) * static_cast<uint64_t>(p.n * p.dim);
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

int64_t replay_gather_scratch_cpu(const ReplayParams& p) {
  Workspace w{};
  return p.augment ? static_cast<int64_t>(sizeof(float)) * lay_out(p, nullptr, &w) : 0;
}

int replay_gather_cpu(const ReplayParams& p, int64_t begin, int64_t end, void* scratch) {
  return visit_stored(p.dtype, [&](auto t) {
    using T = decltype(t);
#if defined(__x86_64__)
    if (simd_level() == Simd::kAvx512)
      return gather(p, begin, end, scratch, avx512::load_sample<T>, avx512::augment);
    if (simd_level() == Simd::kAvx2)
      return gather(p, begin, end, scratch, avx2::load_sample<T>, avx2::augment);
#endif
    return gather(p, begin, end, scratch, plain::load_sample<T>, plain::augment);
  });
}

}  // namespace fastebm
