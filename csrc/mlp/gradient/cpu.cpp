// Gradients in the parameters of a small perceptron on a CPU: plain, AVX2 and AVX-512 paths.
// Mapping: a share of the batch has sums of its own; a task takes shares, one after another, and
// tiles of their samples through both passes and the derivatives along v; then kTiles of them at
// once into the sums of their share. All of that stays in the caches of its core.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "mlp/gradient/gradient.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "simd/simd.h"

namespace fastebm {
namespace {

constexpr int kTiles = 2;  // their sums, larger than the first cache, are gone through once

// A tile's memory: (features, panel), layer l's at [l]. The first group is the tile's own until the
// sums have been added to, the rest the same memory for all tiles of a task.
struct Tile {
  int64_t first;
  int count;
  float* h[kMaxHidden + 1];    // inputs of each layer
  float* t[kMaxHidden + 1];    // their derivatives along v
  float* to_z[kMaxHidden];     // dE/dz in layer l
  float* through[kMaxHidden];  // r of mlp/gradient/gradient.h, then with a_i dE/dz
  float *energy, *factor;      // (panel,)
  float *slope[kMaxHidden], *curvature[kMaxHidden];
  float* to_h[kMaxHidden];  // dE/dh after layer l
  float *moved, *grad;
};

// A task's memory, and the sums of a share.
struct Work {
  Tile tile[kTiles];
  float* transposed;
  // Sums over the share's samples. Of weights: panels of columns, (columns / panel, rows, panel);
  // of the rest each lane's own sum.
  float *weight[kMaxHidden], *bias[kMaxHidden], *last_weight, *last_bias;
};

// clang-format off
namespace plain {
#define FASTEBM_TARGET
#include "simd/plain.h"
#include "simd/exp.h"
#include "mlp/activation_simd.h"
#include "mlp/products_simd.h"
#include "mlp/gradient/simd.h"
#undef FASTEBM_TARGET
}  // namespace plain

#if defined(__x86_64__)
namespace avx2 {
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "simd/exp.h"
#include "mlp/activation_simd.h"
#include "mlp/products_simd.h"
#include "mlp/gradient/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2

namespace avx512 {
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "simd/exp.h"
#include "mlp/activation_simd.h"
#include "mlp/products_simd.h"
#include "mlp/gradient/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
#endif
// clang-format on

int64_t panel() {
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx512) return avx512::kPanel;
  if (simd_level() == Simd::kAvx2) return avx2::kPanel;
#endif
  return plain::kPanel;
}

void run(const MlpGradientParams& p, const Work& work, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx512) return avx512::run(p, work, begin, end);
  if (simd_level() == Simd::kAvx2) return avx2::run(p, work, begin, end);
#endif
  plain::run(p, work, begin, end);
}

float lane_sum(const float* lanes, int64_t count) {
  float sum[4] = {};  // additions that need not wait for each other
  for (int64_t i = 0; i < count; ++i) sum[i % 4] += lanes[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Hands out floats from `base` on, or only counts them where it is null.
struct Floor {
  float* base;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* at = base ? base + used : nullptr;
    used += floats;
    return at;
  }
};

int64_t padded(int64_t n) { return (n + panel() - 1) / panel() * panel(); }

// Lays a task's memory out at `base`; returns how many floats it takes.
int64_t lay_out_task(const Mlp& mlp, float* base, Work* work) {
  const int64_t lanes = panel();
  Floor floor{base};
  const auto features = [&](int64_t n) { return floor.take(padded(n) * lanes); };
  const int64_t widest =
      std::max<int64_t>(mlp.dim, *std::max_element(mlp.width, mlp.width + mlp.hidden));
  Tile shared{};
  for (int l = 0; l < mlp.hidden; ++l)
    for (float** array : {&shared.slope[l], &shared.curvature[l], &shared.to_h[l]})
      *array = features(mlp.width[l]);
  for (float** array : {&shared.moved, &shared.grad}) *array = features(widest);
  for (Tile& tile : work->tile) {
    tile = shared;
    for (int l = 0; l <= mlp.hidden; ++l)
      for (float** array : {&tile.h[l], &tile.t[l]}) *array = features(mlp.inputs(l));
    for (int l = 0; l < mlp.hidden; ++l)
      for (float** array : {&tile.to_z[l], &tile.through[l]}) *array = features(mlp.width[l]);
    for (float** array : {&tile.energy, &tile.factor}) *array = floor.take(lanes);
  }
  work->transposed = features(kTiles * padded(widest));
  return floor.used;
}

// The same for the sums of a share.
int64_t lay_out_sums(const Mlp& mlp, float* base, Work* work) {
  const int64_t lanes = panel();
  Floor floor{base};
  for (int l = 0; l < mlp.hidden; ++l) {
    work->weight[l] = floor.take(padded(mlp.inputs(l)) * mlp.width[l]);
    work->bias[l] = floor.take(mlp.width[l] * lanes);
  }
  work->last_weight = floor.take(mlp.inputs(mlp.hidden) * lanes);
  work->last_bias = floor.take(lanes);
  return padded(floor.used);
}

float* sums_of(const MlpGradientParams& p, int64_t share) {
  return static_cast<float*>(p.scratch) + share * mlp_gradient_sums_cpu(p);
}

// How many shares have sums, a function of sizes alone. To begin and to join those of one takes as
// long as a few samples do, and longer where all of them leave the second cache.
int shares_of(const MlpGradientParams& p) {
  constexpr int64_t kShareSamples = 128, kCached = 1 << 19;  // floats
  const int64_t most = std::clamp<int64_t>(kCached / mlp_gradient_sums_cpu(p), 8, 32);
  return static_cast<int>(std::clamp<int64_t>(p.batch / kShareSamples, 1, most));
}

}  // namespace

int64_t mlp_gradient_sums_cpu(const MlpGradientParams& p) {
  Work work;
  return lay_out_sums(p.mlp, nullptr, &work);
}

int64_t mlp_gradient_scratch_cpu(MlpGradientParams* p, int threads) {
  p->shares = shares_of(*p);
  p->tasks = std::min(threads, p->shares);
  Work work;
  const int64_t floats =
      p->shares * mlp_gradient_sums_cpu(*p) + p->tasks * lay_out_task(p->mlp, nullptr, &work);
  return floats * static_cast<int64_t>(sizeof(float));
}

int mlp_gradient_cpu(const MlpGradientParams& p, int64_t begin, int64_t end, void*) {
  const int64_t tiles = (p.batch + panel() - 1) / panel();
  const auto first = [&](int64_t share) {
    return std::min(p.batch, share * tiles / p.shares * panel());
  };
  for (int64_t task = begin; task < end; ++task) {
    Work work;
    const int64_t size = lay_out_task(p.mlp, nullptr, &work);
    lay_out_task(p.mlp, sums_of(p, p.shares) + task * size, &work);
    for (int64_t s = task * p.shares / p.tasks; s < (task + 1) * p.shares / p.tasks; ++s) {
      if (p.fresh) std::fill(sums_of(p, s), sums_of(p, s + 1), 0.0f);
      lay_out_sums(p.mlp, sums_of(p, s), &work);
      run(p, work, first(s), first(s + 1));
    }
  }
  return 0;
}

void mlp_gradient_join_cpu(const MlpGradientParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 2048;  // stays in the first cache while the shares go by
  float* to = sums_of(p, 0);
  for (; begin < end; begin += kBlock)
    for (int64_t share = 1; share < p.shares; ++share) {
      const float* from = sums_of(p, share);
      for (int64_t i = begin; i < std::min(begin + kBlock, end); ++i) to[i] += from[i];
    }
}

void mlp_gradient_sum_cpu(const MlpGradientParams& p, float* sums) {
  const int64_t lanes = panel();
  Work work;
  lay_out_sums(p.mlp, sums_of(p, 0), &work);
  for (int l = 0; l < p.mlp.hidden; ++l) {
    const int64_t rows = p.mlp.width[l], columns = p.mlp.inputs(l);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t begin = 0; begin < columns; begin += lanes) {
        const float* from = work.weight[l] + (begin * rows + row * lanes);
        const int64_t count = std::min(lanes, columns - begin);
        for (int64_t i = 0; i < count; ++i) *sums++ += from[i];
      }
    for (int64_t row = 0; row < rows; ++row) *sums++ += lane_sum(work.bias[l] + row * lanes, lanes);
  }
  for (int64_t i = 0; i < p.mlp.inputs(p.mlp.hidden); ++i)
    *sums++ += lane_sum(work.last_weight + i * lanes, lanes);
  *sums += lane_sum(work.last_bias, lanes);
}

}  // namespace fastebm
