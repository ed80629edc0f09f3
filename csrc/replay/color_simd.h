// The colour of kLanes pixels (or one) in registers, channels in [0, 1]. Included for each
// instruction set, inside its namespace; for CUDA after simd/one.h.

FASTEBM_TARGET inline Floats unit(Floats v) {  // into [0, 1]; NaN stays
  return min(set(1.0f), max(set(0.0f), v));
}

// A value in the image's range as one in [0, 1], and back.
FASTEBM_TARGET inline Floats to_unit(Floats v, float lo, float scale) {
  return unit(mul(sub(v, set(lo)), set(scale)));
}
FASTEBM_TARGET inline Floats from_unit(Floats v, float lo, float hi) {
  return min(set(hi), add(set(lo), mul(v, set(hi - lo))));
}

FASTEBM_TARGET inline Floats grey(const Floats* c) {
  return add(add(mul(set(0.2989f), c[0]), mul(set(0.587f), c[1])), mul(set(0.114f), c[2]));
}

FASTEBM_TARGET inline Floats blend(Floats v, Floats other, float factor) {
  return unit(add(mul(set(factor), v), mul(set(1.0f - factor), other)));
}

// Hue turned by `sixths` of a sixth of a turn: to hue h, in sixths, and back to channel n by
// v - c clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6, with v the largest channel and c the chroma.
FASTEBM_TARGET inline void turn_hue(Floats* c, float sixths) {
  const Floats zero = set(0.0f), one = set(1.0f), six = set(6.0f), four = set(4.0f);
  const Floats r = c[0], g = c[1], b = c[2];
  const Floats nan = mul(zero, add(r, g));  // 0, but where r or g is NaN, which max may drop
  const Floats v = add(nan, max(max(r, g), b)), chroma = sub(v, min(min(r, g), b));
  const Floats difference = pick_less(r, v, pick_less(g, v, sub(r, g), sub(b, r)), sub(g, b));
  const Floats sector = pick_less(r, v, pick_less(g, v, four, set(2.0f)), zero);
  const Floats divisor = max(set(1.17549435e-38f), chroma);
  Floats h = add(add(div(difference, divisor), sector), set(sixths));
  h = pick_less(h, zero, add(h, six), h);
  h = pick_less(h, six, h, sub(h, six));
  for (int i = 0; i < 3; ++i) {
    Floats k = add(set(5.0f - 2.0f * static_cast<float>(i)), h);
    k = pick_less(k, six, k, sub(k, six));
    c[i] = sub(v, mul(chroma, min(one, max(zero, min(k, sub(four, k))))));
  }
}

template <int kChannels>
FASTEBM_TARGET inline void color_op(int op, float factor, float mean, Floats* c) {
  Floats other = set(mean);
  switch (op) {
    case kHue:
      if (kChannels == 3) turn_hue(c, factor);
      return;
    case kGrayscale:
      if (kChannels == 3) c[0] = c[1] = c[2] = grey(c);
      return;
    case kBrightness:
      for (int i = 0; i < kChannels; ++i) c[i] = unit(mul(set(factor), c[i]));
      return;
    case kSaturation:
      if (kChannels == 3) other = grey(c);
      break;
    default:  // kContrast
      break;
  }
  for (int i = 0; i < kChannels; ++i) c[i] = blend(c[i], other, factor);
}

template <int kChannels>
FASTEBM_TARGET inline void color_ops(const ColorProgram& program, int begin, int end, float mean,
                                     Floats* c) {
  for (int j = begin; j < end; ++j) color_op<kChannels>(program.op[j], program.factor[j], mean, c);
}
