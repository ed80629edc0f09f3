// What one sample's augmentation comes to: drawn from the counter stream, as torchvision draws it.
// The words of a sample under kTransitionTag: block 0 {restart, flip, jitter, order of the jitter},
// block 1 {brightness, contrast, saturation, hue}, block 2 {grayscale, blur, sigma, -}, block 3 + a
// {area, ratio, top, left} of the a-th attempt to place the crop.
#pragma once
#include "replay.h"

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

struct SampleAugmentation {
  int top, left, height, width;  // the crop
  bool flip, blur;
  ColorProgram color;
  float weight[kMaxBlurKernel];  // of the blur, in both directions
};

// e^y for y <= 700 or so, the same bits everywhere; error below 1e-15 of it. 0 below -700.
FASTEBM_HD double exp_rn(double y) {
  if (y < -700.0) return 0.0;
  const double k = floor(y * 1.4426950408889634 + 0.5);
  const double r = (y - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  double sum = 1.0;
  for (int i = 14; i > 0; --i) sum = 1.0 + sum * r / i;
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

// RandomResizedCrop: area share uniform, ratio log-uniform, place uniform; after ten attempts that
// do not fit, the middle.
FASTEBM_HD void draw_crop(const ReplayParams& p, uint64_t id, SampleAugmentation* s) {
  const Augmentation& a = p.augmentation;
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  const double area = static_cast<double>(height) * width;
  for (int attempt = 0; attempt < kCropAttempts; ++attempt) {
    const Words4 w = transition_words(p, id, static_cast<uint32_t>(3 + attempt));
    const double target = area * uniform_in(w.v[0], a.scale);
    const double ratio = exp_rn(uniform_in(w.v[1], a.log_ratio));
    const double crop_width = rint(sqrt(target * ratio));
    const double crop_height = rint(sqrt(target / ratio));
    if (crop_width < 1 || crop_width > width || crop_height < 1 || crop_height > height) continue;
    s->width = static_cast<int>(crop_width);
    s->height = static_cast<int>(crop_height);
    s->top = below(w.v[2], height - s->height + 1);
    s->left = below(w.v[3], width - s->width + 1);
    return;
  }
  const double ratio = static_cast<double>(width) / height;
  s->width = ratio > a.ratio.hi ? static_cast<int>(rint(height * a.ratio.hi)) : width;
  s->height = ratio < a.ratio.lo ? static_cast<int>(rint(width / a.ratio.lo)) : height;
  s->top = (height - s->height) / 2;
  s->left = (width - s->width) / 2;
}

// ColorJitter with probability jitter_p: its four parts in random order; then grayscale.
FASTEBM_HD void draw_color(const Augmentation& a, const Words4& first, const Words4& factors,
                           const Words4& last, ColorProgram* color) {
  const Range range[4] = {a.brightness, a.contrast, a.saturation, a.hue};
  color->count = 0;
  color->contrast = -1;
  if (uniform32(first.v[2]) < a.jitter_p) {
    uint8_t order[4] = {kBrightness, kContrast, kSaturation, kHue};
    int left = below(first.v[3], 24);
    for (int i = 0; i < 4; ++i) {
      const int j = i + left % (4 - i);
      left /= 4 - i;
      const uint8_t op = order[j];
      order[j] = order[i];
      const double center = op == kHue ? 0.0 : 1.0;
      if (range[op].lo == center && range[op].hi == center) continue;
      double factor = uniform_in(factors.v[op], range[op]);
      if (op == kHue) factor = 6 * (factor - floor(factor));
      if (op == kContrast) color->contrast = color->count;
      color->op[color->count] = op;
      color->factor[color->count++] = static_cast<float>(factor);
    }
  }
  if (uniform32(last.v[0]) < a.grayscale_p) {
    color->op[color->count] = kGrayscale;
    color->factor[color->count++] = 0.0f;
  }
  if (color->contrast < 0) color->contrast = color->count;
}

// GaussianBlur's weights: exp(-(x / sigma)^2 / 2) at x = -half .. half, normalised.
FASTEBM_HD void blur_weights(int size, double sigma, float* weight) {
  double sum = 0;
  for (int pass = 0; pass < 2; ++pass)
    for (int i = 0; i < size; ++i) {
      const double x = (i - size / 2) / sigma, value = exp_rn(-0.5 * (x * x));
      if (pass == 0) sum += value;
      if (pass == 1) weight[i] = static_cast<float>(value / sum);
    }
}

FASTEBM_HD void draw_augmentation(const ReplayParams& p, uint64_t id, SampleAugmentation* s) {
  const Augmentation& a = p.augmentation;
  const Words4 first = transition_words(p, id, 0), last = transition_words(p, id, 2);
  s->top = s->left = 0;
  s->height = static_cast<int>(p.height);
  s->width = static_cast<int>(p.width);
  if (a.scale.hi > 0) draw_crop(p, id, s);
  s->flip = uniform32(first.v[1]) < a.hflip_p;
  draw_color(a, first, transition_words(p, id, 1), last, &s->color);
  s->blur = a.kernel_size > 0 && uniform32(last.v[1]) < a.blur_p;
  if (s->blur) blur_weights(a.kernel_size, uniform_in(last.v[2], a.sigma), s->weight);
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
