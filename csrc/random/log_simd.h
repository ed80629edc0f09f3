// Logarithms by exactly rounded operations, the polynomial being that of random/philox.h. Included
// once for each instruction set, inside its namespace; on one lane in random/exact.h.

// -2 log(1 + t) / t on [sqrt(1/2) - 1, sqrt(2) - 1].
FASTEBM_TARGET inline Floats log_polynomial(Floats t) {
  using namespace box_muller;
  Floats p = fma(set(kLog7), t, set(kLog6));
  p = fma(p, t, set(kLog5));
  p = fma(p, t, set(kLog4));
  p = fma(p, t, set(kLog3));
  p = fma(p, t, set(kLog2));
  p = fma(p, t, set(kLog1));
  return fma(p, t, set(kLog0));
}

// v = 2^e (1 + t), t in [sqrt(1/2) - 1, sqrt(2) - 1); v is neither 0 nor subnormal.
struct Parts {
  Ints above;  // negative where e is
  Floats e, t;
};

FASTEBM_TARGET inline Parts parts_of(Floats v) {
  using namespace box_muller;
  const Ints above = sub(bits_of(v), set_int(kSqrtHalfBits));
  const Ints mantissa = add(bit_and(above, set_int(0x7fffff)), set_int(kSqrtHalfBits));
  return {above, to_float(shift_right_signed<23>(above)), sub(floats_of(mantissa), set(1.0f))};
}

// log(v) within 2e-7 of max(1, |log v|), of a v that is neither 0 nor subnormal.
FASTEBM_TARGET inline Floats log(Floats v) {
  using namespace box_muller;
  const Parts of = parts_of(v);
  return mul(set(-0.5f), fma(of.e, set(kMinus2Ln2), mul(of.t, log_polynomial(of.t))));
}

// Standard exponentials -log(1 - u), u = (w + 1/2) / 2^32, within 5e-7 of their size; the least is
// 2^-33. Where they are small, u itself is what they are made of: the least of many is exact, too.
FASTEBM_TARGET inline Floats exponentials(Ints w) {
  using namespace box_muller;
  const Floats u = fma(unsigned_to_float(w), set(kTwoM32), set(kTwoM33));
  const Ints flipped = bit_xor(w, set_int(-1));
  const Parts of = parts_of(fma(unsigned_to_float(flipped), set(kTwoM32), set(kTwoM33)));
  const Floats t = pick_negative(of.above, of.t, sub(set(0.0f), u));
  return mul(set(0.5f), fma(of.e, set(kMinus2Ln2), mul(t, log_polynomial(t))));
}
