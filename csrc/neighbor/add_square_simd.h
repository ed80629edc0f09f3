// From products to squares of distances. Included for each instruction set, before the products.

// c[l] (+)= squares[l] + sum - 2 dots[l], rounded once.
FASTEBM_TARGET inline void add_square(Ints dots, int32_t sum, const int32_t* squares, bool first,
                                      float* c) {
  const Ints norms = add(load_ints(squares), set_int(sum));
  const Floats square = to_float(sub(norms, shift_left<1>(dots)));
  store(c, first ? square : add(load(c), square));
}
