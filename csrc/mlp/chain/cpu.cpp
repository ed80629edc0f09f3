// The chain of a small multi-layer perceptron on a CPU: plain, AVX2 and AVX-512 paths. The noise
// has the same bits on all; AVX2 and AVX-512 agree in everything. Mapping: a task takes one tile of
// samples after the other through all the steps, so a core that is slowed down takes fewer. What a
// tile needs stays in the caches of its core.
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "mlp/chain/tile.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "simd/simd.h"

namespace fastebm {
namespace {

// clang-format off
namespace plain {
#define FASTEBM_TARGET
#include "simd/plain.h"
#include "simd/exp.h"
#include "mlp/activation_simd.h"
#include "mlp/products_simd.h"
#include "mlp/chain/gradient_simd.h"
#include "mlp/chain/noise_plain.h"

template <int kVectors, bool kGradient>
void update(const MlpChainParams& p, const Tile& tile, const LaneNoise<kVectors>* noise) {
  constexpr int kPanel = kVectors * kLanes;
  for (int lane = 0; lane < kPanel; ++lane) {
    RowCoefficients<float> c{};
    c.step = tile.step[lane];
    c.sigma = tile.sigma[lane];
    c.scale = tile.scale[lane];
    c.clip = static_cast<float>(p.step.grad_clip);
    c.displacement = static_cast<float>(p.step.displacement_clip);
    c.lo = static_cast<float>(p.step.lo);
    c.hi = static_cast<float>(p.step.hi);
    Normals4 n{};
    for (int64_t i = 0; i < p.mlp.dim; ++i) {
      if (noise && i % 4 == 0)
        n = normals4(noise->key, noise->id[lane], static_cast<uint32_t>(i / 4));
      const int64_t at = i * kPanel + lane;
      if (p.lo) {
        c.lo = p.lo[i];
        c.hi = p.hi[i];
      }
      bool inside, unclipped;
      tile.x[at] = kGradient ? langevin_element(tile.x[at], tile.grad[at], n.v[i % 4], c, &inside,
                                                &unclipped)
                             : noise_element(tile.x[at], n.v[i % 4], c.sigma);
    }
  }
}
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
#include "mlp/products_simd.h"
#include "mlp/chain/gradient_simd.h"
#include "mlp/chain/noise_simd.h"
#include "mlp/chain/step_simd.h"
#include "mlp/chain/simd.h"
#undef FASTEBM_TARGET
}  // namespace avx2

namespace avx512 {
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "random/philox_simd.h"
#include "simd/exp.h"
#include "mlp/activation_simd.h"
#include "mlp/products_simd.h"
#include "mlp/chain/gradient_simd.h"
#include "mlp/chain/noise_simd.h"
#include "mlp/chain/step_simd.h"
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
  set_tasks(p, threads, lanes());
  Tile tile;
  return p->tasks * lay_out(p->mlp, nullptr, &tile) * static_cast<int64_t>(sizeof(float));
}

int mlp_chain_cpu(const MlpChainParams& p, int64_t begin, int64_t end, void*) {
  Tile tile;
  const int64_t floats = lay_out(p.mlp, nullptr, &tile);
  run_tasks(p, lanes(), floats, begin, end, [&](float* memory, int64_t first, int64_t last) {
    lay_out(p.mlp, memory, &tile);
    run(p, tile, first, last);
  });
  return 0;
}

}  // namespace fastebm
