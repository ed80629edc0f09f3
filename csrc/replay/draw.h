// What one sample's augmentation comes to: drawn from the counter stream, as torchvision draws it.
// The words of a sample under kTransitionTag: block 0 {restart, flip, jitter, order of the jitter},
// block 1 {brightness, contrast, saturation, hue}, block 2 {grayscale, blur, sigma, -}, block 3 + a
// {area, ratio, top, left} of the a-th attempt to place the crop.
#pragma once
#include "replay/replay.h"

namespace fastebm {

enum ColorOp : uint8_t { kBrightness, kContrast, kSaturation, kHue, kGrayscale };
constexpr int kMaxColorOps = 5, kCropAttempts = 10;

// Colour operations in the order they are applied; [0, contrast) come before the one that needs
// the mean of the image, and contrast == count where there is none.
struct ColorProgram {
  int count, contrast;
  uint8_t op[kMaxColorOps];
  float factor[kMaxColorOps];  // of hue: sixths of a turn, in [0, 6)
};

struct Crop {
  int top, left, height, width;
};

struct SampleAugmentation {
  Crop crop;
  bool flip, blur;
  ColorProgram color;
  float weight[kMaxBlurKernel];  // of the blur, in both directions
};

// e^y for y <= 700 or so, the same bits everywhere; error below 1e-15 of it. 0 below -700. The
// powers of the remainder are added in a tree: a sum of 14 terms is no chain of 28 operations.
FASTEBM_HD double exp_rn(double y) {
  if (y < -700.0) return 0.0;
  const double k = floor(y * 1.4426950408889634 + 0.5);
  const double r = (y - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  const double r2 = r * r, r4 = r2 * r2, r8 = r4 * r4;
  const double a = (1.0 + r) + (1.0 / 2 + r * (1.0 / 6)) * r2;
  const double b = (1.0 / 24 + r * (1.0 / 120)) + (1.0 / 720 + r * (1.0 / 5040)) * r2;
  const double c = (1.0 / 40320 + r * (1.0 / 362880)) + (1.0 / 3628800 + r * (1.0 / 39916800)) * r2;
  const double d = 1.0 / 479001600 + r * (1.0 / 6227020800);
  const double sum = (a + b * r4) + (c + d * r4) * r8;
  const uint64_t bits = static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52;
  double power;
  memcpy(&power, &bits, 8);
  return sum * power;
}

FASTEBM_HD double uniform_in(uint32_t w, const Range& range) {
  return range.lo + (range.hi - range.lo) * uniform32(w);
}

FASTEBM_HD int below(uint32_t w, int n) {  // uniform in 0 .. n - 1
  return static_cast<int>(static_cast<uint64_t>(w) * static_cast<uint64_t>(n) >> 32);
}

// RandomResizedCrop: area share uniform, ratio log-uniform, place uniform. One attempt; returns
// whether the crop fits.
FASTEBM_HD bool try_crop(const ReplayParams& p, uint64_t id, int attempt, Crop* crop) {
  const Augmentation& a = p.augmentation;
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  const Words4 w = transition_words(p, id, static_cast<uint32_t>(3 + attempt));
  const double area = static_cast<double>(height) * width * uniform_in(w.v[0], a.scale);
  const double log_ratio = uniform_in(w.v[1], a.log_ratio);
  const double crop_width = rint(sqrt(area * exp_rn(log_ratio)));
  const double crop_height = rint(sqrt(area * exp_rn(-log_ratio)));
  if (crop_width < 1 || crop_width > width || crop_height < 1 || crop_height > height) return false;
  crop->width = static_cast<int>(crop_width);
  crop->height = static_cast<int>(crop_height);
  crop->top = below(w.v[2], height - crop->height + 1);
  crop->left = below(w.v[3], width - crop->width + 1);
  return true;
}

FASTEBM_HD int at_least_one(double v) { return v < 1 ? 1 : static_cast<int>(rint(v)); }

// After ten attempts that do not fit: the middle, a pixel at least.
FASTEBM_HD Crop middle_crop(const ReplayParams& p) {
  const Range& limits = p.augmentation.ratio;
  Crop crop{0, 0, static_cast<int>(p.height), static_cast<int>(p.width)};
  const double ratio = static_cast<double>(crop.width) / crop.height;
  if (ratio > limits.hi) crop.width = at_least_one(crop.height * limits.hi);
  if (ratio < limits.lo) crop.height = at_least_one(crop.width / limits.lo);
  crop.top = (static_cast<int>(p.height) - crop.height) / 2;
  crop.left = (static_cast<int>(p.width) - crop.width) / 2;
  return crop;
}

FASTEBM_HD Crop whole_image(const ReplayParams& p) {
  return Crop{0, 0, static_cast<int>(p.height), static_cast<int>(p.width)};
}

// Flip; ColorJitter with probability jitter_p, its four parts in random order; then grayscale.
FASTEBM_HD void draw_color(const ReplayParams& p, uint64_t id, SampleAugmentation* s) {
  const Augmentation& a = p.augmentation;
  const Words4 first = transition_words(p, id, 0), factors = transition_words(p, id, 1);
  const Words4 last = transition_words(p, id, 2);
  s->flip = uniform32(first.v[1]) < a.hflip_p;
  ColorProgram* color = &s->color;
  color->count = 0;
  color->contrast = -1;
  if (uniform32(first.v[2]) < a.jitter_p) {
    uint32_t order = kBrightness | kContrast << 8 | kSaturation << 16 | kHue << 24;
    int left = below(first.v[3], 24);
    for (int i = 0; i < 4; ++i) {  // the byte that is taken makes room for the first one left
      const int at = 8 * (left % (4 - i));
      left /= 4 - i;
      const uint32_t op = order >> at & 0xffu;
      order = (order + (((order & 0xffu) - op) << at)) >> 8;
      const Range range = a.color[op];
      const double center = op == kHue ? 0.0 : 1.0;
      if (range.lo == center && range.hi == center) continue;
      const uint32_t low = op & 1 ? factors.v[1] : factors.v[0];
      const uint32_t high = op & 1 ? factors.v[3] : factors.v[2];
      const uint32_t word = op & 2 ? high : low;  // not indexed: registers have no index
      double factor = uniform_in(word, range);
      if (op == kHue) factor = 6 * (factor - floor(factor));
      if (op == kContrast) color->contrast = color->count;
      color->op[color->count] = static_cast<uint8_t>(op);
      color->factor[color->count++] = static_cast<float>(factor);
    }
  }
  if (uniform32(last.v[0]) < a.grayscale_p) {
    color->op[color->count] = kGrayscale;
    color->factor[color->count++] = 0.0f;
  }
  if (color->contrast < 0) color->contrast = color->count;
}

// GaussianBlur's weights: exp(-(x / sigma)^2 / 2) at x = -half .. half, over their sum, in which
// the terms of x and -x are one summand; there are at most 32 of these, and warp_sum() adds them.
constexpr int kBlurTerms = 32;
static_assert(kMaxBlurKernel / 2 < kBlurTerms, "a lane of a warp for each");

FASTEBM_HD double blur_term(int x, double sigma) {
  const double z = x / sigma;
  return exp_rn(-0.5 * (z * z));
}

// Returns sigma; 0 where the sample is not blurred.
FASTEBM_HD double draw_sigma(const ReplayParams& p, uint64_t id) {
  const Augmentation& a = p.augmentation;
  if (a.kernel_size == 0) return 0.0;
  const Words4 w = transition_words(p, id, 2);
  return uniform32(w.v[1]) < a.blur_p ? uniform_in(w.v[2], a.sigma) : 0.0;
}

// The two pixels that output pixel x of `size` lies between, when `crop` pixels are enlarged to
// `size` (half-pixel centres), and the weight of the second; the weight is rounded once.
struct Tap {
  int first, second;
  float weight;
};

FASTEBM_HD Tap resize_tap(int x, int crop, int size) {
  const int place = (2 * x + 1) * crop - size;
  if (place <= 0) return Tap{0, 0, 0.0f};
  const int first = place / (2 * size);
  return Tap{first, first + 1 < crop ? first + 1 : first,
             static_cast<float>(place - first * 2 * size) / static_cast<float>(2 * size)};
}

FASTEBM_HD int reflect(int i, int size) {  // without repeating the border
  return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i;
}

}  // namespace fastebm
