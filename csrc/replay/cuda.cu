// Replayed samples on a CUDA device.
#include "launch/element_blocks_cuda.h"
#include "replay/draw.h"

namespace fastebm {
namespace {

// clang-format off
namespace one {
#define FASTEBM_TARGET __device__
#include "simd/one.h"
#include "replay/color_simd.h"
#undef FASTEBM_TARGET
}  // namespace one
// clang-format on

constexpr int kReplayThreads = 256;  // that take one image

// Whether images are worked on in shared memory, not in `scratch`: where two of them fit on a
// multiprocessor, which keeps 1 KB for itself in every block. One alone has too few threads to hide
// what it waits for.
bool is_shared(const ReplayParams& p) {
  constexpr int64_t kOwn = 1024, kStatic = 512;
  const int64_t half = (max_shared_bytes() + kOwn) / 2 - kOwn - kStatic;
  return static_cast<int64_t>(sizeof(float)) * p.dim <= half;
}

template <bool kWhole>
__device__ __forceinline__ int elements_in(const ReplayParams& p, uint32_t block) {
  const uint32_t whole = static_cast<uint32_t>(p.dim >> 2);
  const int rest = kWhole ? 0 : static_cast<int>(p.dim & 3);
  return block < whole ? 4 : block == whole ? rest : 0;
}

// Four stored elements as numbers.
template <class T>
__device__ __forceinline__ void numbers_of(const Quad<T>& q, float (&to)[4]) {
  widen_quad(q, to);
}
template <>
__device__ __forceinline__ void numbers_of<uint8_t>(const Quad<uint8_t>& q, float (&to)[4]) {
  for (int i = 0; i < 4; ++i) to[i] = static_cast<float>(q.words[0] >> 8 * i & 0xffu);
}

// Computes: the elements of some blocks of a sample, of which `stored` is what the buffer has.
template <class T, int kBlocks>
__device__ __forceinline__ void block_values(const ReplayParams& p, uint64_t id, int64_t slot,
                                             const uint32_t (&block)[kBlocks],
                                             const Quad<T> (&stored)[kBlocks],
                                             Quad<float> (&to)[kBlocks]) {
  Words4 words[kBlocks];
  for (int b = 0; b < kBlocks; ++b) words[b] = block_counter(p, id, block[b]);
  if (needs_words<T>(p, slot)) {
    const uint64_t key = replay_key(p, kReplayTag).key;
    philox4x32(words, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
  }
  for (int b = 0; b < kBlocks; ++b) {
    float values[4];
    if (slot >= 0) {
      numbers_of(stored[b], values);
      stored_values<T>(p, values, words[b], values);
    } else {
      initial_values(p, slot, words[b], values);
    }
    memcpy(&to[b], values, sizeof(values));
  }
}

// Samples as they are stored, dequantised or initial. A thread takes two blocks of four elements of
// one sample, half of it apart, so that each warp moves memory that lies together and both share
// what is drawn for the sample: 1 or 4 B read and 4 B written an element.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kBlockThreads)
    gather_kernel(ReplayParams p, int64_t first_row, uint32_t n_threads, Divider half) {
  const uint32_t i = blockIdx.x * kBlockThreads + threadIdx.x;
  if (i >= n_threads) return;
  const uint32_t r = half(i), first = i - r * half.divisor;
  const int64_t row = first_row + r, index = p.index[row];
  const uint64_t id = sample_id(p, row);
  const uint32_t block[2] = {first, first + half.divisor};
  const T* from = static_cast<const T*>(p.data) + index * p.dim;
  const bool there = index >= 0 && index < p.stored;
  Quad<T> stored[2];
  for (int b = 0; b < 2; ++b)
    stored[b] = load_quad<kWhole>(from + 4 * static_cast<int64_t>(block[b]),
                                  there ? elements_in<kWhole>(p, block[b]) : 0);
  const int64_t slot = source_slot(p, id, index);
  Quad<float> values[2];
  block_values(p, id, slot, block, stored, values);
  float* to = p.out + row * p.dim;
  for (int b = 0; b < 2; ++b)
    store_quad<kWhole>(values[b], to + 4 * static_cast<int64_t>(block[b]),
                       elements_in<kWhole>(p, block[b]));
  if (first == 0) record_draw(p, row, index, slot);
}

// One side of the images: divisions by it and by twice of it, made on the host.
struct Side {
  int size;
  Divider by, by_twice;
  float over_twice;
  explicit Side(int64_t n)
      : size(static_cast<int>(n)),
        by(static_cast<uint32_t>(n)),
        by_twice(static_cast<uint32_t>(2 * n)),
        over_twice(1.0f / static_cast<float>(2 * n)) {}

  // resize_tap(). A quotient of integers up to 2^15 is right after one correction (Markstein 1990);
  // all of them have been tried.
  __device__ Tap tap(int x, int crop) const {
    const int place = (2 * x + 1) * crop - size;
    if (place <= 0) return Tap{0, 0, 0.0f};
    const int first = static_cast<int>(by_twice(static_cast<uint32_t>(place)));
    const float rest = static_cast<float>(place - first * 2 * size);
    const float near = rest * over_twice;
    return Tap{first, first + 1 < crop ? first + 1 : first,
               fma_rn(fma_rn(-near, static_cast<float>(2 * size), rest), over_twice, near)};
  }
};

// Computes: a sample's augmentation, as the CPU does. The first warp draws the crop, an attempt a
//           lane; the second the blur, a pair of weights a lane; a thread of the third the colours.
// Result:   in *s, after a barrier.
// Needs:    all threads of the first three warps here.
__device__ void draw_by_warps(const ReplayParams& p, uint64_t id, SampleAugmentation* s) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (warp == 0) {
    Crop crop = whole_image(p);
    int chosen = 0;
    if (p.augmentation.scale.hi > 0) {
      const bool fits = lane < kCropAttempts && try_crop(p, id, lane, &crop);
      chosen = __ffs(__ballot_sync(0xFFFFFFFFu, fits)) - 1;
      if (chosen < 0) crop = middle_crop(p);
    }
    if (lane == (chosen < 0 ? 0 : chosen)) s->crop = crop;
  } else if (warp == 1) {
    const int half = p.augmentation.kernel_size / 2;
    const double sigma = draw_sigma(p, id);
    if (lane == 0) s->blur = sigma > 0;
    if (sigma > 0) {
      const double term = lane <= half ? blur_term(lane, sigma) : 0.0;
      const double sum = warp_sum(lane == 0 ? term : 2 * term);
      if (lane <= half)
        s->weight[half + lane] = s->weight[half - lane] = static_cast<float>(term / sum);
    }
  } else if (warp == 2 && lane == 0) {
    draw_color(p, id, s);
  }
}

// A whole sample, to `to`.
template <class T, bool kWhole>
__device__ void load_image(const ReplayParams& p, uint64_t id, int64_t slot, float* to) {
  const T* from = static_cast<const T*>(p.data) + slot * p.dim;
  const uint32_t blocks = static_cast<uint32_t>((p.dim + 3) / 4);
  for (uint32_t first = threadIdx.x; first < blocks; first += 2 * kReplayThreads) {
    const uint32_t block[2] = {first, first + kReplayThreads};
    Quad<T> stored[2];
    Quad<float> values[2];
    for (int b = 0; b < 2; ++b)
      stored[b] = load_quad<kWhole>(from + 4 * static_cast<int64_t>(block[b]),
                                    slot < 0 ? 0 : elements_in<kWhole>(p, block[b]));
    block_values(p, id, slot, block, stored, values);
    for (int b = 0; b < 2; ++b)
      store_quad<kWhole>(values[b], to + 4 * static_cast<int64_t>(block[b]),
                         elements_in<kWhole>(p, block[b]));
  }
}

// Crop, enlargement, flip, and the colours up to contrast: a thread takes every 256th pixel, kC
// channels in registers. Returns the thread's part of the sum that the mean is made of.
template <int kC>
__device__ float resize_and_color(const ReplayParams& p, const Side& height, const Side& width,
                                  const SampleAugmentation& s, const float* from, float* to) {
  const int pixels = height.size * width.size;
  const bool colored = s.color.count > 0 && p.channels == kC;
  const bool two_passes = s.color.contrast < s.color.count;
  const float scale = 1.0f / (p.hi - p.lo);
  float sum = 0.0f;
  for (int at = static_cast<int>(threadIdx.x); at < pixels; at += kReplayThreads) {
    const int y = static_cast<int>(width.by(static_cast<uint32_t>(at))), x = at - y * width.size;
    const Tap rows = height.tap(y, s.crop.height);
    const Tap columns = width.tap(s.flip ? width.size - 1 - x : x, s.crop.width);
    const float* upper = from + (s.crop.top + rows.first) * width.size + s.crop.left;
    const float* lower = from + (s.crop.top + rows.second) * width.size + s.crop.left;
    for (int64_t group = 0; group < p.channels; group += kC) {
      float c[kC];
      for (int i = 0; i < kC; ++i) {
        const int64_t plane = (group + i) * pixels;
        float a = upper[plane + columns.first], b = lower[plane + columns.first];
        a = a + columns.weight * (upper[plane + columns.second] - a);
        b = b + columns.weight * (lower[plane + columns.second] - b);
        c[i] = a + rows.weight * (b - a);
        if (colored) c[i] = one::to_unit(c[i], p.lo, scale);
      }
      if (colored) {
        one::color_ops<kC>(s.color, 0, s.color.contrast, 0.0f, c);
        if (two_passes) sum += kC == 3 ? one::grey(c) : c[0];
        if (!two_passes)
          for (int i = 0; i < kC; ++i) c[i] = one::from_unit(c[i], p.lo, p.hi);
      }
      for (int i = 0; i < kC; ++i) to[(group + i) * pixels + at] = c[i];
    }
  }
  return sum;
}

// Contrast and the colours after it, in place.
template <int kC>
__device__ void finish_color(const ReplayParams& p, const ColorProgram& color, float mean,
                             float* image) {
  const int pixels = static_cast<int>(p.height * p.width);
  for (int at = static_cast<int>(threadIdx.x); at < pixels; at += kReplayThreads) {
    float c[kC];
    for (int i = 0; i < kC; ++i) c[i] = image[i * pixels + at];
    one::color_ops<kC>(color, color.contrast, color.count, mean, c);
    for (int i = 0; i < kC; ++i) image[i * pixels + at] = one::from_unit(c[i], p.lo, p.hi);
  }
}

// One pass of the blur, with reflected borders: along rows or along columns.
__device__ void blur(const ReplayParams& p, const Side& high, const Side& wide, const float* weight,
                     bool along_rows, const float* from, float* to) {
  const int height = high.size, width = wide.size;
  const int size = p.augmentation.kernel_size, half = size / 2;
  const int rows = static_cast<int>(p.channels) * height;
  for (int at = static_cast<int>(threadIdx.x); at < rows * width; at += kReplayThreads) {
    const uint32_t in_row = wide.by(static_cast<uint32_t>(at));
    const int row = static_cast<int>(in_row), x = at - row * width;
    const int y = row - static_cast<int>(high.by(in_row)) * height;
    const float* line = along_rows ? from + row * width : from + (row - y) * width + x;
    float sum = 0.0f;
    for (int k = 0; k < size; ++k) {
      const int place = along_rows ? reflect(x + k - half, width) : reflect(y + k - half, height);
      const float term = weight[k] * line[along_rows ? place : place * width];
      sum = k == 0 ? term : sum + term;
    }
    to[at] = sum;
  }
}

// Samples moved by the augmentation: a CUDA block takes one image of any size. What it holds
// between stages is in shared memory where it fits (3 x 96 x 96 on sm_90), else in the L2 cache: an
// element is read once and written once in device memory, and moved two to five times below it.
template <class T, int kC>
__global__ void __launch_bounds__(kReplayThreads)
    augment_kernel(ReplayParams p, Side height, Side width, bool whole, bool shared) {
  FASTEBM_SHARED(SampleAugmentation, s);
  const int64_t row = blockIdx.x, index = p.index[row];
  const uint64_t id = sample_id(p, row);
  const int64_t slot = source_slot(p, id, index);
  if (slot >= 0) draw_by_warps(p, id, &s);
  float* out = p.out + row * p.dim;
  float* work = shared ? dynamic_shared<float>() : static_cast<float*>(p.scratch) + row * p.dim;
  if (whole)
    load_image<T, true>(p, id, slot, slot >= 0 ? work : out);
  else
    load_image<T, false>(p, id, slot, slot >= 0 ? work : out);
  if (threadIdx.x == kReplayThreads - 1) record_draw(p, row, index, slot);
  if (slot < 0) return;
  __syncthreads();
  const float part = resize_and_color<kC>(p, height, width, s, work, out);
  if (s.color.contrast < s.color.count && p.channels == kC) {
    const double sum = block_sum<kReplayThreads>(static_cast<double>(part));
    finish_color<kC>(p, s.color, static_cast<float>(sum / static_cast<double>(p.height * p.width)),
                     out);
  }
  if (!s.blur) return;
  __syncthreads();
  blur(p, height, width, s.weight, true, out, work);
  __syncthreads();
  blur(p, height, width, s.weight, false, work, out);
}

// Whether rows of the buffer and of the result are whole blocks that can be moved at once.
template <class T>
bool is_whole(const ReplayParams& p) {
  return are_quads<T>(p.dim, p.data) && are_quads<float>(p.dim, p.out);
}

template <class T>
int gather(const ReplayParams& p, void* stream) {
  const int64_t half = (p.dim + 7) / 8;
  return for_each_launch(p.n, 4 * half, [&](int64_t first, uint32_t rows, uint32_t half_blocks) {
    const uint32_t n_threads = rows * half_blocks;
    return launch(is_whole<T>(p) ? gather_kernel<T, true> : gather_kernel<T, false>,
                  block_grid(n_threads, 1), dim3(kBlockThreads), 0, stream, p, first, n_threads,
                  Divider(half_blocks));
  });
}

template <class T, int kC>
int augment(const ReplayParams& p, void* stream) {
  const bool shared = is_shared(p);
  return launch(augment_kernel<T, kC>, dim3(static_cast<unsigned>(p.n)), dim3(kReplayThreads),
                shared ? sizeof(float) * static_cast<size_t>(p.dim) : 0, stream, p, Side(p.height),
                Side(p.width), is_whole<T>(p), shared);
}

}  // namespace

int64_t replay_gather_scratch_cuda(const ReplayParams& p) {
  return p.augment && !is_shared(p) ? static_cast<int64_t>(sizeof(float)) * p.n * p.dim : 0;
}

int replay_gather_cuda(const ReplayParams& p, void* stream) {
  return visit_stored(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (!p.augment) return gather<T>(p, stream);
    return p.channels == 3 ? augment<T, 3>(p, stream) : augment<T, 1>(p, stream);
  });
}

}  // namespace fastebm
