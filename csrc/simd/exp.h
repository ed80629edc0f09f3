// What activations take of vectors: quotients and exp(-y). Included for each instruction set,
// inside its namespace.

FASTEBM_TARGET inline Floats ratio(Floats a, Floats b) { return div(a, b); }

// 2^n (1 - r + r^2 p(r)) with n a whole number, r = y + n log 2 in [-log(2) / 2, log(2) / 2] and p
// of relative error 3e-9. Results below 1e-38 are 0; NaN stays.
FASTEBM_TARGET inline Floats exp_minus(Floats y) {
  const Floats shifter = set(12582912.0f);  // 1.5 2^23: a sum with it is rounded to a whole number,
  const Floats shifted = fma(y, set(-1.44269504f), shifter);  // which its low bits hold
  const Floats n = sub(shifted, shifter);
  Floats r = fma(n, set(0.693359375f), y);  // log 2 in two parts, n times the first being exact
  r = fma(n, set(-2.12194440e-4f), r);
  Floats p = fma(set(-0.0013814467238262296f), r, set(0.008368780836462975f));
  p = fma(p, r, set(-0.04166839271783829f));
  p = fma(p, r, set(0.1666651964187622f));
  p = fma(p, r, set(-0.4999999403953552f));
  p = sub(set(1.0f), fma(mul(p, r), r, r));
  const Floats e = floats_of(add(bits_of(p), shift_left<23>(bits_of(shifted))));
  return pick_less(y, set(87.0f), e, max(set(0.0f), sub(set(0.0f), y)));
}

// exp(-z) for z of either sign: 0 and infinity beyond the range of float32, NaN stays. It is the
// square of 2^n exp(-r / 2), r = z + 2 n log 2 in [-log 2, log 2], so that it overflows by itself;
// the polynomial has a relative error of 4e-9.
FASTEBM_TARGET inline Floats exp_minus_signed(Floats z) {
  const Floats y = min(set(120.0f), max(set(-100.0f), z)), shifter = set(12582912.0f);
  const Floats shifted = fma(y, set(-0.7213475204f), shifter);
  const Floats n = sub(shifted, shifter);
  Floats r = fma(n, set(1.38671875f), y);
  r = fma(n, set(-0.00042438888f), r);
  Floats p = fma(set(2.1585310605587438e-05f), r, set(-0.00026152239297516644f));
  p = fma(p, r, set(0.0026042743120342493f));
  p = fma(p, r, set(-0.020833151414990425f));
  p = fma(p, r, set(0.1249999850988388f));
  p = fma(p, r, set(-0.5f));
  p = fma(p, r, set(1.0f));
  const Floats root = floats_of(add(bits_of(p), shift_left<23>(bits_of(shifted))));
  return mul(root, root);
}
