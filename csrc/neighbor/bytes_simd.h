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

// The queries of a panel: words to block.x, less 128, and what the bounds need.
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

// The least square of each lane's query among rows [0, rows), to `least`; and one that k of them
// have at most: the largest of the least ones of k classes of rows.
FASTEBM_TARGET inline Floats least_squares(const float* scores, int rows, int k, Floats* kth) {
  Floats least = set(HUGE_VALF), most = set(0.0f);
  for (int c = 0; c < k; ++c) {
    Floats of_class = set(HUGE_VALF);
    for (int r = c; r < rows; r += k) of_class = min(load(scores + r * kBytePanel), of_class);
    least = min(of_class, least);
    most = max(of_class, most);
  }
  *kth = most;
  return least;
}

// What a tile's references add to a query's limit.
struct RowLimits {
  float each[kByteRows];
  float largest;  // but for NaN
};

// For each query: calls near(query, square), k references of the tile having at most that square;
// then, for each pair that the limits do not rule out, take(query, reference of the tile, square).
// Both may lower the query's limit.
template <class Near, class Take>
FASTEBM_TARGET void candidates_of_bytes(const float* scores, int queries, int rows, int k,
                                        const RowLimits& row, const float* limits, Near&& near,
                                        Take&& take) {
  for (int q = 0; q < queries; q += kLanes) {
    const float* at = scores + q / kBytePanel * kByteRows * kBytePanel + q % kBytePanel;
    const auto hits = [&](Floats square, float row_limit) FASTEBM_TARGET {
      const Floats reach = add(load(limits + q), set(row_limit));
      return not_greater(square, max(mul(reach, reach), set(-1.0f)));  // -1 for a NaN
    };
    Floats kth;
    const Floats least = least_squares(at, rows, k, &kth);
    unsigned lanes = hits(least, row.largest);
    if (__builtin_expect(lanes == 0, 1)) continue;
    alignas(64) float squares[kLanes];
    store(squares, kth);
    for (; lanes; lanes &= lanes - 1) {
      const int l = __builtin_ctz(lanes);
      near(q + l, squares[l]);
    }
    for (int r = 0; r < rows; ++r) {
      const Floats square = load(at + r * kBytePanel);
      lanes = hits(square, row.each[r]);
      if (__builtin_expect(lanes == 0, 1)) continue;
      store(squares, square);
      for (; lanes; lanes &= lanes - 1) {
        const int l = __builtin_ctz(lanes);
        take(q + l, r, squares[l]);
      }
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

// References that a query may not choose are infinitely far: those with a NaN, and one to skip.
inline void drop_references(const NeighborParams& p, const ByteBlock& block, const ByteSlice& slice,
                            int64_t first, int rows, const float* residuals) {
  const auto drop = [&](int q, int64_t r) {
    slice.scores[(q / kBytePanel * kByteRows + r) * kBytePanel + q % kBytePanel] = HUGE_VALF;
  };
  for (int r = 0; r < rows; ++r)
    for (int q = 0; std::isnan(residuals[r]) && q < block.queries; ++q) drop(q, r);
  for (int q = 0; p.skip && q < block.queries; ++q) {
    const int64_t r = p.skip[block.row(q)] - first;
    if (r >= 0 && r < rows) drop(q, r);
  }
}

// References [begin, end) against the queries of a block; neighbours go to the slice's lists.
template <class X, class Y>
FASTEBM_TARGET void search_byte_slice(const NeighborParams& p, const ByteBlock& block,
                                      const ByteSlice& slice, int64_t begin, int64_t end) {
  const ByteBounds bounds(p.dim);
  const auto rescore = [&](int q, int64_t j) { rescore_pair<X, Y>(p, block, slice, q, j); };
  int many = 0;  // queries with many references rescored
  slice.start(block.queries);
  std::fill_n(slice.rescored, block.queries, 0);
  for (int q = 0; q < block.panels * kBytePanel; ++q)
    slice.limits[q] = q < block.queries ? block.residuals[q] + HUGE_VALF : NAN;
  for (int64_t first = begin; first < end; first += kByteRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kByteRows, end - first));
    float residuals[kByteRows];
    score_tile<Y>(p, block, slice, rows, [=](int r) { return first + r; }, residuals);
    RowLimits row{};
    float largest = 0;  // of the residuals
    for (int r = 0; r < rows; ++r) {
      row.each[r] = bounds.limit(residuals[r]);
      if (residuals[r] > largest) largest = residuals[r];
    }
    row.largest = bounds.limit(largest);
    drop_references(p, block, slice, first, rows, residuals);
    const auto set_limit = [&](int q) {
      slice.limits[q] = bounds.limit(double{slice.thresholds[q]} + block.residuals[q]);
    };
    candidates_of_bytes(
        slice.scores, block.queries, rows, p.k, row, slice.limits,
        [&](int q, float square) {
          if (q >= block.queries || slice.rescored[q] == kGivenUp) return;
          slice.lower_threshold(q, bounds.upper(square, block.residuals[q], largest));
          set_limit(q);
        },
        [&](int q, int r, float square) {
          if (q >= block.queries || slice.rescored[q] == kGivenUp || square == HUGE_VALF) return;
          const float own = block.residuals[q];
          const int rescored = slice.take(q, first + r, bounds.lower(square, own, residuals[r]),
                                          bounds.upper(square, own, residuals[r]), rescore);
          const int64_t are_many = many_rescored(p, first - begin);
          many += slice.rescored[q] <= are_many && slice.rescored[q] + rescored > are_many;
          slice.rescored[q] += rescored;
          set_limit(q);
          if (slice.rescored[q] > most_rescored(p, first - begin, many)) {
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
