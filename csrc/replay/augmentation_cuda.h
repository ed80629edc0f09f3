// The stages of an image's augmentation on a CUDA device: a CUDA block takes one image.
#pragma once
#include "launch/sums_cuda.h"
#include "replay/draw.h"
#include "replay/load_cuda.h"

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

}  // namespace
}  // namespace fastebm
