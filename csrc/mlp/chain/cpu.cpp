// The chain of a small multi-layer perceptron on a CPU: plain, AVX2 and AVX-512 paths. The noise
// has the same bits on all; AVX2 and AVX-512 agree in everything. Mapping: a task takes one tile of
// samples after the other through all the steps, so a core that is slowed down takes fewer. What a
// tile needs stays in the caches of its core.
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "mlp/chain/chain.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "simd/simd.h"

namespace fastebm {
namespace {

constexpr int64_t kMaxPanel = 32;  // samples of a tile

// The samples [first, first + count), and where a task keeps what is computed for them.
struct Tile {
  int64_t first;
  int count;
  float* x;  // (D, panel), as is grad
  float* grad;
  float* value[2];           // (width, panel) of one layer and the next
  float* slope[kMaxHidden];  // (width, panel); then the gradient in the layer's inputs z
  float *energy, *step, *sigma, *scale;  // (panel,)
};

// Lays a tile out in the memory at `base`; returns how many floats it takes.
int64_t lay_out(const Mlp& mlp, float* base, Tile* tile) {
  int64_t used = 0;
  const auto take = [&](int64_t rows) {
    float* at = base ? base + used : nullptr;
    used += rows * kMaxPanel;
    return at;
  };
  const int64_t widest = *std::max_element(mlp.width, mlp.width + mlp.hidden);
  tile->x = take(mlp.dim);
  tile->grad = take(mlp.dim);
  for (float*& value : tile->value) value = take(widest);
  for (int l = 0; l < mlp.hidden; ++l) tile->slope[l] = take(mlp.width[l]);
  for (float** lanes : {&tile->energy, &tile->step, &tile->sigma, &tile->scale}) *lanes = take(1);
  return used;
}

// The ids of a tile's lanes; those without a sample repeat the last one.
void lane_ids(const MlpChainParams& p, const Tile& tile, int panel, uint64_t* id) {
  for (int lane = 0; lane < panel; ++lane)
    id[lane] = sample_id(p.step, tile.first + std::min(lane, tile.count - 1));
}

// clang-format off
namespace plain {
#define FASTEBM_TARGET
#include "simd/plain.h"
#include "simd/exp.h"
#include "mlp/activation_simd.h"

template <int kVectors>
struct LaneNoise {
  NoiseKey key;
  uint64_t id[kVectors * kLanes];

  LaneNoise(const MlpChainParams& p, const Tile& tile) {
    lane_ids(p, tile, kVectors * kLanes, id);
  }
  void set_step(const MlpChainParams& p, int64_t k) { key = chain_noise_key(p, k); }
};

template <int kVectors, bool kGradient>
void update(const MlpChainParams& p, const Tile& tile, const LaneNoise<kVectors>* noise) {
  constexpr int kPanel = kVectors * kLanes;
  for (int lane = 0; lane < kPanel; ++lane) {
    RowCoefficients<float> c{};
    c.step = tile.step[lane];
    c.sigma = tile.sigma[lane];
    c.scale = tile.scale[lane];
    c.clip = static_cast<float>(p.step.grad_clip);
    c.lo = static_cast<float>(p.step.lo);
    c.hi = static_cast<float>(p.step.hi);
    Normals4 n{};
    for (int64_t i = 0; i < p.mlp.dim; ++i) {
      if (noise && i % 4 == 0)
        n = normals4(noise->key, noise->id[lane], static_cast<uint32_t>(i / 4));
      const int64_t at = i * kPanel + lane;
      bool inside, unclipped;
      tile.x[at] = kGradient ? langevin_element(tile.x[at], tile.grad[at], n.v[i % 4], c, &inside,
                                                &unclipped)
                             : noise_element(tile.x[at], n.v[i % 4], c.sigma);
    }
  }
}
#include "mlp/products_simd.h"
#include "mlp/chain/simd.h"
#undef FASTEBM_TARGET
}  // namespace plain

#if defined(__x86_64__)
namespace avx2 {
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "random/philox_simd.h"
#include "simd/exp.h"
#include "mlp/activation_simd.h"
#include "mlp/chain/step_simd.h"
#include "mlp/products_simd.h"
#include "mlp/chain/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2

namespace avx512 {
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "random/philox_simd.h"
#include "simd/exp.h"
#include "mlp/activation_simd.h"
#include "mlp/chain/step_simd.h"
#include "mlp/products_simd.h"
#include "mlp/chain/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx512
#endif
// clang-format on

int lanes() {
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx512) return avx512::kLanes;
  if (simd_level() == Simd::kAvx2) return avx2::kLanes;
#endif
  return plain::kLanes;
}

void run(const MlpChainParams& p, const Tile& tile, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx512) return avx512::run(p, tile, begin, end);
  if (simd_level() == Simd::kAvx2) return avx2::run(p, tile, begin, end);
#endif
  plain::run(p, tile, begin, end);
}

}  // namespace

int64_t mlp_chain_scratch_cpu(MlpChainParams* p, int threads) {
  const int64_t vectors = (p->step.batch + lanes() - 1) / lanes();
  p->tasks = static_cast<int>(std::min<int64_t>(threads, vectors));
  Tile tile;
  return p->tasks * lay_out(p->mlp, nullptr, &tile) * static_cast<int64_t>(sizeof(float));
}

int mlp_chain_cpu(const MlpChainParams& p, int64_t begin, int64_t end, void*) {
  const int64_t batch = p.step.batch, vectors = (batch + lanes() - 1) / lanes();
  const int64_t samples = vectors < 2 * p.tasks ? lanes() : 2 * lanes();  // of a tile
  Tile tile;
  const int64_t size = lay_out(p.mlp, nullptr, &tile);
  for (int64_t task = begin; task < end; ++task) {
    lay_out(p.mlp, static_cast<float*>(p.scratch) + task * size, &tile);
    for (int64_t first; (first = p.next->fetch_add(samples)) < batch;)
      run(p, tile, first, std::min(first + samples, batch));
  }
  return 0;
}

}  // namespace fastebm
