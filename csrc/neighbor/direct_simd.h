// Small samples: the squares of differences to every reference, in the compute type. Only minima of
// kChunk references leave the registers; what could hold a neighbour is then rescored exactly.
// Included for each instruction set, after simd/.

template <class C>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = Floats;
  static constexpr int lanes = kLanes;
};
template <>
struct VectorOf<double> {
  using type = Doubles;
  static constexpr int lanes = kLanes / 2;
};

// Smallest squares of kQueries queries x (kQueries, D) to the references of a block, y (D, pitch):
// chunk c holds kChunk vectors of references, and entry c * lanes + l of mins[q] is the minimum of
// the kChunk references in lane l. A NaN is no minimum.
template <class C, int D>
FASTEBM_TARGET void direct_minima(const C* x, const C* y, int64_t pitch, int64_t chunks,
                                  C* const* mins) {
  using V = typename VectorOf<C>::type;
  constexpr int kWidth = VectorOf<C>::lanes;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    V best[kQueries];
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) best[q] = set(static_cast<C>(HUGE_VAL));
    for (int v = 0; v < kChunk; ++v) {
      const C* at = y + (chunk * kChunk + v) * kWidth;
      V square[kQueries];
#pragma GCC unroll 16
      for (int i = 0; i < D; ++i) {
        const V reference = load(at + i * pitch);
#pragma GCC unroll 8
        for (int q = 0; q < kQueries; ++q) {
          const V difference = sub(set(x[q * D + i]), reference);
          square[q] = i == 0 ? mul(difference, difference) : fma(difference, difference, square[q]);
        }
      }
#pragma GCC unroll 8
      for (int q = 0; q < kQueries; ++q) best[q] = min_square(square[q], best[q]);
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) store(mins[q] + chunk * kWidth, best[q]);
  }
}

template <class C>
FASTEBM_TARGET void direct_minima(int dim, const C* x, const C* y, int64_t pitch, int64_t chunks,
                                  C* const* mins) {
  visit_small_dim(dim, [&](auto d) { direct_minima<C, d.value>(x, y, pitch, chunks, mins); });
}

// Calls f(entry) for each of n entries that are not above the threshold, which f may lower.
template <class C, class F>
FASTEBM_TARGET void for_each_not_above(const C* values, int64_t n, const C& threshold, F&& f) {
  constexpr int kWidth = VectorOf<C>::lanes;
  for (int64_t e = 0; e < n; e += kWidth)
    for (unsigned hits = not_greater(load(values + e), set(threshold)); hits; hits &= hits - 1)
      f(e + __builtin_ctz(hits));
}

// The k-th smallest of n values, none a NaN.
template <class C>
FASTEBM_TARGET C kth_smallest(const C* values, int64_t n, int k) {
  if (k == 1) {  // without a branch on the values
    auto least = load(values);
    for (int64_t e = VectorOf<C>::lanes; e < n; e += VectorOf<C>::lanes)
      least = min(load(values + e), least);
    return lowest(least);
  }
  SmallestK<C> smallest(k);
  for_each_not_above(values, n, smallest.largest(), [&](int64_t e) { smallest.add(values[e]); });
  return smallest.largest();
}

// References [begin, end) of the block at `first` as (dim, pitch) of C; infinity from `count` on.
template <class C, class Y>
FASTEBM_TARGET void transpose_references(const NeighborParams& p, int64_t first, int64_t begin,
                                         int64_t end, int64_t count, C* out, int64_t pitch) {
  const Y* y = static_cast<const Y*>(p.y) + first * p.dim;
  for (int64_t j = begin; j < end; ++j)
    for (int64_t i = 0; i < p.dim; ++i)
      out[i * pitch + j] =
          j < count ? static_cast<C>(reference_value(y[j * p.dim + i], p.y_scale, p.y_offset))
                    : static_cast<C>(HUGE_VAL);
}

// The queries [query, query + count) of a group against the transposed block of references.
template <class X, class Y>
FASTEBM_TARGET void search_group(const NeighborParams& p, int64_t query, int count, int64_t first,
                                 int64_t references, const X* y, int64_t pitch, Neighbor* lists) {
  constexpr int kWidth = VectorOf<X>::lanes;
  const int64_t chunks = (references + kChunk * kWidth - 1) / (kChunk * kWidth);
  const int64_t entries = chunks * kWidth;
  alignas(64) X x[kQueries * kSmallDim], minima[kQueries][kDirectReferences / kChunk];
  X* mins[kQueries];
  for (int q = 0; q < kQueries; ++q) {
    const X* from = static_cast<const X*>(p.x) + (query + std::min(q, count - 1)) * p.dim;
    for (int64_t i = 0; i < p.dim; ++i) x[q * p.dim + i] = from[i];
    mins[q] = minima[q];
  }
  direct_minima<X>(static_cast<int>(p.dim), x, y, pitch, chunks, mins);

  for (int q = 0; q < count; ++q) {
    Neighbor* list = lists + q * p.k;
    X* own = minima[q];
    // The entry of the reference to skip sets no threshold. What it holds is still a lower bound.
    const int64_t skip = p.skip ? p.skip[query + q] - first : -1;
    const bool skips = skip >= 0 && skip < references;
    const int64_t entry = skip / (kChunk * kWidth) * kWidth + skip % kWidth;
    const X kept = skips ? own[entry] : X(0);
    if (skips) own[entry] = static_cast<X>(HUGE_VAL);
    // What was found in blocks before is as good a bound as the block's own, and known.
    const double found = list[p.k - 1].square;
    const X kth = found < HUGE_VAL ? X(HUGE_VAL) : kth_smallest(own, entries, p.k);
    if (skips) own[entry] = kept;
    const X threshold = direct_threshold(kth, found, p.dim);
    for_each_not_above(own, entries, threshold, [&](int64_t e) {
      const int64_t at = e / kWidth * kChunk * kWidth + e % kWidth;
      rescore_small<X, Y>(p, query + q, first + at, kWidth, first + references, list);
    });
  }
}

template <class X, class Y>
void direct_search(const NeighborParams& p, const DirectScratch<X>& scratch,
                   const ParallelFor& parallel_for) {
  constexpr int64_t kWhole = kChunk * VectorOf<X>::lanes;
  for (int64_t q0 = 0; q0 < p.n; q0 += kDirectQueries) {
    const int64_t queries = std::min(kDirectQueries, p.n - q0);
    for (int64_t q = 0; q < queries; ++q) clear_neighbors(scratch.lists + q * p.k, p.k);
    for (int64_t first = 0; first < p.m; first += kDirectReferences) {
      const int64_t references = std::min(kDirectReferences, p.m - first);
      parallel_for((references + kWhole - 1) / kWhole, [&](int64_t begin, int64_t end) {
        transpose_references<X, Y>(p, first, begin * kWhole, end * kWhole, references, scratch.y,
                                   scratch.pitch);
      });
      parallel_for((queries + kQueries - 1) / kQueries, [&](int64_t begin, int64_t end) {
        for (int64_t q = begin * kQueries; q < std::min(end * kQueries, queries); q += kQueries)
          search_group<X, Y>(p, q0 + q, static_cast<int>(std::min<int64_t>(kQueries, queries - q)),
                             first, references, scratch.y, scratch.pitch, scratch.lists + q * p.k);
      });
    }
    for (int64_t q = 0; q < queries; ++q) store_neighbors<X>(p, q0 + q, scratch.lists + q * p.k);
  }
}
