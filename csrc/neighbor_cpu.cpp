// Nearest references on a CPU, in two ways: direct differences for small samples, scored tiles for
// larger ones (neighbor_direct_simd.h, neighbor_tiles_simd.h). Here is what does not depend on the
// instruction set: the bounds on scores, the lists of candidates, and where things lie in scratch.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "neighbor.h"
#include "simd.h"

namespace fastebm {
namespace {

// Direct: at most kSmallDim elements, blocks of transposed references, kQueries queries at a time.
constexpr int kSmallDim = 12, kQueries = 4, kChunk = 4;
constexpr int64_t kDirectReferences = 8192, kDirectQueries = 4096;
// Tiles: kTileRows references x kPanel queries, kDepth elements at a time. The pitch keeps the rows
// of a tile off one another's cache sets.
constexpr int kTileRows = 96, kPanel = 32, kDepth = 128, kPitch = kDepth + 16;
constexpr int kBlockQueries = 128, kFewQueries = 3, kCandidates = 32;
constexpr int64_t kWholeBytes = 4 << 20;  // packed queries are kept up to this size
constexpr double kUnit = 0x1p-24;         // float32 rounding

// The k smallest of what is added, sorted; infinity to begin with.
template <class C>
struct SmallestK {
  C values[kMaxNeighbors];
  int k;
  explicit SmallestK(int k) : k(k) { std::fill_n(values, k, static_cast<C>(HUGE_VAL)); }
  const C& largest() const { return values[k - 1]; }
  void add(C v) { insert(values, k, v); }
  static void insert(C* values, int k, C v) {
    if (!(v < values[k - 1])) return;
    int i = k - 1;
    for (; i > 0 && v < values[i - 1]; --i) values[i] = values[i - 1];
    values[i] = v;
  }
};

// ---- direct
// ---------------------------------------------------------------------------------------

template <class F>
void visit_small_dim(int dim, F&& f) {
  const auto at = [&](auto self, auto d) {
    if (dim == d.value) return f(d);
    if constexpr (d.value < kSmallDim) self(self, std::integral_constant<int, d.value + 1>{});
  };
  at(at, std::integral_constant<int, 1>{});
}

// What a score (a square in C) may be at most where the exact square is not above `kth_score` or,
// found before, `kth_square`. A sum of dim squared differences is off by at most dim + 2 roundings,
// and by what underflows.
template <class C>
C direct_threshold(C kth_score, double kth_square, int64_t dim) {
  const double unit = std::is_same_v<C, double> ? 0x1p-53 : kUnit;
  const double tiny = static_cast<double>(dim) * (std::is_same_v<C, double> ? 0x1p-1020 : 0x1p-124);
  const double gamma = static_cast<double>(dim + 4) * unit;
  const double bound =
      std::min(static_cast<double>(kth_score) * (1 + 2 * gamma), kth_square * (1 + gamma)) + tiny;
  return static_cast<C>(bound * (1 + 4 * unit));  // not rounded down
}

// Exact squares of the references first, first + stride, ..., kChunk of them and below `end`.
template <class X, class Y, int kDim>
void rescore_small(const NeighborParams& p, int64_t query, int64_t first, int64_t stride,
                   int64_t end, Neighbor* list) {
  const X* x = static_cast<const X*>(p.x) + query * kDim;
  const int64_t skip = p.skip ? p.skip[query] : -1;
  for (int64_t j = first; j < std::min(end, first + kChunk * stride); j += stride) {
    const Y* y = static_cast<const Y*>(p.y) + j * kDim;
    double part[kDim];  // exact_square() without the sums that are zero
    for (int i = 0; i < kDim; ++i) {
      const double difference =
          static_cast<double>(x[i]) - reference_value(y[i], p.y_scale, p.y_offset);
      part[i] = difference * difference;
    }
    for (int h = kSquareParts / 2; h; h /= 2)
      for (int l = 0; l + h < kDim && l < h; ++l) part[l] += part[l + h];
    if (j != skip) add_neighbor(list, p.k, {part[0], j});
  }
}

template <class X, class Y>
void rescore_small(const NeighborParams& p, int64_t query, int64_t first, int64_t stride,
                   int64_t end, Neighbor* list) {
  visit_small_dim(static_cast<int>(p.dim), [&](auto d) {
    rescore_small<X, Y, d.value>(p, query, first, stride, end, list);
  });
}

template <class X>
struct DirectScratch {
  X* y;  // (dim, pitch)
  int64_t pitch;
  Neighbor* lists;  // (queries of a block, k)
};

// ---- tiles
// ----------------------------------------------------------------------------------------

// A score is s = |y'|^2 - 2 x'.y', computed; t the same with the exact centred samples. Each
// product is a sum of dim / kDepth sums of kDepth fused products, so with u = 2^-24
//   |s - t| <= 2 kappa |x'| |y'| + c |y'|^2,  kappa = (kDepth + dim / kDepth + 16) u, c = 64 u;
// the 16, and 64 for the 48 roundings of |y'|^2, leave room for those of x', y', s and the bound
// itself. Underflow is covered by `tiny`, and by adding kFloor to both norms.
struct TileRow {
  float square, norm, error;
};

double norm_floor(int64_t dim) { return static_cast<double>(dim) * 0x1p-100; }

TileRow tile_row(double square, int64_t dim) {
  const double tiny = static_cast<double>(dim) * 0x1p-120;
  return {static_cast<float>(square),
          static_cast<float>(std::sqrt(square) * 1.0001 + norm_floor(dim)),
          static_cast<float>(64 * kUnit * square + tiny)};
}

float query_slope(double square, int64_t dim) {
  const double kappa = (kDepth + static_cast<double>(dim) / kDepth + 16) * kUnit;
  return static_cast<float>(2 * kappa * (std::sqrt(square) * 1.0001 + norm_floor(dim)));
}

// A block of queries, packed for the products: (depth / kDepth, panels, kDepth, kPanel).
struct TileBlock {
  int64_t first;
  int queries, panels;
  bool whole;     // x holds all depths; otherwise each slice packs one at a time
  float* x;       // centred
  float* center;  // (3, dim): the centre first
  float* slopes;  // (kBlockQueries,): times |y'| the first part of the bound
};

struct Candidate {
  float lower;
  int32_t index;
};

// One thread's share of the references. For each query: the k smallest upper bounds of scores, of
// which the largest is the threshold; what the threshold does not rule out; and exact neighbours.
// Of true neighbours none is lost: k references have scores of at most the threshold plus their
// bounds, so one whose lower bound is above it has k nearer ones.
struct TileSlice {
  float* y;       // (kTileRows, kPitch)
  float* x;       // one depth of the block's queries, unless the block is whole
  float* scores;  // (panels, kTileRows, kPanel)
  float* thresholds;
  float* uppers;  // (kBlockQueries, k)
  int* counts;
  Candidate* candidates;  // (kBlockQueries, kCandidates)
  Neighbor* lists;        // (kBlockQueries, k)
  int k;

  void start(const TileBlock& block) const {
    std::fill_n(uppers, block.queries * k, HUGE_VALF);
    std::fill_n(counts, block.queries, 0);
    std::fill_n(thresholds, block.queries, HUGE_VALF);
    std::fill(thresholds + block.queries, thresholds + block.panels * kPanel, -HUGE_VALF);
  }

  template <class Rescore>
  void take(int q, int32_t j, float lower, float upper, const Rescore& rescore) const {
    SmallestK<float>::insert(uppers + q * k, k, upper);
    thresholds[q] = uppers[q * k + k - 1];
    candidates[q * kCandidates + counts[q]++] = {lower, j};
    if (counts[q] == kCandidates) {
      prune(q);
      if (counts[q] > kCandidates / 2) finish(q, rescore);
    }
  }

  void prune(int q) const {
    Candidate* own = candidates + q * kCandidates;
    const float threshold = thresholds[q];
    counts[q] =
        static_cast<int>(std::remove_if(own, own + counts[q],
                                        [=](const Candidate& c) { return c.lower > threshold; }) -
                         own);
  }

  template <class Rescore>
  void finish(int q, const Rescore& rescore) const {
    prune(q);
    for (int c = 0; c < counts[q]; ++c) rescore(q, candidates[q * kCandidates + c].index);
    counts[q] = 0;
  }
};

// The componentwise median of the means of three groups: one far-off query does not move it.
template <class X>
void center_queries(const NeighborParams& p, const TileBlock& block) {
  float* sums = block.center;
  std::fill_n(sums, 3 * p.dim, 0.0f);
  for (int q = 0; q < block.queries; ++q) {
    const X* x = static_cast<const X*>(p.x) + (block.first + q) * p.dim;
    float* sum = sums + 3 * q / block.queries * p.dim;
    for (int64_t i = 0; i < p.dim; ++i) sum[i] += static_cast<float>(x[i]);
  }
  const float scale = 3.0f / static_cast<float>(block.queries);
  for (int64_t i = 0; i < p.dim; ++i) {
    const float a = sums[i], b = sums[p.dim + i], c = sums[2 * p.dim + i];
    const float median = scale * std::max(std::min(a, b), std::min(std::max(a, b), c));
    sums[i] = std::isfinite(median) ? median : 0.0f;
  }
}

template <class X>
float centred(X x, float center) {
  return static_cast<float>(x - static_cast<X>(center));
}

template <class X>
void query_slopes(const NeighborParams& p, const TileBlock& block, int panel) {
  for (int q = panel * kPanel; q < (panel + 1) * kPanel; ++q) {
    double square = 0;
    if (q < block.queries) {
      const X* x = static_cast<const X*>(p.x) + (block.first + q) * p.dim;
      double parts[8] = {};
      int64_t i = 0;
      for (; i + 8 <= p.dim; i += 8)
        for (int l = 0; l < 8; ++l) {
          const double v = centred(x[i + l], block.center[i + l]);
          parts[l] += v * v;
        }
      for (; i < p.dim; ++i) square += std::pow(double{centred(x[i], block.center[i])}, 2);
      for (const double part : parts) square += part;
    }
    block.slopes[q] = query_slope(square, p.dim);
  }
}

// Elements [k, k + kDepth) of the queries of some panels, to out (panels, kDepth, kPanel).
template <class X>
void pack_queries(const NeighborParams& p, const TileBlock& block, int64_t k, int panel_begin,
                  int panel_end, float* out) {
  const int depth = static_cast<int>(std::min<int64_t>(kDepth, p.dim - k));
  for (int q = panel_begin * kPanel; q < panel_end * kPanel; ++q) {
    float* to = out + q / kPanel * kDepth * kPanel + q % kPanel;
    const X* x = static_cast<const X*>(p.x) + (block.first + q) * p.dim + k;
    for (int i = 0; i < depth; ++i)
      to[i * kPanel] = q < block.queries ? centred(x[i], block.center[k + i]) : 0.0f;
  }
}

// ---- scratch
// --------------------------------------------------------------------------------------

// Hands out parts of the scratch, or only counts them where it begins at null.
class Carver {
 public:
  explicit Carver(void* begin) : begin_(static_cast<char*>(begin)) {}
  template <class T>
  T* take(int64_t n) {
    char* at = begin_ + bytes_;
    bytes_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* begin_;
  int64_t bytes_ = 0;
};

template <class X>
DirectScratch<X> direct_scratch(const NeighborParams& p, Carver& carver) {
  constexpr int64_t kWhole = kChunk * 64 / static_cast<int64_t>(sizeof(X));  // widest vectors
  DirectScratch<X> s;
  // Rows a cache line off a power of two, so that they do not fall on the same sets.
  s.pitch = std::min(kDirectReferences, (p.m + kWhole - 1) / kWhole * kWhole) + 16;
  s.y = carver.take<X>(p.dim * s.pitch);
  s.lists = carver.take<Neighbor>(std::min(kDirectQueries, p.n) * p.k);
  return s;
}

struct TileScratch {
  TileBlock block;
  std::vector<TileSlice> slices;
};

TileScratch tile_scratch(const NeighborParams& p, int threads, Carver& carver) {
  TileScratch s;
  const int64_t queries = (std::min<int64_t>(kBlockQueries, p.n) + kPanel - 1) / kPanel * kPanel;
  const int64_t depths = (p.dim + kDepth - 1) / kDepth;
  s.block.whole = queries * depths * kDepth * 4 <= kWholeBytes;
  s.block.x = carver.take<float>(s.block.whole ? queries * depths * kDepth : 0);
  s.block.center = carver.take<float>(3 * p.dim);
  s.block.slopes = carver.take<float>(queries);
  s.slices.resize(std::min<int64_t>(threads, (p.m + kTileRows - 1) / kTileRows));
  for (TileSlice& slice : s.slices) {
    slice.y = carver.take<float>(kTileRows * kPitch);
    slice.x = carver.take<float>(s.block.whole ? 0 : queries * kDepth);
    slice.scores = carver.take<float>(queries * kTileRows);
    slice.thresholds = carver.take<float>(queries);
    slice.uppers = carver.take<float>(queries * p.k);
    slice.counts = carver.take<int>(queries);
    slice.candidates = carver.take<Candidate>(queries * kCandidates);
    slice.lists = carver.take<Neighbor>(queries * p.k);
    slice.k = p.k;
  }
  return s;
}

// ---- one body for each instruction set
// ------------------------------------------------------------

// clang-format off
namespace plain {
constexpr int kRows = 4;
#define FASTEBM_TARGET
#include "simd_plain.h"
#include "neighbor_simd.h"
#include "neighbor_direct_simd.h"
#include "neighbor_tiles_simd.h"
#undef FASTEBM_TARGET
}  // namespace plain
#if defined(__x86_64__)
namespace avx2 {
constexpr int kRows = 6;
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd_avx2.h"
#include "neighbor_simd.h"
#include "neighbor_direct_simd.h"
#include "neighbor_tiles_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2
namespace avx512 {
constexpr int kRows = 12;
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd_avx512.h"
#include "neighbor_simd.h"
#include "neighbor_direct_simd.h"
#include "neighbor_tiles_simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
#endif
// clang-format on

// Calls f(X{}, Y{}) for the types of the queries and references.
template <class Params, class F>
int visit_types(const Params& p, F&& f) {
  return visit_reference(p.y_dtype, [&](auto y) {
    if (p.x_dtype == Dtype::kFloat64) return f(double{}, y);
    if constexpr (!std::is_same_v<decltype(y), double>) return f(float{}, y);
    return 0;  // checked: y is not wider than x
  });
}

bool is_direct(const NeighborParams& p) { return p.dim >= 1 && p.dim <= kSmallDim; }

}  // namespace

int64_t nearest_neighbor_scratch_cpu(const NeighborParams& p, int threads) {
  Carver carver(nullptr);
  if (!is_direct(p))
    tile_scratch(p, threads, carver);
  else if (p.x_dtype == Dtype::kFloat64)
    direct_scratch<double>(p, carver);
  else
    direct_scratch<float>(p, carver);
  return carver.bytes();
}

int nearest_neighbor_cpu(const NeighborParams& p, int threads, const ParallelFor& parallel_for) {
  return visit_types(p, [&](auto x, auto y) {
    using X = decltype(x);
    using Y = decltype(y);
    Carver carver(p.scratch);
    const auto search = [&](auto direct, auto tiles) {
      if (is_direct(p))
        direct(p, direct_scratch<X>(p, carver), parallel_for);
      else
        tiles(p, tile_scratch(p, threads, carver), parallel_for);
      return 0;
    };
#if defined(__x86_64__)
    if (simd_level() == Simd::kAvx512)
      return search(avx512::direct_search<X, Y>, avx512::tile_search<X, Y>);
    if (simd_level() == Simd::kAvx2)
      return search(avx2::direct_search<X, Y>, avx2::tile_search<X, Y>);
#endif
    return search(plain::direct_search<X, Y>, plain::tile_search<X, Y>);
  });
}

int nearest_neighbor_backward_cpu(const NeighborBackwardParams& p, int64_t begin, int64_t end,
                                  void*) {
  return visit_types(p, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t e = 0; e < p.dim; ++e)
        static_cast<X*>(p.grad_x)[i * p.dim + e] = neighbor_gradient<X, Y>(p, i, e);
    return 0;
  });
}

}  // namespace fastebm
