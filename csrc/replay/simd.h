// An image's augmentation with vectors. Included for each instruction set, inside its namespace,
// after replay/color_simd.h. Rows are written kLanes at a time and may run over their end, into
// the next row, which is written later, or into the slack of a plane.

// One row of the crop, stretched to the width of the image.
FASTEBM_TARGET inline void stretch_row(const float* from, int width, const Workspace& w,
                                       float* to) {
  for (int x = 0; x < width; x += kLanes) {
    const float* near = from + w.first_column[x / kLanes];
    const Floats a = pick_near(near, w.column + x), b = pick_near(near, w.next_column + x);
    store(to + x, add(a, mul(load(w.weight + x), sub(b, a))));
  }
}

// Crop, enlargement and flip of one plane: each of its rows is stretched once, on its way down.
FASTEBM_TARGET inline void resize_plane(const ReplayParams& p, const SampleAugmentation& s,
                                        const float* from, const Workspace& w, float* to) {
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  float *upper = w.line, *lower = w.next_line;
  int upper_row = -1, lower_row = -1;
  const auto row = [&](int y) {
    return from + static_cast<int64_t>(s.crop.top + y) * width + s.crop.left;
  };
  for (int y = 0; y < height; ++y) {
    const Tap tap = resize_tap(y, s.crop.height, height);
    if (lower_row == tap.first) {
      std::swap(upper, lower);
      std::swap(upper_row, lower_row);
    }
    if (upper_row != tap.first) stretch_row(row(upper_row = tap.first), width, w, upper);
    if (lower_row != tap.second) stretch_row(row(lower_row = tap.second), width, w, lower);
    const Floats weight = set(tap.weight);
    for (int x = 0; x < width; x += kLanes) {
      const Floats a = load(upper + x);
      store(to + static_cast<int64_t>(y) * width + x, add(a, mul(weight, sub(load(lower + x), a))));
    }
  }
}

FASTEBM_TARGET inline void resize(const ReplayParams& p, const SampleAugmentation& s,
                                  const Workspace& w) {
  const int width = static_cast<int>(p.width);
  const int64_t pixels = p.height * p.width;
  for (int x = 0; x < width; ++x) {
    const Tap tap = resize_tap(s.flip ? width - 1 - x : x, s.crop.width, width);
    w.column[x] = tap.first;
    w.next_column[x] = tap.second;
    w.weight[x] = tap.weight;
  }
  // The crop is enlarged, so the taps of kLanes columns lie in kLanes + 1 neighbours.
  for (int x = 0; x < width; x += kLanes) {
    const int end = std::min(x + kLanes, width);
    const int32_t first = std::min(w.column[x], w.column[end - 1]);
    w.first_column[x / kLanes] = first;
    for (int i = x; i < end; ++i) {
      w.column[i] -= first;
      w.next_column[i] -= first;
    }
  }
  for (int64_t c = 0; c < p.channels; ++c)
    resize_plane(p, s, w.loaded + c * pixels, w, w.image + c * w.stride);
}

// The colours of an image of kChannels; two passes where contrast asks for the mean.
template <int kChannels>
FASTEBM_TARGET void change_color(const ReplayParams& p, const ColorProgram& program,
                                 const Workspace& w) {
  const int64_t pixels = p.height * p.width;
  const float scale = 1.0f / (p.hi - p.lo);
  const bool two_passes = program.contrast < program.count;
  float part[kSumParts] = {}, mean = 0.0f;
  for (int64_t at = 0; at < pixels; at += kLanes) {
    Floats c[kChannels];
    for (int i = 0; i < kChannels; ++i)
      c[i] = to_unit(load(w.image + i * w.stride + at), p.lo, scale);
    color_ops<kChannels>(program, 0, program.contrast, 0.0f, c);
    for (int i = 0; i < kChannels; ++i)
      store(w.image + i * w.stride + at, two_passes ? c[i] : from_unit(c[i], p.lo, p.hi));
    if (!two_passes) continue;
    const Floats value = kChannels == 3 ? grey(c) : c[0];
    float* sum = part + at % kSumParts;
    if (at + kLanes <= pixels) {
      store(sum, add(load(sum), value));
    } else {
      float rest[kLanes];
      store(rest, value);
      for (int64_t i = 0; i < pixels - at; ++i) sum[i] += rest[i];
    }
  }
  if (!two_passes) return;
  mean = static_cast<float>(fold_sum(part) / static_cast<double>(pixels));
  for (int64_t at = 0; at < pixels; at += kLanes) {
    Floats c[kChannels];
    for (int i = 0; i < kChannels; ++i) c[i] = load(w.image + i * w.stride + at);
    color_ops<kChannels>(program, program.contrast, program.count, mean, c);
    for (int i = 0; i < kChannels; ++i)
      store(w.image + i * w.stride + at, from_unit(c[i], p.lo, p.hi));
  }
}

// Along rows into `loaded`, then along columns back, with reflected borders.
FASTEBM_TARGET inline void blur_plane(const ReplayParams& p, const float* weight,
                                      const Workspace& w, float* plane) {
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  const int size = p.augmentation.kernel_size, half = size / 2;
  for (int y = 0; y < height; ++y) {
    const float* row = plane + static_cast<int64_t>(y) * width;
    std::memcpy(w.line + half, row, sizeof(float) * static_cast<size_t>(width));
    for (int i = 1; i <= half; ++i) {
      w.line[half - i] = row[i];
      w.line[half + width - 1 + i] = row[width - 1 - i];
    }
    for (int x = 0; x < width; x += kLanes) {
      Floats sum = mul(set(weight[0]), load(w.line + x));
      for (int k = 1; k < size; ++k) sum = add(sum, mul(set(weight[k]), load(w.line + x + k)));
      store(w.loaded + static_cast<int64_t>(y) * width + x, sum);
    }
  }
  for (int y = 0; y < height; ++y) {
    const float* rows[kMaxBlurKernel];
    for (int k = 0; k < size; ++k)
      rows[k] = w.loaded + static_cast<int64_t>(reflect(y + k - half, height)) * width;
    for (int x = 0; x < width; x += kLanes) {
      Floats sum = mul(set(weight[0]), load(rows[0] + x));
      for (int k = 1; k < size; ++k) sum = add(sum, mul(set(weight[k]), load(rows[k] + x)));
      store(plane + static_cast<int64_t>(y) * width + x, sum);
    }
  }
}

// The image in w.loaded, augmented, to `out`: in place where rows are whole vectors.
FASTEBM_TARGET inline void augment(const ReplayParams& p, const SampleAugmentation& s, Workspace w,
                                   float* out) {
  const int64_t pixels = p.height * p.width;
  const bool in_place = p.width % kLanes == 0;
  if (in_place) {
    w.image = out;
    w.stride = pixels;
  }
  resize(p, s, w);
  if (s.color.count > 0 && p.channels == 3) change_color<3>(p, s.color, w);
  if (s.color.count > 0 && p.channels == 1) change_color<1>(p, s.color, w);
  for (int64_t c = 0; c < p.channels; ++c) {
    if (s.blur) blur_plane(p, s.weight, w, w.image + c * w.stride);
    if (!in_place)
      std::memcpy(out + c * pixels, w.image + c * w.stride,
                  sizeof(float) * static_cast<size_t>(pixels));
  }
}
