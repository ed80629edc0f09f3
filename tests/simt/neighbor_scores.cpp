// The scores of the CUDA kernels against float64: each within its proven bound, none lost; those of
// bytes against integers: the same. A search would hide a wrong score behind exact squares of more
// references. Prints "ok NAME"
// lines; test_neighbor_scores.py compiles it for the emulated device, bench/gpu.sh for a GPU, whose
// tensor cores round in their own way.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <random>
#include <vector>

#include "neighbor/bytes_cuda.h"
#include "neighbor/direct_cuda.h"
#include "neighbor/select_cuda.h"

namespace fastebm {
namespace {

// Memory of the device.
template <class T>
struct OnDevice {
  T* data = nullptr;
  size_t size;
  explicit OnDevice(const std::vector<T>& values) : size(values.size()) {
    const size_t bytes = size * sizeof(T);
#ifdef __CUDACC__
    if (cudaMalloc(&data, bytes) != cudaSuccess) std::abort();
    if (cudaMemcpy(data, values.data(), bytes, cudaMemcpyHostToDevice) != cudaSuccess) std::abort();
#else
    data = static_cast<T*>(operator new(bytes, std::align_val_t(64)));
    std::memcpy(data, values.data(), bytes);
#endif
  }
  OnDevice(const OnDevice&) = delete;
  // Waits for the kernels before; empty where one of them failed.
  std::vector<T> copy() const {
    std::vector<T> values(size);
#ifdef __CUDACC__
    if (cudaMemcpy(values.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost) != cudaSuccess)
      values.clear();
#else
    std::memcpy(values.data(), data, size * sizeof(T));
#endif
    return values;
  }
  ~OnDevice() {
#ifdef __CUDACC__
    cudaFree(data);
#else
    operator delete(data, std::align_val_t(64));
#endif
  }
};

template <class X, class Y>
struct Samples {
  std::vector<X> x;
  std::vector<Y> y;
  float scale, offset;
};

// Samples on the device, and the scratch of the one block that they are.
template <class X, class Y>
struct Search {
  NeighborParams p{};
  ScoreBlock b;
  OnDevice<X> x_memory;
  OnDevice<Y> y_memory;
  OnDevice<float> scratch;
  std::vector<float> found;  // of the scratch, once the scores are there

  static NeighborParams params(const Samples<X, Y>& s, Dtype x_dtype, Dtype y_dtype, int64_t dim) {
    NeighborParams p{};
    p.x_dtype = x_dtype;
    p.y_dtype = y_dtype;
    p.dim = dim;
    p.n = static_cast<int64_t>(s.x.size()) / dim;
    p.m = static_cast<int64_t>(s.y.size()) / dim;
    p.k = 1;
    p.y_scale = s.scale;
    p.y_offset = s.offset;
    return p;
  }
  Search(const Samples<X, Y>& s, Dtype x_dtype, Dtype y_dtype, int64_t dim)
      : p(params(s, x_dtype, y_dtype, dim)),
        x_memory(s.x),
        y_memory(s.y),
        scratch(std::vector<float>(plan_blocks(p, nullptr).bytes / 4, NAN)) {
    p.x = x_memory.data;
    p.y = y_memory.data;
    b = plan_blocks(p, scratch.data).block;
    int error = 0;
    if (dim <= kDirectDim) {
      error = launch_direct_score<X>(p, b, nullptr);
    } else if constexpr (sizeof(Y) == 1) {
      error = launch_quantize<X>(p, b, nullptr);
      if (!error) error = launch_byte_score(p, b, nullptr);
      if (!error) error = launch_tensor_score<Y>(p, b, nullptr);
    } else {
      error = launch_split<X>(p, b, nullptr);
      if (!error) error = launch_tensor_score<Y>(p, b, nullptr);
    }
    if (!error) found = scratch.copy();
  }
  // What is at `at` in the scratch.
  template <class T>
  const T* host(const T* at) const {
    return reinterpret_cast<const T*>(
        reinterpret_cast<const char*>(found.data()) +
        (reinterpret_cast<const char*>(at) - reinterpret_cast<const char*>(scratch.data)));
  }
};

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

int failures = 0;

void check(double share, const char* what, int64_t n, int64_t m, int64_t dim) {
  std::printf("%s %s (%d, %d, %d): %.3f of the bound\n", share <= 1 ? "ok" : "FAILED", what,
              static_cast<int>(n), static_cast<int>(m), static_cast<int>(dim), share);
  failures += !(share <= 1);
}

// Four kinds of samples: apart, near each other far from the origin, flat, of mixed scales.
template <class X>
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
  const int error = launch_select<float, uint8_t, true>(search.p, search.b, nullptr);
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
  int error = launch_select<float, uint8_t, true>(search.p, search.b, nullptr);
  search.found = search.scratch.copy();
  const GridQuery* queries = search.host(search.b.grid_queries);
  bool right = !error && is_off_grid(queries[0]) && !is_off_grid(queries[1]);
  right = right && index.copy() == std::vector<int64_t>{-1, 9};
  error = launch_tensor_score<uint8_t>(search.p, search.b, nullptr);
  if (!error) error = launch_select<float, uint8_t, false>(search.p, search.b, nullptr);
  right = right && !error && index.copy() == std::vector<int64_t>{0, 9};
  std::printf("%s leaving the grid\n", right ? "ok" : "FAILED");
  failures += !right;
}

// The scratch of any search is what neighbor/blocks_cuda.h says.
void test_scratch() {
  int64_t most = 0;
  for (int64_t dim : {1, 2, 16, 17, 100, 784, 3072, 49152, 65536, 200000})
    for (int64_t n : {1, 64, 65, 128, 1000, 2049, 300000})
      for (int64_t m : {16, 129, 1000, 100000, 10000000})
        for (int k : {1, 16})
          for (Dtype type : {Dtype::kFloat32, Dtype::kUint8}) {
            NeighborParams p{};
            p.y_dtype = type, p.y_scale = 1, p.n = n, p.m = m, p.dim = dim, p.k = k;
            const int64_t bytes = plan_blocks(p, nullptr).bytes;
            if (dim <= 65536 || type == Dtype::kUint8) most = std::max(most, bytes);
          }
  const bool fits = 60000000 < most && most <= 70000000;
  std::printf("%s scratch: %.1f MB\n", fits ? "ok" : "FAILED", static_cast<double>(most) / 1e6);
  failures += !fits;
}

// A score that is off by all that a ScoreError allows, of a reference as long as its distance
// allows, is off by no more than the linear error says, and where the distance is |x'|, by all.
void test_linear_errors() {
  double most = 0, at_length = 0;
  for (int64_t slice : {192, 2048})
    for (double x_square : {0.0, 1e-9, 1.0, 3e5})
      for (double distance : {0.0, 1e-3, 0.5, 1.0, 2.0, 1e3})
        for (double side : {-1.0, 1.0}) {
          const ScoreError error = score_error(4 * slice, slice, 4);
          const double length = std::sqrt(x_square), far = distance * (length + 1e-6);
          const double y_square = (length + far) * (length + far);
          const double off = error.query * x_square + error.reference * y_square + error.absolute;
          const LinearError linear = linear_error(error, x_square);
          const double score = far * far - x_square + side * off;
          const double ratio = off / (linear.relative * score + linear.absolute);
          most = std::max(most, ratio);
          if (x_square == 1 && distance == 1 && side < 0) at_length = std::max(at_length, ratio);
        }
  const bool right = most < 1 + 1e-9 && at_length > 0.99;
  std::printf("%s linear errors: %.4f, %.4f\n", right ? "ok" : "FAILED", most, at_length);
  failures += !right;
}

// Scores, lists, numbers of columns, x and references follow one another in the shared memory that
// there is; those that wait for exact squares, or the parts of one, begin at 16 bytes.
void test_select_plans() {
  bool right = true;
  for (int64_t dim : {17, 100, 784, 3072, 49152, 200000})
    for (int64_t n : {1, 128, 129, 1000, 2048})
      for (int64_t m : {16, 1000, 10000, 1000000})
        for (int k : {1, 16})
          for (size_t x_size : {4, 8})
            for (size_t y_size : {1, 2, 4, 8}) {
              NeighborParams p{};
              p.y_dtype = y_size == 1 ? Dtype::kUint8 : Dtype::kFloat32;
              p.y_scale = 1, p.n = n, p.m = m, p.dim = dim, p.k = k;
              const ScoreBlock b = plan_blocks(p, nullptr).block;
              const SelectPlan plan = plan_select(p, b, x_size, y_size);
              const int64_t pitch = b.pitch, size = static_cast<int64_t>(y_size);
              const int warps = plan.threads / 32;
              right = right && (warps == 8 || warps == 16 || warps == 32) && plan.stages >= 1;
              right = right && plan.stages <= warps && plan.lists >= 4 * pitch;
              right = right && plan.found - plan.lists >= 16 * warps * k;
              right = right && plan.x - plan.found >= 2 * pitch;
              right = right && plan.stage - plan.x >= (plan.keeps_x ? 8 * dim : 0);
              right = right && plan.bytes - plan.stage >= plan.stages * plan.stage_bytes;
              right = right && plan.bytes + 512 <= max_shared_bytes();
              right = right && (plan.lists | plan.found | plan.x | plan.stage) % 16 == 0;
              right = right && (plan.stage_bytes >= dim * size ? plan.stage_bytes % 16 == 0
                                                               : plan.stage_bytes % 512 == 0);
              right = right && plan.stage_bytes > 0;
            }
  std::printf("%s plans of shared memory\n", right ? "ok" : "FAILED");
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
  fastebm::test_scratch();
  fastebm::test_select_plans();
  fastebm::test_linear_errors();
  return fastebm::failures != 0;
}
