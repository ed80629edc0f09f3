// Of tiles of samples on a CPU: sums over the elements of each, in the order of launch/rows.h, and
// whether it is in its box. Included for each instruction set, inside its namespace; the compiler
// makes vectors of its loops.

// The partial sums of kCount sums at once.
template <class C, int kCount>
struct Partials {
  alignas(64) C v[kCount][kPartials];

  // Makes room for `threads`, a power of two.
  FASTEBM_TARGET void clear(int threads) {
    for (auto& sum : v) std::fill_n(sum, 4 * threads, C(0));
  }

  // Puts the sums into out[0 .. kCount).
  FASTEBM_TARGET void fold(int threads, C* out) {
    alignas(64) C of[kRowThreads][kCount];  // side by side: their additions go together
    for (int s = 0; s < kCount; ++s)
      for (int j = 0; j < threads; ++j)
        of[j][s] = fold_four(v[s][4 * j], v[s][4 * j + 1], v[s][4 * j + 2], v[s][4 * j + 3]);
    const auto add = [&](int to, int from) FASTEBM_TARGET {
      for (int s = 0; s < kCount; ++s) of[to][s] += of[from][s];
    };
    for (int h = std::min(threads, 32) / 2; h > 0; h /= 2)
      for (int warp = 0; warp < threads; warp += 32)
        for (int i = warp; i < warp + h; ++i) add(i, i + h);
    if (threads > 32) add(0, 32);
    for (int s = 0; s < kCount; ++s) out[s] = of[0][s];
  }
};

// The sum of the products of kDim elements, at most kShortDim.
template <int kDim, class C>
FASTEBM_TARGET inline C short_product(const C* a, const C* b) {
  C v[4] = {};
#pragma GCC unroll 4
  for (int d = 0; d < kDim; ++d) v[d] = a[d] * b[d];
  return fold_four(v[0], v[1], v[2], v[3]);
}

// Into inside[i] whether sample first + i is, of `rows` samples whose elements are at y. kDim: as
// many as dim, or 0 for any number.
template <int kDim, class C>
FASTEBM_TARGET void find_inside(const SampleBox& box, const C* y, int64_t dim, int64_t first,
                                int rows, int32_t* inside) {
  if (kDim > 0) dim = kDim;
  if (!box.lo) {
    for (int i = 0; i < rows; ++i) {
      int32_t outside = 0;
#pragma GCC unroll 4
      for (int64_t d = 0; d < dim; ++d) outside |= !(y[i * dim + d] == y[i * dim + d]);
      inside[i] = !outside;
    }
    return;
  }
  const C* lo = static_cast<const C*>(box.lo) + first * box.stride;
  const C* hi = static_cast<const C*>(box.hi) + first * box.stride;
  for (int i = 0; i < rows; ++i) {
    int32_t outside = 0;
#pragma GCC unroll 4
    for (int64_t d = 0; d < dim; ++d) {
      const C v = y[i * dim + d];
      outside |= !((v >= lo[i * box.stride + d]) & (v <= hi[i * box.stride + d]));
    }
    inside[i] = !outside;
  }
}

// Of those that are accepted x <- y and grad <- grad_y, the same samples of each array. kDim as
// above.
template <int kDim, class C>
FASTEBM_TARGET void accept_rows(int64_t dim, int rows, const int32_t* accepted, C* x, C* grad,
                                const C* y, const C* grad_y) {
  if constexpr (kDim > 0) {
    for (int i = 0; i < rows * kDim; ++i) {
      x[i] = accepted[i / kDim] ? y[i] : x[i];
      grad[i] = accepted[i / kDim] ? grad_y[i] : grad[i];
    }
    return;
  }
  for (int i = 0; i < rows; ++i) {
    if (!accepted[i]) continue;
    std::copy_n(y + i * dim, dim, x + i * dim);
    std::copy_n(grad_y + i * dim, dim, grad + i * dim);
  }
}
