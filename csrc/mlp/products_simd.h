// Products of a perceptron's matrices with a tile of samples, a sample to a lane. Included for each
// instruction set, inside its namespace.
//
// Every array of a tile holds kPanel = kVectors kLanes numbers for each feature, one for each
// sample. So weights are read as they lie, one at a time, in either direction; sums run over the
// features in order, whatever the instruction set, the tile and the samples beside.

constexpr int kRows = kLanes == 16 ? 8 : 6;  // outputs at a time: 2 kRows accumulators

// What a product multiplies with: element (r, k) lies at data[r by_row + k by_depth].
struct Matrix {
  const float* data;
  int64_t rows, depth, by_row, by_depth;
};

// What becomes of a product, sum over k of m[r][k] in[k]: it is added to with[r], the same for all
// samples, or with is null; or to (rows, kPanel) of them; or these are multiplied by it.
enum class With { kBias, kBiases, kFactors };

// out = m in with `with`, for kCount rows; out may be `with`.
template <int kVectors, With kWith, int kCount>
FASTEBM_TARGET void multiply_rows(const Matrix& m, const float* with, const float* in, float* out) {
  constexpr int kPanel = kVectors * kLanes;
  Floats sum[kCount][kVectors];
  const float* row[kCount];
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r) {
    row[r] = m.data + r * m.by_row;
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = kWith == With::kBiases         ? load(with + r * kPanel + v * kLanes)
                  : kWith == With::kBias && with ? set(with[r])
                                                 : set(0.0f);
  }
  for (int64_t k = 0; k < m.depth; ++k, in += kPanel) {
    Floats x[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) x[v] = load(in + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kCount; ++r) {
      const Floats w = set(row[r][k * m.by_depth]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(w, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = r * kPanel + v * kLanes;
      store(out + at, kWith == With::kFactors ? mul(load(with + at), sum[r][v]) : sum[r][v]);
    }
}

template <int kVectors, With kWith, int kCount = kRows>
FASTEBM_TARGET void multiply(Matrix m, const float* with, const float* in, float* out) {
  const auto rows = [&](auto count) FASTEBM_TARGET {
    constexpr int kTaken = decltype(count)::value;
    multiply_rows<kVectors, kWith, kTaken>(m, with, in, out);
    m.rows -= kTaken;
    m.data += kTaken * m.by_row;
    out += kTaken * kVectors * kLanes;
    if (with) with += kWith == With::kBias ? kTaken : kTaken * kVectors * kLanes;
  };
  // One or two rows at a time would wait for their own sums: a row or two too many are shared out.
  while (m.rows >= kCount)
    if (kCount == kRows && m.rows > kCount && m.rows <= kCount + 2)
      rows(std::integral_constant<int, kRows / 2 + 1>{});
    else
      rows(std::integral_constant<int, kCount>{});
  if constexpr (kCount > 1)
    if (m.rows > 0) multiply<kVectors, kWith, kCount - 1>(m, with, in, out);
}

// Rows of the batch to a tile's columns, and back.
inline void load_tile(const float* rows, int64_t dim, int count, int panel, float* columns) {
  std::fill_n(columns, dim * panel, 0.0f);
  for (int lane = 0; lane < count; ++lane)
    for (int64_t i = 0; i < dim; ++i) columns[i * panel + lane] = rows[lane * dim + i];
}
inline void store_tile(const float* columns, int64_t dim, int count, int panel, float* rows) {
  for (int lane = 0; lane < count; ++lane)
    for (int64_t i = 0; i < dim; ++i) rows[lane * dim + i] = columns[i * panel + lane];
}
// The same, added to what is there.
inline void add_tile(const float* columns, int64_t dim, int count, int panel, float* rows) {
  for (int lane = 0; lane < count; ++lane)
    for (int64_t i = 0; i < dim; ++i) rows[lane * dim + i] += columns[i * panel + lane];
}

// Adds the Gaussian base at x to energy and grad, of which either may be null.
template <int kVectors>
FASTEBM_TARGET void add_base(const Mlp& mlp, const float* x, float* grad, float* energy) {
  constexpr int kPanel = kVectors * kLanes;
  for (int v = 0; v < kVectors; ++v) {
    const int lane = v * kLanes;
    Floats sum = set(0.0f);
    for (int64_t i = 0; i < mlp.dim; ++i) {
      const int64_t at = i * kPanel + lane;
      const Floats mean = set(mlp.base_mean ? mlp.base_mean[i] : 0.0f);
      const Floats u = sub(load(x + at), mean), pull = mul(set(mlp.base_precision[i]), u);
      sum = fma(pull, u, sum);
      if (grad) store(grad + at, add(load(grad + at), pull));
    }
    if (energy) store(energy + lane, fma(set(0.5f), sum, load(energy + lane)));
  }
}
