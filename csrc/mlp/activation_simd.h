// An activation and its first two derivatives, from one exponential: kLanes values at a time.
// Included for each instruction set, inside its namespace; for CUDA after simd/one.h. Before it
// come
//   Floats exp_minus(Floats y)   exp(-y) for y >= 0; 0 where it is below 1e-38, NaN for NaN
//   Floats exp_minus_signed(Floats z)   exp(-z); infinity where it is larger than a float
//   Floats ratio(Floats a, Floats b)   a / b
// and of simd/: set, add, sub, mul, div, fma, min, max, abs, pick_less. Results are within a few
// units in the last place of the value's own size; infinities and NaN are torch's.

struct Activated {
  Floats value, slope, curvature;  // what is not read is not computed: all is inlined
};

// c[0] + c[1] x + c[2] x^2 + ...
template <int kFrom = 0, int kCount>
FASTEBM_TARGET inline Floats polynomial(Floats x, const float (&c)[kCount]) {
  if constexpr (kFrom == kCount - 1)
    return set(c[kFrom]);
  else
    return fma(polynomial<kFrom + 1>(x, c), x, set(c[kFrom]));
}

// s = 1 / (1 + exp(-y)) and 1 - s, each to its own last digits.
struct Sigmoids {
  Floats s, rest;
};
FASTEBM_TARGET inline Sigmoids sigmoids(Floats y) {
  const Floats one = set(1.0f), e = exp_minus_signed(y), s = ratio(one, add(one, e));
  return {s, min(mul(e, s), one)};  // 1 where e is infinite
}

template <Activation kActivation>
FASTEBM_TARGET inline Activated activate(Floats z, float beta, float threshold) {
  const Floats one = set(1.0f), zero = set(0.0f);
  if constexpr (kActivation == Activation::kSilu) {  // z s(z)
    const Sigmoids s = sigmoids(z);
    const Floats value = mul(z, s.s), bend = fma(z, sub(s.rest, s.s), set(2.0f));
    return {value, fma(value, s.rest, s.s), mul(mul(s.s, s.rest), bend)};
  } else if constexpr (kActivation == Activation::kTanh) {
    // (1 - e) / (1 + e) with e = exp(-2 |z|); near 0, where digits would cancel, z + z^3 p(z^2) of
    // relative error 3e-9 on [0, 0.6].
    constexpr float kNear[] = {-0.33333298563957214f, 0.13331924378871918f, -0.053783830255270004f,
                               0.020795971155166626f, -0.005895158275961876f};
    const Floats a = abs(z), q = mul(z, z), e = exp_minus(add(a, a));
    const Floats far = ratio(sub(one, e), add(one, e));
    const Floats near = fma(mul(polynomial(q, kNear), q), z, z);
    const Floats signed_far = pick_less(z, zero, sub(zero, far), far);
    const Floats value = pick_less(a, set(0.6f), near, signed_far);
    const Floats slope = sub(one, mul(value, value));
    return {value, slope, mul(mul(set(-2.0f), value), slope)};
  } else if constexpr (kActivation == Activation::kRelu) {  // NaN has slope 1
    const Floats value = max(zero, z);
    return {value, pick_less(value, set(1.17549435e-38f), zero, one), zero};
  } else if constexpr (kActivation == Activation::kSoftplus) {
    // log(1 + exp(y)) = max(y, 0) + log(1 + e), y = beta z, e = exp(-|y|), by log(1 + e) / e on
    // [0, 1], relative error 5e-9.
    constexpr float kLog[] = {1.0f,
                              -0.4999990165233612f,
                              0.3332996368408203f,
                              -0.24954134225845337f,
                              0.1967593878507614f,
                              -0.15305592119693756f,
                              0.10603653639554977f,
                              -0.056959524750709534f,
                              0.019851457327604294f,
                              -0.003244024235755205f};
    const Floats y = mul(set(beta), z), e = exp_minus(abs(y));
    const Floats value = ratio(fma(polynomial(e, kLog), e, max(zero, y)), set(beta));
    const Floats large = ratio(one, add(one, e)), small = mul(e, large), above = set(threshold);
    const Floats slope = pick_less(y, zero, small, large);
    const Floats bend = mul(set(beta), mul(small, large));
    return {pick_less(above, y, z, value), pick_less(above, y, one, slope),
            pick_less(above, y, zero, bend)};
  } else if constexpr (kActivation == Activation::kGelu) {
    // z P(z), P the normal distribution: P(-|z|) exp(z^2 / 2) by a polynomial in t of relative
    // error 1e-8, t = 1 / (1 + |z| / 4). The slope is P(z) + z p(z), p(z) = exp(-z^2 / 2) /
    // sqrt(2 pi), its own p(z) (2 - z^2).
    constexpr float kTail[] = {0.0997479036450386f,  0.09949254989624023f, 0.09551578015089035f,
                               0.07199918478727341f, 0.08665744960308075f, 0.012710973620414734f,
                               0.0284366924315691f,  0.05165181681513786f, -0.06279196590185165f,
                               0.01657961867749691f};
    const Floats a = abs(z), e = exp_minus(mul(mul(set(0.5f), a), a));
    const Floats t = ratio(one, fma(set(0.25f), a, one));
    const Floats tail = mul(mul(polynomial(t, kTail), t), e);
    const Floats p = pick_less(z, zero, tail, sub(one, tail));
    const Floats density = mul(set(0.3989422804014327f), e);
    return {mul(z, p), fma(z, density, p), mul(density, sub(set(2.0f), mul(z, z)))};
  } else if constexpr (kActivation == Activation::kLeakyRelu) {
    const Floats slope = pick_less(zero, z, one, set(beta));
    return {mul(slope, z), slope, zero};
  } else if constexpr (kActivation == Activation::kElu) {
    // beta (e - 1), e = exp(z) where z <= 0; near 0, where digits would cancel, beta (z + z^2 p(z))
    // of relative error 6e-9 on [-0.6, 0].
    constexpr float kNear[] = {0.49999967217445374f, 0.16665904223918915f, 0.0416085310280323f,
                               0.008137043565511703f, 0.0010798359289765358f};
    const Floats e = exp_minus(max(zero, sub(zero, z))), bend = mul(set(beta), e);
    const Floats near = fma(mul(polynomial(z, kNear), z), z, z), far = sub(e, one);
    const Floats below = mul(set(beta), pick_less(z, set(-0.6f), far, near));
    return {pick_less(zero, z, z, below), pick_less(zero, z, one, bend),
            pick_less(z, zero, bend, zero)};
  } else {  // kGeluTanh: z s(u), u = 2 sqrt(2 / pi) (z + 0.044715 z^3)
    const Floats q = mul(z, z), scale = set(1.5957691216057308f);
    const Sigmoids s = sigmoids(mul(scale, mul(z, fma(set(0.044715f), q, one))));
    const Floats rate = mul(scale, fma(set(0.134145f), q, one)), both = mul(s.s, s.rest);
    const Floats bend = fma(mul(scale, q), set(0.26829f), add(rate, rate));
    // both z rate^2, in an order that stays finite, of s''(u) = both (rest - s)
    const Floats spread = mul(mul(mul(both, z), rate), rate);
    return {mul(z, s.s), fma(z, mul(both, rate), s.s),
            fma(spread, sub(s.rest, s.s), mul(both, bend))};
  }
}
