// What a sample of references and queries says of a search by bytes: the grid, and whether it tells
// them apart. Included for each instruction set, after neighbor/bytes_simd.h.

// Sample s of the references, and of the queries.
inline int64_t sample_reference(const NeighborParams& p, const ByteSample& sample, int s) {
  return p.m * s / sample.references;
}

// The componentwise median of the means of three groups of references, at most ten in each: one
// far-off sample does not move it.
template <class Y>
FASTEBM_TARGET void center_references(const NeighborParams& p, const ByteSample& sample,
                                      float* center) {
  constexpr int kAtOnce = 512;
  const int each = std::clamp(sample.references / 3, 1, 10);
  const float scale = 1.0f / static_cast<float>(each);
  for (int64_t first = 0; first < p.dim; first += kAtOnce) {
    const int count = static_cast<int>(std::min<int64_t>(kAtOnce, p.dim - first));
    float sums[3][kAtOnce] = {};
    for (int s = 0; s < 3 * each; ++s) {
      const int at = s * sample.references / (3 * each);
      const Y* y = static_cast<const Y*>(p.y) + sample_reference(p, sample, at) * p.dim + first;
      float* sum = sums[s / each];
      for (int i = 0; i < count; ++i) sum[i] += widen(y[i]);
    }
    for (int i = 0; i < count; ++i) {
      const float a = sums[0][i], b = sums[1][i], c = sums[2][i];
      const float low = a < b ? a : b, high = a < b ? b : a;
      const float median = scale * (c < low ? low : c < high ? c : high);
      center[first + i] = median - median == 0 ? median : 0.0f;  // not a NaN or an infinity
    }
  }
}

// The largest finite |v - center| of a sample.
template <class T>
FASTEBM_TARGET float farthest(const T* v, const float* center, int64_t dim) {
  float most = 0;
  for (int64_t i = 0; i < dim; ++i) {
    const float off = std::abs(centred(widen(v[i]), center[i]));
    most = off > most && off <= std::numeric_limits<float>::max() ? off : most;
  }
  return most;
}

constexpr float kReaches[] = {1.2f, 0.9f, 0.7f, 0.5f, 0.35f};
constexpr int kReachCount = static_cast<int>(std::size(kReaches));

// Adds to excess[h] the squares of what of |v - center| is beyond kReaches[h] `unit`.
template <class T>
FASTEBM_TARGET void add_excess(const T* v, const float* center, int64_t dim, float unit,
                               double* excess) {
  Floats sums[kReachCount], ends[kReachCount];
  for (int h = 0; h < kReachCount; ++h) sums[h] = set(0.0f), ends[h] = set(kReaches[h] * unit);
  for (int64_t i = 0; i + kLanes <= dim; i += kLanes) {
    const Floats off = abs(load_centred(v + i, center + i));
    for (int h = 0; h < kReachCount; ++h) {
      const Floats beyond = max(sub(off, ends[h]), set(0.0f));
      sums[h] = fma(beyond, beyond, sums[h]);
    }
  }
  for (int h = 0; h < kReachCount; ++h) excess[h] += sum(sums[h]);
}

// The grid of references that are not in uint8: one step for all elements, as large as makes what
// it rounds and what it cuts off together the smallest. False where there is none.
template <class X, class Y>
FASTEBM_TARGET bool float_grid(const NeighborParams& p, const ByteSample& sample, ByteGrid& grid) {
  constexpr int kEach = 8;
  center_references<Y>(p, sample, grid.center);
  const X* x[kEach];
  const Y* y[kEach];
  const int xs = std::min(kEach, sample.queries), ys = std::min(kEach, sample.references);
  float of_x[kEach], of_y[kEach];
  for (int s = 0; s < xs; ++s) {
    x[s] = static_cast<const X*>(p.x) + sample.rows[s * sample.queries / xs] * p.dim;
    of_x[s] = farthest(x[s], grid.center, p.dim);
  }
  for (int s = 0; s < ys; ++s) {
    y[s] = static_cast<const Y*>(p.y) +
           sample_reference(p, sample, s * sample.references / ys) * p.dim;
    of_y[s] = farthest(y[s], grid.center, p.dim);
  }
  std::nth_element(of_x, of_x + xs / 2, of_x + xs);
  std::nth_element(of_y, of_y + ys / 2, of_y + ys);
  const float unit = std::max(of_x[xs / 2], of_y[ys / 2]);
  double excess[kReachCount] = {};
  for (int s = 0; s < xs; ++s) add_excess(x[s], grid.center, p.dim, unit, excess);
  for (int s = 0; s < ys; ++s) add_excess(y[s], grid.center, p.dim, unit, excess);
  double least = HUGE_VAL;
  float reach = kReaches[0] * unit;
  for (int h = 0; h < kReachCount; ++h) {
    const double step = double{kReaches[h]} * unit / 127;
    const double cost = excess[h] + step * step / 12 * static_cast<double>((xs + ys) * p.dim);
    if (cost < least) least = cost, reach = kReaches[h] * unit;
  }
  grid.inverse = 127 / reach;
  const float half = reach * (127.5f / 127);
  for (int64_t i = 0; i < p.dim; ++i) grid.center[i] -= half;
  return grid.inverse > 0 && std::isfinite(grid.inverse) && std::isfinite(half);
}

// Sets the grid; whether it leaves few references to rescore, as far as the sample tells. The
// sample's own k-th nearest stands for the search's, which is nearer.
template <class X, class Y>
FASTEBM_TARGET bool bytes_pay(const NeighborParams& p, ByteScratch& scratch) {
  ByteSample sample = byte_sample(p);
  ByteGrid& grid = scratch.block.grid;
  if constexpr (std::is_same_v<Y, uint8_t>) {
    if (!uint8_grid(p, grid)) return false;
  } else {
    if (!float_grid<X, Y>(p, sample, grid)) return false;
  }
  ByteBlock block = scratch.block;
  block.hold({0, sample.queries, sample.rows});
  block.panels = 1;
  const ByteSlice& slice = scratch.slices[0];
  pack_byte_queries<X>(p, block, 0, slice.bytes);
  float residuals[kByteRows];
  const auto reference = [&](int s) { return sample_reference(p, sample, s); };
  score_tile<Y>(p, block, slice, sample.references, reference, residuals);
  const ByteBounds bounds(p.dim);
  const int k = static_cast<int>(std::max<int64_t>(1, p.k * sample.references / p.m));
  int64_t candidates = 0;
  for (int q = 0; q < sample.queries; ++q) {
    const int64_t skip = p.skip ? p.skip[sample.rows[q]] : -1;
    SmallestK<float> nearest(k);
    const auto for_each = [&](const auto& f) {
      for (int s = 0; s < sample.references; ++s)
        if (reference(s) != skip) f(slice.scores[s * kBytePanel + q], residuals[s]);
    };
    for_each([&](float square, float residual) {
      nearest.add(bounds.upper(square, block.residuals[q], residual));
    });
    for_each([&](float square, float residual) {
      candidates += bounds.lower(square, block.residuals[q], residual) <= nearest.largest();
    });
  }
  const int64_t pairs = int64_t{sample.queries} * sample.references;
  const int64_t beyond = candidates - sample.queries * k;
  return 16 * beyond <= pairs + 64 &&
         bytes_may_pay(p, cpu_level(), 1 + 2 * static_cast<double>(beyond) / sample.queries);
}
