// What both ways to search share, written in the lanes of simd/. Included inside a namespace of
// its own for each instruction set. Scores only choose candidates, so their rounding may differ
// from one instruction set to another; the results do not.

// The square of exact_square(), in the same order: lane l of acc[v] is part 8 v + l.
template <class X, class Y>
FASTEBM_TARGET double square_of(const X* x, const Y* y, int64_t dim, float scale, float offset) {
  typedef double Eight __attribute__((vector_size(64), aligned(8), may_alias));
  constexpr int kEights = kSquareParts / 8;
  Eight acc[kEights] = {};
  double a[kSquareParts], b[kSquareParts];
  int64_t i = 0;
  for (; i + kSquareParts <= dim; i += kSquareParts) {
    for (int l = 0; l < kSquareParts; ++l) a[l] = static_cast<double>(x[i + l]);
    for (int l = 0; l < kSquareParts; ++l) b[l] = reference_value(y[i + l], scale, offset);
    for (int v = 0; v < kEights; ++v) {
      const Eight difference =
          *reinterpret_cast<Eight*>(a + 8 * v) - *reinterpret_cast<Eight*>(b + 8 * v);
      acc[v] += difference * difference;
    }
  }
  double part[kSquareParts];
  std::memcpy(part, acc, sizeof part);
  for (; i < dim; ++i) {
    const double difference = static_cast<double>(x[i]) - reference_value(y[i], scale, offset);
    part[i % kSquareParts] += difference * difference;
  }
  return fold_parts(part);
}

// A vector of references, as reference_value() gives them.
template <class Y>
FASTEBM_TARGET inline Floats load_reference(const Y* y, float scale, float offset) {
  if constexpr (std::is_same_v<Y, uint8_t>)
    return add(mul(load_bytes(y), set(scale)), set(offset));
  else
    return load(y);
}

// The exact square of a query of the block and reference j, to the query's list.
template <class X, class Y>
FASTEBM_TARGET void rescore_pair(const NeighborParams& p, const QueryBlock& block,
                                 const CandidateLists& slice, int q, int64_t j) {
  const X* x = static_cast<const X*>(p.x) + block.row(q) * p.dim;
  const Y* y = static_cast<const Y*>(p.y) + j * p.dim;
  add_neighbor(slice.lists + q * p.k, p.k, {square_of(x, y, p.dim, p.y_scale, p.y_offset), j});
}
