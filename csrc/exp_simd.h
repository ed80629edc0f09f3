// exp(-y) for vectors of y >= 0. Included for each instruction set, inside its namespace.

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
