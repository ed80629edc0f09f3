// Samples put on the grid, products of bytes, candidates. Included for each instruction set, after
// neighbor/simd.h and the products of bytes (words_simd.h, vnni_simd.h).

// kLanes elements, off the centre.
template <class T>
FASTEBM_TARGET inline Floats load_centred(const T* v, const float* center) {
  if constexpr (std::is_same_v<T, double>) {
    float narrow[kLanes];
    for (int l = 0; l < kLanes; ++l) narrow[l] = centred(v[l], center[l]);
    return load(narrow);
  } else {
    return sub(load(v), load(center));
  }
}

// `count` elements on the grid; returns the sum of the squares of what is between them and it.
template <class T>
FASTEBM_TARGET double quantize(const T* v, const float* center, float inverse, int count,
                               uint8_t* out) {
  constexpr float kRound = 0x1.8p23f;  // added and taken away: rounds
  Floats squares = set(0.0f);
  const auto quantize_lanes = [&](Floats centred, uint8_t* to) FASTEBM_TARGET {
    const Floats g = mul(centred, set(inverse));
    const Floats inside = max(min(g, set(255.0f)), set(0.0f));  // 255 for a NaN
    const Floats shifted = add(inside, set(kRound));
    store_low_bytes(to, bits_of(shifted));
    const Floats rest = sub(g, sub(shifted, set(kRound)));
    squares = fma(rest, rest, squares);
  };
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) quantize_lanes(load_centred(v + i, center + i), out + i);
  if (i < count) {
    float last[kLanes] = {};
    uint8_t bytes[kLanes];
    for (int l = 0; i + l < count; ++l) last[l] = centred(widen(v[i + l]), center[i + l]);
    quantize_lanes(load(last), bytes);
    std::copy_n(bytes, count - i, out + i);
  }
  return sum(squares);
}

// The queries of a panel: words to block.x, less 128 where the references have none off them, and
// what the bounds need.
template <class X>
FASTEBM_TARGET void pack_byte_queries(const NeighborParams& p, const ByteBlock& block, int panel,
                                      uint8_t* bytes) {
  Word* packed = static_cast<Word*>(block.x);
  const int64_t all = int64_t{block.panels} * kBytePanel;
  for (int q = panel * kBytePanel; q < std::min((panel + 1) * kBytePanel, block.queries); ++q) {
    const X* x = static_cast<const X*>(p.x) + block.row(q) * p.dim;
    double residual = 0;
    for (int64_t k = 0; k < p.dim; k += kByteDepth) {
      const int depth = static_cast<int>(std::min<int64_t>(kByteDepth, p.dim - k));
      const int width = static_cast<int>(byte_width(depth));
      residual += quantize(x + k, block.grid.center + k, block.grid.inverse, depth, bytes);
      std::fill(bytes + depth, bytes + (depth + kPer - 1) / kPer * kPer, uint8_t{0});
      int32_t square = 0;
      for (int i = 0; i < depth; ++i) square += int32_t{bytes[i]} * bytes[i];
      block.squares[k / kByteDepth * all + q] = square;
      Word* to = packed + k * all + int64_t{panel} * width * kBytePanel + q % kBytePanel * kPer;
      for (int i = 0; i < depth; i += kPer, to += kBytePanel * kPer)
        for (int e = 0; e < kPer; ++e) to[e] = static_cast<Word>(bytes[i + e] - 128);
    }
    block.residuals[q] = byte_residual(residual, p.dim);
  }
}

// Products of one tile of references with every query, over `depth` elements of one
// block of them: squares of distances, to scores or, but for the first depth, on top of them.
FASTEBM_TARGET inline void multiply_byte_tile(const Word* y, const Word* x, int queries, int rows,
                                              int depth, const int32_t* sums,
                                              const int32_t* squares, bool first, float* scores) {
  static_assert(kByteRows % kRows == 0 && kBytePanel % (2 * kLanes) == 0, "whole micro-tiles");
  [[maybe_unused]] const ProductUnit unit;
  for (int first_query = 0; first_query < queries; first_query += kBytePanel)
    for (int r = 0; r < rows; r += kRows)
      multiply_rows(y + r * kBytePitch, x + int64_t{first_query} * depth, depth,
                    std::min(kBytePanel, queries - first_query), sums + r, squares + first_query,
                    first, scores + (first_query / kBytePanel * kByteRows + r) * kBytePanel);
}

// Calls take(query, reference of the tile, square) for each pair that the limits do not rule out;
// take() may lower the query's.
template <class Take>
FASTEBM_TARGET void candidates_of_bytes(const float* scores, int queries, int rows,
                                        const float* row_limits, const float* limits, Take&& take) {
  for (int q = 0; q < queries; q += kLanes) {
    const float* at = scores + q / kBytePanel * kByteRows * kBytePanel + q % kBytePanel;
    Floats limit = load(limits + q);
    for (int r = 0; r < rows; ++r) {
      const Floats square = load(at + r * kBytePanel), reach = add(limit, set(row_limits[r]));
      const Floats most = max(mul(reach, reach), set(-1.0f));  // -1 for a NaN
      unsigned hits = not_greater(square, most);
      if (__builtin_expect(hits == 0, 1)) continue;
      alignas(64) float squares[kLanes];
      store(squares, square);
      for (; hits; hits &= hits - 1) {
        const int l = __builtin_ctz(hits);
        take(q + l, r, squares[l]);
      }
      limit = load(limits + q);
    }
  }
}

// Rows of references, chosen by row(r), to a tile: elements [k, k + depth). Adds to residuals.
template <class Y, class Row>
FASTEBM_TARGET void lay_tile(const NeighborParams& p, const ByteGrid& grid, const ByteSlice& slice,
                             int rows, const Row& row, int64_t k, int depth, int32_t* sums,
                             double* residuals) {
  const Y* y = static_cast<const Y*>(p.y) + k;
  for (int r = 0; r < rows; ++r) {
    Word* to = static_cast<Word*>(slice.y) + r * kBytePitch;
    const Y* from = y + row(r) * p.dim;
    if constexpr (std::is_same_v<Y, uint8_t>) {
      sums[r] = lay_row(from, depth, to);
    } else {
      residuals[r] += quantize(from, grid.center + k, grid.inverse, depth, slice.bytes);
      sums[r] = lay_row(slice.bytes, depth, to);
    }
  }
}

// Squares of distances of the block's queries to the references row(r), to slice.scores, and the
// references' residuals.
template <class Y, class Row>
FASTEBM_TARGET void score_tile(const NeighborParams& p, const ByteBlock& block,
                               const ByteSlice& slice, int rows, const Row& row,
                               float* row_residuals) {
  double residuals[kByteRows] = {};
  for (int64_t k = 0; k < p.dim; k += kByteDepth) {
    const int depth = static_cast<int>(std::min<int64_t>(kByteDepth, p.dim - k));
    int32_t sums[kByteRows] = {};
    lay_tile<Y>(p, block.grid, slice, rows, row, k, depth, sums, residuals);
    const int64_t all = int64_t{block.panels} * kBytePanel;
    multiply_byte_tile(static_cast<const Word*>(slice.y),
                       static_cast<const Word*>(block.x) + k * all, block.queries, rows,
                       static_cast<int>(byte_width(depth)), sums,
                       block.squares + k / kByteDepth * all, k == 0, slice.scores);
  }
  for (int r = 0; r < rows; ++r)
    row_residuals[r] =
        std::is_same_v<Y, uint8_t> ? block.grid.row_residual : byte_residual(residuals[r], p.dim);
}

// References [begin, end) against the queries of a block; neighbours go to the slice's lists.
template <class X, class Y>
FASTEBM_TARGET void search_byte_slice(const NeighborParams& p, const ByteBlock& block,
                                      const ByteSlice& slice, int64_t begin, int64_t end) {
  const ByteBounds bounds(p.dim);
  const auto rescore = [&](int q, int64_t j) { rescore_pair<X, Y>(p, block, slice, q, j); };
  slice.start(block.queries);
  std::fill_n(slice.rescored, block.queries, 0);
  for (int q = 0; q < block.panels * kBytePanel; ++q)
    slice.limits[q] = q < block.queries ? block.residuals[q] + HUGE_VALF : NAN;
  for (int64_t first = begin; first < end; first += kByteRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kByteRows, end - first));
    float residuals[kByteRows], row_limits[kByteRows];
    score_tile<Y>(p, block, slice, rows, [=](int r) { return first + r; }, residuals);
    for (int r = 0; r < rows; ++r) row_limits[r] = bounds.limit(residuals[r]);
    candidates_of_bytes(slice.scores, block.queries, rows, row_limits, slice.limits,
                        [&](int q, int r, float square) {
                          const int64_t j = first + r;
                          if (q >= block.queries || slice.rescored[q] == kGivenUp) return;
                          if (p.skip && p.skip[block.row(q)] == j) return;
                          const float own = block.residuals[q];
                          const int rescored =
                              slice.take(q, j, bounds.lower(square, own, residuals[r]),
                                         bounds.upper(square, own, residuals[r]), rescore);
                          slice.limits[q] = bounds.limit(double{slice.thresholds[q]} + own);
                          slice.rescored[q] += rescored;
                          if (rescored && slice.rescored[q] > most_rescored(p, j - begin)) {
                            slice.rescored[q] = kGivenUp;
                            slice.limits[q] = NAN;
                          }
                        });
  }
  for (int q = 0; q < block.queries; ++q)
    if (slice.rescored[q] != kGivenUp) slice.finish(q, rescore);
}

template <class X>
FASTEBM_TARGET void pack_block(const NeighborParams& p, const ByteBlock& block,
                               const ParallelFor& parallel_for) {
  parallel_for(block.panels, [&](int64_t begin, int64_t end) {
    uint8_t bytes[kByteDepth];
    for (int64_t panel = begin; panel < end; ++panel)
      pack_byte_queries<X>(p, block, static_cast<int>(panel), bytes);
  });
}
