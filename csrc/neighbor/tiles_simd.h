// Larger samples: scores |y'|^2 - 2 x'.y' of centred samples, tile by tile as in a matrix product,
// with a bound on their error. Pairs that the bound does not rule out are rescored exactly.
// Included for each instruction set, after neighbor/simd.h.

// The componentwise median of the means of three groups of queries, about ten in each: one far-off
// query does not move it.
template <class X>
FASTEBM_TARGET void center_queries(const NeighborParams& p, const TileBlock& block) {
  float* sums = block.center;
  std::fill_n(sums, 3 * p.dim, 0.0f);
  const int each = std::clamp(block.queries / 3, 1, 10);
  for (int q = 0; q < 3 * each; ++q) {
    const int64_t chosen = block.row(q * block.queries / (3 * each));
    const X* x = static_cast<const X*>(p.x) + chosen * p.dim;
    float* sum = sums + q / each * p.dim;
    for (int64_t i = 0; i < p.dim; ++i) sum[i] += static_cast<float>(x[i]);
  }
  const float scale = 1.0f / static_cast<float>(each);
  for (int64_t i = 0; i < p.dim; ++i) {
    const float a = sums[i], b = sums[p.dim + i], c = sums[2 * p.dim + i];
    const float low = a < b ? a : b, high = a < b ? b : a;
    const float median = scale * (c < low ? low : c < high ? c : high);
    sums[i] = median - median == 0 ? median : 0.0f;  // not a NaN or an infinity
  }
}

template <class X>
FASTEBM_TARGET void query_slopes(const NeighborParams& p, const TileBlock& block, int panel) {
  for (int q = panel * kPanel; q < (panel + 1) * kPanel; ++q) {
    double square = 0;
    if (q < block.queries) {
      const X* x = static_cast<const X*>(p.x) + block.row(q) * p.dim;
      float parts[32] = {};
      int64_t i = 0;
      for (; i + 32 <= p.dim; i += 32)
        for (int l = 0; l < 32; ++l) {
          const float v = centred(x[i + l], block.center[i + l]);
          parts[l] += v * v;
        }
      for (; i < p.dim; ++i) {
        const double v = centred(x[i], block.center[i]);
        square += v * v;
      }
      for (const float part : parts) square += part;
    }
    block.slopes[q] = query_slope(square, p.dim);
    block.slacks[q] = query_slack(square, p.dim);
  }
}

// Elements [k, k + kDepth) of the queries of a panel, centred and transposed, to out (kDepth,
// kPanel).
template <class X>
FASTEBM_TARGET void pack_queries(const NeighborParams& p, const TileBlock& block, int64_t k,
                                 int panel, float* out) {
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  typedef int Order __attribute__((vector_size(16)));
  const int depth = static_cast<int>(std::min<int64_t>(kDepth, p.dim - k));
  const float* center = block.center + k;
  for (int q = 0; q < kPanel; q += 4, out += 4) {
    const int first = panel * kPanel + q, count = std::clamp(block.queries - first, 0, 4);
    const X* x[4];  // the last query's for those that are not there
    for (int r = 0; r < 4; ++r)
      x[r] = static_cast<const X*>(p.x) +
             block.row(std::min(first + r, block.queries - 1)) * p.dim + k;
    int i = 0;
    for (; count == 4 && i + 4 <= depth; i += 4) {
      Four row[4];
      for (int r = 0; r < 4; ++r)
        for (int l = 0; l < 4; ++l) row[r][l] = centred(x[r][i + l], center[i + l]);
      const Four a = __builtin_shuffle(row[0], row[1], Order{0, 4, 1, 5});
      const Four b = __builtin_shuffle(row[0], row[1], Order{2, 6, 3, 7});
      const Four c = __builtin_shuffle(row[2], row[3], Order{0, 4, 1, 5});
      const Four d = __builtin_shuffle(row[2], row[3], Order{2, 6, 3, 7});
      Four* to = reinterpret_cast<Four*>(out + i * kPanel);
      to[0] = __builtin_shuffle(a, c, Order{0, 1, 4, 5});
      to[kPanel / 4] = __builtin_shuffle(a, c, Order{2, 3, 6, 7});
      to[2 * kPanel / 4] = __builtin_shuffle(b, d, Order{0, 1, 4, 5});
      to[3 * kPanel / 4] = __builtin_shuffle(b, d, Order{2, 3, 6, 7});
    }
    for (; i < depth; ++i)
      for (int r = 0; r < 4; ++r)
        out[i * kPanel + r] = r < count ? centred(x[r][i], center[i]) : 0.0f;
  }
}

// `count` elements of a reference, centred; returns the sum of their squares.
template <class Y>
FASTEBM_TARGET double pack_reference(const Y* y, const float* center, int count, float scale,
                                     float offset, float* out) {
  int i = 0;
  Floats squares = set(0.0f);
  if constexpr (!std::is_same_v<Y, double>) {
    for (; i + kLanes <= count; i += kLanes) {
      const Floats v = sub(load_reference(y + i, scale, offset), load(center + i));
      store(out + i, v);
      squares = fma(v, v, squares);
    }
  }
  double total = sum(squares);  // the rest, or all of a float64 sample, in float64
  for (; i < count; ++i) {
    out[i] = static_cast<float>(reference_value(y[i], scale, offset) - center[i]);
    total += static_cast<double>(out[i]) * out[i];
  }
  return total;
}

// c[r][q] (+)= sum over k < depth of y[r][k] x[k][q], for kRows references and two vectors of
// queries: 2 kRows accumulators in registers, two loads and kRows broadcasts a k.
FASTEBM_TARGET inline void multiply(const float* y, const float* x, int depth, bool first,
                                    float* c) {
  Floats acc[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = set(0.0f);
  for (int k = 0; k < depth; ++k) {
    const Floats x0 = load(x + k * kPanel), x1 = load(x + k * kPanel + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Floats v = set(y[r * kPitch + k]);
      acc[r][0] = fma(v, x0, acc[r][0]);
      acc[r][1] = fma(v, x1, acc[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* at = c + r * kPanel;
    store(at, first ? acc[r][0] : add(load(at), acc[r][0]));
    store(at + kLanes, first ? acc[r][1] : add(load(at + kLanes), acc[r][1]));
  }
}

// Products of one tile of references with every panel of queries, over `depth` elements. Meanwhile
// kDepth elements at `next` of each row, `pitch` apart, come nearer: by the time they are packed
// they are in the cache, and the products have hidden how long that took.
template <class Y>
FASTEBM_TARGET void multiply_tile(const float* y, const float* x, int panels, int rows, int depth,
                                  bool first, float* c, const Y* next, int64_t pitch) {
  static_assert(kTileRows % kRows == 0 && kPanel % (2 * kLanes) == 0, "whole micro-tiles");
  constexpr int kLine = 64 / static_cast<int>(sizeof(Y));
  for (int panel = 0; panel < panels; ++panel)
    for (int r = 0; r < rows; r += kRows) {
      for (int line = panel; line < kDepth / kLine; line += panels)
        for (int i = 0; i < kRows; ++i)
          __builtin_prefetch(next + (r + i) * pitch + line * kLine, 0, 2);
      for (int q = 0; q < kPanel; q += 2 * kLanes)
        multiply(y + r * kPitch, x + panel * kDepth * kPanel + q, depth, first,
                 c + (panel * kTileRows + r) * kPanel + q);
    }
}

// Calls take(query, reference of the tile, lower, upper) for each pair whose lower bound of the
// score is not above the query's threshold, which take() may lower; also where it is NaN.
template <class Take>
FASTEBM_TARGET void candidates_of_tile(const float* c, int panels, int rows, const TileRow* row,
                                       const float* slopes, const float* thresholds, Take&& take) {
  for (int q = 0; q < panels * kPanel; q += kLanes) {
    const float* at = c + q / kPanel * kTileRows * kPanel + q % kPanel;
    const Floats slope = load(slopes + q);
    Floats threshold = load(thresholds + q);
    for (int r = 0; r < rows; ++r) {
      const Floats score = fma(set(-2.0f), load(at + r * kPanel), set(row[r].square));
      const Floats error = fma(slope, set(row[r].norm), set(row[r].error));
      const Floats lower = sub(score, error);
      unsigned hits = not_greater(lower, threshold);
      if (__builtin_expect(hits == 0, 1)) continue;
      alignas(64) float lowers[kLanes], uppers[kLanes];
      store(lowers, lower);
      store(uppers, add(score, error));
      for (; hits; hits &= hits - 1) {
        const int l = __builtin_ctz(hits);
        take(q + l, r, lowers[l], uppers[l]);
      }
      threshold = load(thresholds + q);
    }
  }
}

// References [begin, end) against the queries of a block; neighbours go to the slice's lists.
template <class X, class Y>
FASTEBM_TARGET void search_slice(const NeighborParams& p, const TileBlock& block,
                                 const TileSlice& slice, int64_t begin, int64_t end) {
  const Y* y = static_cast<const Y*>(p.y);
  const auto rescore = [&](int q, int64_t j) { rescore_pair<X, Y>(p, block, slice, q, j); };
  const auto skips = [&](int q, int64_t j) { return p.skip && p.skip[block.row(q)] == j; };
  slice.start(block.queries);
  // A panel's queries that are not there have no candidates.
  std::fill(slice.thresholds + block.queries, slice.thresholds + block.panels * kPanel, -HUGE_VALF);
  if (block.queries <= kFewQueries || p.dim == 0) {  // a panel would be (mostly) empty
    for (int64_t j = begin; j < end; ++j)
      for (int q = 0; q < block.queries; ++q)
        if (!skips(q, j)) rescore(q, j);
    return;
  }
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kTileRows, end - first));
    double squares[kTileRows] = {};
    for (int64_t k = 0; k < p.dim; k += kDepth) {
      const int depth = static_cast<int>(std::min<int64_t>(kDepth, p.dim - k));
      for (int r = 0; r < rows; ++r)
        squares[r] += pack_reference(y + (first + r) * p.dim + k, block.center + k, depth,
                                     p.y_scale, p.y_offset, slice.y + r * kPitch);
      const float* packed = block.x + k * block.panels * kPanel;
      if (!block.whole) {
        for (int panel = 0; panel < block.panels; ++panel)
          pack_queries<X>(p, block, k, panel, slice.x + panel * kDepth * kPanel);
        packed = slice.x;
      }
      // The next depth of the same rows, or the first of the next tile's.
      const int64_t ahead = k + kDepth < p.dim ? k + kDepth : kTileRows * p.dim;
      multiply_tile(slice.y, packed, block.panels, rows, depth, k == 0, slice.scores,
                    y + first * p.dim + ahead, p.dim);
    }
    TileRow row[kTileRows];
    for (int r = 0; r < rows; ++r) row[r] = tile_row(squares[r], p.dim);
    candidates_of_tile(slice.scores, block.panels, rows, row, block.slopes, slice.thresholds,
                       [&](int q, int r, float lower, float upper) {
                         if (q < block.queries && !skips(q, first + r))
                           slice.take(q, first + r, lower, upper + block.slacks[q], rescore);
                       });
  }
  for (int q = 0; q < block.queries; ++q) slice.finish(q, rescore);
}

template <class X, class Y>
void tile_search(const NeighborParams& p, const Queries& all, const TileScratch& scratch,
                 const ParallelFor& parallel_for) {
  const int64_t tiles = (p.m + kTileRows - 1) / kTileRows;
  const int64_t slices = static_cast<int64_t>(scratch.slices.size());
  for (int64_t q0 = 0; q0 < all.count; q0 += kBlockQueries) {
    TileBlock block = scratch.block;
    block.hold(all.part(q0, std::min<int64_t>(kBlockQueries, all.count - q0)));
    block.panels = (block.queries + kPanel - 1) / kPanel;
    if (block.queries > kFewQueries) {
      center_queries<X>(p, block);
      parallel_for(block.panels, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
          query_slopes<X>(p, block, static_cast<int>(panel));
          for (int64_t k = 0; block.whole && k < p.dim; k += kDepth)
            pack_queries<X>(p, block, k, static_cast<int>(panel),
                            block.x + (k * block.panels + panel * kDepth) * kPanel);
        }
      });
    }
    parallel_for(slices, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s)
        search_slice<X, Y>(p, block, scratch.slices[s], s * tiles / slices * kTileRows,
                           std::min((s + 1) * tiles / slices * kTileRows, p.m));
    });
    merge_and_store<X>(p, block, scratch.slices);
  }
}
