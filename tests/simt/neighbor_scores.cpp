// The scores of the CUDA kernels against float64: each within its proven bound, none lost; those of
// bytes against integers: the same. A search would hide a wrong score behind exact squares of more
// references. Prints "ok NAME" lines; test_neighbor_scores.py compiles it for the emulated device,
// bench/gpu.sh for a GPU, whose tensor cores round in their own way.
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "neighbor_plans.h"

namespace fastebm {
namespace {

// What of its bound the worst score uses; above 1, or NaN, is wrong.
template <class X, class Y>
double worst_share(const Samples<X, Y>& s, Dtype x_dtype, Dtype y_dtype, int64_t dim) {
  const Search<X, Y> search(s, x_dtype, y_dtype, dim);
  if (search.found.empty()) return NAN;
  const auto host = [&](const float* at) { return search.host(at); };
  const NeighborParams& p = search.p;
  const ScoreBlock& b = search.b;
  const bool direct = dim <= kDirectDim;
  double worst = 0;
  for (int64_t i = 0; i < p.n; ++i)
    for (int64_t c = 0; c < b.columns; ++c) {
      double score = 0, x_square = 0, y_square = 0, square = INFINITY;
      for (int64_t j = c * b.chunk; j < (c + 1) * b.chunk && j < p.m; ++j) {
        double sum = 0;
        x_square = y_square = 0;
        for (int64_t e = 0; e < dim; ++e) {
          const double center = direct ? 0 : host(b.center)[e], x = s.x[i * dim + e] - center;
          const double y = reference_value(s.y[j * dim + e], s.scale, s.offset) - center;
          sum += (x - y) * (x - y);
          x_square += x * x;
          y_square += y * y;
        }
        square = std::min(square, sum);
      }
      for (int z = 0; z < b.slices; ++z) score += host(b.scores)[(z * p.n + i) * b.pitch + c];
      const double truth = direct ? square : square - x_square;
      const double bound = b.error.relative * score + b.error.query * x_square +
                           b.error.reference * y_square + b.error.absolute;
      if (!(std::abs(score - truth) <= worst * bound)) worst = std::abs(score - truth) / bound;
      if (std::isnan(worst)) return worst;
    }
  return worst;
}

// The same of scores of bfloat16 alone, which are those of rounded samples; and of what these leave
// out of a reference: the larger share.
template <class Y>
double worst_rounded_share(const Samples<float, Y>& s, Dtype y_dtype, int64_t dim) {
  const Search<float, Y> search(s, Dtype::kFloat32, y_dtype, dim, true);
  const ScoreBlock& b = search.b;
  if (search.found.empty() || !b.left_out) return NAN;
  const int64_t n = search.p.n, m = search.p.m;
  double left_out = 0;  // the square of a reference's residual, at most
  for (int z = 0; z < b.slices; ++z) left_out += search.host(b.left_out)[z];
  const auto rounded = [&](double v, int64_t e, double* off) {
    const double middle = search.host(b.center)[e];
    const float from_middle = static_cast<float>(v - middle);
    const double h = widen(narrow<Bfloat16>(from_middle));
    *off += (v - middle - h) * (v - middle - h);
    return h;
  };
  double worst = 0;
  for (int64_t j = 0; j < m; ++j) {
    double off = 0, unused = 0, y_square = 0;
    std::vector<double> y(dim);
    for (int64_t e = 0; e < dim; ++e) {
      y[e] = rounded(reference_value(s.y[j * dim + e], 1, 0), e, &off);
      y_square += y[e] * y[e];
    }
    worst = std::max(worst, off / (1.001 * left_out));
    for (int64_t i = 0; i < n && worst <= 1; ++i) {
      double score = 0, truth = y_square, x_square = 0;
      for (int64_t e = 0; e < dim; ++e) {
        const double x = rounded(s.x[i * dim + e], e, &unused);
        truth -= 2 * x * y[e];
        x_square += x * x;
      }
      for (int z = 0; z < b.slices; ++z) score += search.host(b.scores)[(z * n + i) * b.pitch + j];
      const ScoreError& error = b.rounded_error;
      const double bound = error.query * x_square + error.reference * y_square + error.absolute;
      if (!(std::abs(score - truth) <= worst * bound)) worst = std::abs(score - truth) / bound;
    }
  }
  return worst;
}

// Four kinds of samples: apart, near each other far from the origin, flat, of mixed scales.
template <class X, bool kRounded = false>
void test_kinds(Dtype dtype, int64_t n, int64_t m, int64_t dim) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<double> base(dim);
  for (double& v : base) v = 50 * normal(random);
  const auto fill = [&](int64_t rows, const std::function<double(int64_t, int64_t)>& value) {
    std::vector<X> samples;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t e = 0; e < dim; ++e) samples.push_back(static_cast<X>(value(i, e)));
    return samples;
  };
  const auto test = [&](const char* what, const std::function<double(int64_t, int64_t)>& value) {
    const Samples<X, X> s{fill(n, value), fill(m, value), 1, 0};
    if constexpr (kRounded)
      check(worst_rounded_share(s, dtype, dim), what, n, m, dim);
    else
      check(worst_share(s, dtype, dtype, dim), what, n, m, dim);
  };
  test("apart", [&](int64_t, int64_t) { return normal(random); });
  test("near", [&](int64_t, int64_t e) { return base[e] + 1e-3 * normal(random); });
  test("flat", [&](int64_t i, int64_t) { return 0.1 * static_cast<double>(i % 17) + 0.003; });
  test("mixed scales", [&](int64_t i, int64_t) {
    return std::exp(static_cast<double>(i % 31) - 15) * normal(random);
  });
}

// Queries off the grid have scores of floats.
void test_off_grid(int64_t n, int64_t m, int64_t dim) {
  std::mt19937 random(2);
  Samples<float, uint8_t> s{{}, {}, 1.0f / 256, 0.5f / 256};
  for (int64_t i = 0; i < n * dim; ++i)
    s.x.push_back(static_cast<float>(random() % 1000) / 1000 + 1);
  for (int64_t i = 0; i < m * dim; ++i) s.y.push_back(static_cast<uint8_t>(random()));
  check(worst_share(s, Dtype::kFloat32, Dtype::kUint8, dim), "off the grid", n, m, dim);
}

// References of bfloat16 are rounded as well, less the centre.
void test_halves(int64_t n, int64_t m, int64_t dim) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  Samples<float, Bfloat16> s{{}, {}, 1, 0};
  for (int64_t i = 0; i < n * dim; ++i) s.x.push_back(1 + normal(random));
  for (int64_t i = 0; i < m * dim; ++i) s.y.push_back(narrow<Bfloat16>(1 + normal(random)));
  check(worst_rounded_share(s, Dtype::kBfloat16, dim), "of bfloat16", n, m, dim);
}

// Scores of bytes are those integers, beside queries that are off the grid or have a NaN; residuals
// bound how far distances on the grid are from true ones: the share is of them. White references
// and queries have the largest sums.
template <class X>
void test_bytes(Dtype x_dtype, int64_t n, int64_t m, int64_t dim, float scale) {
  std::mt19937 random(3);
  std::normal_distribution<double> noise;
  Samples<X, uint8_t> s{{}, {}, scale, 0.5f * scale - 0.3f};
  for (int64_t i = 0; i < n * dim; ++i) {
    const double step = i / dim == 0 ? 255.4 : random() % 256 + 0.3 * noise(random);
    s.x.push_back(static_cast<X>(s.offset + static_cast<double>(scale) * step));
  }
  for (int64_t i = 0; i < m * dim; ++i)
    s.y.push_back(static_cast<uint8_t>(i / dim == m - 1 ? 255 : random()));
  const bool mixed = n > 4;
  if (mixed)
    s.x[2 * dim + dim - 1] = static_cast<X>(NAN), s.x[(n - 1) * dim] = static_cast<X>(9999);
  const Search<X, uint8_t> search(s, x_dtype, Dtype::kUint8, dim);
  const ScoreBlock& b = search.b;
  double worst = search.found.empty() || b.grid.inverse == 0 ? NAN : 0;
  for (int64_t i = 0; i < n && worst <= 1; ++i) {
    const GridQuery query = search.host(b.grid_queries)[i];
    const bool is_nan = mixed && i == 2, is_off = mixed && i == n - 1;
    if (std::isnan(query.residual) != is_nan || is_off_grid(query) != is_off) worst = INFINITY;
    for (int z = 0; is_off && z < b.slices; ++z)  // with what its scores are bounded by
      if (std::isnan(search.host(b.y_squares)[z * b.pitch + m - 1])) worst = INFINITY;
    if (is_nan || is_off) continue;
    const uint8_t* x = search.host(b.x_bytes) + i * byte_steps(dim) * kByteStepDepth;
    for (int64_t j = 0; j < m; ++j) {
      int64_t score = 0, x_square = 0, right = 0;
      double square = 0;
      for (int z = 0; z < b.slices; ++z)
        score += static_cast<int32_t>(float_bits(search.host(b.scores)[(z * n + i) * b.pitch + j]));
      for (int64_t e = 0; e < dim; ++e) {
        const int64_t q = s.y[j * dim + e];
        const double y = reference_value(s.y[j * dim + e], s.scale, s.offset);
        right += q * q - 2 * q * x[e];
        x_square += x[e] * x[e];
        square += (s.x[i * dim + e] - y) * (s.x[i * dim + e] - y);
      }
      if (score != right || query.square != static_cast<double>(x_square)) worst = INFINITY;
      const double on_grid = std::sqrt(static_cast<double>(score + x_square));
      const double gap = std::abs(std::sqrt(square) / std::abs(scale) - on_grid);
      worst = std::max(worst, gap / query.residual);
    }
  }
  check(worst, "bytes", n, m, dim);
}

// Exact squares are taken of candidates alone: references change into a query after the scores are
// there, and are not found.
void test_candidates() {
  constexpr int64_t n = 3, m = 600, dim = 64;
  std::mt19937 random(4);
  Samples<float, uint8_t> s{{}, {}, -0.25f, 3};
  for (int64_t i = 0; i < m * dim; ++i) s.y.push_back(static_cast<uint8_t>(random()));
  for (int64_t i = 0; i < n * dim; ++i)
    s.x.push_back(3 -
                  0.25f * (static_cast<float>(s.y[(100 * (i / dim) + 7) * dim + i % dim]) + 0.4f));
  Search<float, uint8_t> search(s, Dtype::kFloat32, Dtype::kUint8, dim);
  for (int64_t j = 0; j < m; ++j)
    if (j % 100 != 7) std::copy_n(&s.y[(j % n * 100 + 7) * dim], dim, &s.y[j * dim]);
  const OnDevice<uint8_t> changed(s.y);
  const OnDevice<float> distance(std::vector<float>(n, NAN));
  const OnDevice<int64_t> index(std::vector<int64_t>(n, -1));
  search.p.y = changed.data;
  search.p.distance = distance.data;
  search.p.index = index.data;
  search.b.first = search.b.last = true;
  const int error = launch_select<float, uint8_t, Grid::kBytes>(search.p, search.b, nullptr);
  const bool right = !error && index.copy() == std::vector<int64_t>{7, 107, 207};
  std::printf("%s candidates alone\n", right ? "ok" : "FAILED");
  failures += !right;
}

// A query that all references may be the nearest of leaves the grid, one beside it does not.
void test_leaving_the_grid() {
  constexpr int64_t n = 2, m = 300, dim = 64;
  std::mt19937 random(5);
  Samples<float, uint8_t> s{{}, {}, 1, 0};
  for (int64_t i = 0; i < m * dim; ++i) s.y.push_back(static_cast<uint8_t>(random() % 2));
  for (int64_t i = 0; i < n * dim; ++i)
    s.x.push_back(i < dim ? 0.5f : static_cast<float>(s.y[9 * dim + i % dim]));
  Search<float, uint8_t> search(s, Dtype::kFloat32, Dtype::kUint8, dim);
  const OnDevice<float> distance(std::vector<float>(n, NAN));
  const OnDevice<int64_t> index(std::vector<int64_t>(n, -1));
  search.p.distance = distance.data;
  search.p.index = index.data;
  search.b.first = search.b.last = true;
  int error = launch_select<float, uint8_t, Grid::kBytes>(search.p, search.b, nullptr);
  search.found = search.scratch.copy();
  const GridQuery* queries = search.host(search.b.grid_queries);
  bool right = !error && is_off_grid(queries[0]) && !is_off_grid(queries[1]);
  right = right && index.copy() == std::vector<int64_t>{-1, 9};
  error = launch_tensor_score<uint8_t>(search.p, search.b, nullptr);
  if (!error) error = launch_select<float, uint8_t, Grid::kNone>(search.p, search.b, nullptr);
  right = right && !error && index.copy() == std::vector<int64_t>{0, 9};
  std::printf("%s leaving the grid\n", right ? "ok" : "FAILED");
  failures += !right;
}

// Scores of bfloat16 come first where they pay, and tell enough of queries beside a reference; one
// that is too far from all of them to tell these apart goes the other way.
void test_rounded_queries() {
  constexpr int64_t n = 66, m = 300, dim = 512;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  Samples<float, float> s{{}, {}, 1, 0};
  for (int64_t i = 0; i < m * dim; ++i) s.y.push_back(normal(random));
  for (int64_t i = 0; i < n * dim; ++i)
    s.x.push_back(i < dim ? 1000 * normal(random) : s.y[3 * dim + i] + 0.1f * normal(random));
  Search<float, float> search(s, Dtype::kFloat32, Dtype::kFloat32, dim, true);
  const OnDevice<float> distance(std::vector<float>(n, NAN));
  const OnDevice<int64_t> index(std::vector<int64_t>(n, -1));
  search.p.distance = distance.data;
  search.p.index = index.data;
  search.b.first = search.b.last = true;
  int error = launch_select<float, float, Grid::kBfloat16>(search.p, search.b, nullptr);
  search.found = search.scratch.copy();
  bool right = !error && search.b.left_out;
  for (int64_t i = 0; i < n && right; ++i)
    right = is_off_grid(search.host(search.b.grid_queries)[i]) == (i == 0) &&
            index.copy()[i] == (i == 0 ? -1 : i + 3);
  error = launch_tensor_score<float>(search.p, search.b, nullptr);
  if (!error) error = launch_select<float, float, Grid::kNone>(search.p, search.b, nullptr);
  int64_t nearest = 0;
  double least = INFINITY;
  for (int64_t j = 0; j < m; ++j) {
    const double square = exact_square(s.x.data(), s.y.data() + j * dim, dim, 1, 0);
    if (square < least) least = square, nearest = j;
  }
  right = right && !error && index.copy()[0] == nearest && index.copy()[1] == 4;
  const auto comes_first = [](Dtype type, int64_t queries, int64_t elements, const void* y) {
    NeighborParams p{};
    p.y_dtype = type, p.y_scale = 1, p.n = queries, p.m = m, p.dim = elements, p.k = 1, p.y = y;
    return plan_blocks(p, nullptr).block.left_out != nullptr;
  };
  const float* y = search.y_memory.data;
  right = right && comes_first(Dtype::kFloat16, n, dim, y) &&
          !comes_first(Dtype::kFloat32, 64, dim, y) && !comes_first(Dtype::kFloat32, n, 508, y) &&
          !comes_first(Dtype::kFloat32, n, 514, y) &&
          !comes_first(Dtype::kFloat32, n, dim, y + 1) && !comes_first(Dtype::kUint8, n, dim, y) &&
          !comes_first(Dtype::kFloat64, n, dim, y);
  std::printf("%s queries on the grid of bfloat16\n", right ? "ok" : "FAILED");
  failures += !right;
}

}  // namespace
}  // namespace fastebm

int main(int, char** arguments) {  // of the emulated device: the seed of the threads' order
#ifndef __CUDACC__
  simt::schedule_seed = std::strtoull(arguments[1], nullptr, 10);
#endif
  using fastebm::Dtype;
  for (int64_t dim : {1, 3, 16}) {
    fastebm::test_kinds<float>(Dtype::kFloat32, 130, 300, dim);
    fastebm::test_kinds<double>(Dtype::kFloat64, 34, 300, dim);
  }
  fastebm::test_kinds<float>(Dtype::kFloat32, 130, 140, 200);  // copied, the large tile
  fastebm::test_kinds<float>(Dtype::kFloat32, 5, 130, 1100);   // the small one, sliced
  fastebm::test_kinds<float>(Dtype::kFloat32, 70, 70, 171);    // loaded
  fastebm::test_kinds<double>(Dtype::kFloat64, 20, 40, 530);
  fastebm::test_kinds<float, true>(Dtype::kFloat32, 130, 140, 516);
  fastebm::test_halves(65, 130, 1200);
  fastebm::test_off_grid(40, 200, 27);
  fastebm::test_off_grid(3, 300, 14);
  const float step = 1.0f / 255;
  fastebm::test_bytes<float>(Dtype::kFloat32, 130, 129, 528, step);  // copied, the large tile
  fastebm::test_bytes<float>(Dtype::kFloat32, 5, 130, 1200, -step);  // the small one, sliced
  fastebm::test_bytes<float>(Dtype::kFloat32, 3, 600, 8192, step);   // of many steps
  fastebm::test_bytes<double>(Dtype::kFloat64, 70, 70, 171, step);   // loaded
  fastebm::test_bytes<float>(Dtype::kFloat32, 20, 40, 1030, 7 * step);
  fastebm::test_candidates();
  fastebm::test_leaving_the_grid();
  fastebm::test_rounded_queries();
  fastebm::test_scratch();
  fastebm::test_select_plans();
  fastebm::test_linear_errors();
  return fastebm::failures != 0;
}
