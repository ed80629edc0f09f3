// Underdamped chains of a small perceptron on a CPU: plain, AVX2 and AVX-512 paths. The noise
// has the same bits on all; AVX2 and AVX-512 agree in everything. Mapping as in mlp/chain: a task
// takes one tile of samples after the other through all the steps.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "mlp/chain/tile.h"
#include "mlp/underdamped/underdamped.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "simd/simd.h"

namespace fastebm {
namespace {

struct UnderdampedTile {
  Tile to;
  float* velocity;      // (D, panel)
  float *kick, *decay;  // (panel,), as `to` has h/2 for its step, and sigma
};

int64_t lay_out(const Mlp& mlp, float* base, UnderdampedTile* tile) {
  int64_t used = lay_out(mlp, base, &tile->to);
  const auto take = [&](int64_t rows) {
    float* at = base ? base + used : nullptr;
    used += rows * kMaxPanel;
    return at;
  };
  tile->velocity = take(mlp.dim);
  for (float** lanes : {&tile->kick, &tile->decay}) *lanes = take(1);
  return used;
}

// clang-format off
namespace plain {
#define FASTEBM_TARGET
#include "simd/plain.h"
#include "simd/exp.h"
#include "mlp/activation_simd.h"
#include "mlp/products_simd.h"
#include "mlp/chain/gradient_simd.h"
#include "mlp/chain/noise_plain.h"
#include "mlp/underdamped/simd.h"
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
#include "mlp/underdamped/simd.h"
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
#include "mlp/underdamped/simd.h"
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

void run(const MlpUnderdampedParams& p, const UnderdampedTile& tile, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx512) return avx512::run(p, tile, begin, end);
  if (simd_level() == Simd::kAvx2) return avx2::run(p, tile, begin, end);
#endif
  plain::run(p, tile, begin, end);
}

}  // namespace

int64_t mlp_underdamped_scratch_cpu(MlpUnderdampedParams* p, int threads) {
  set_tasks(&p->chain, threads, lanes());
  UnderdampedTile tile;
  const int64_t floats = lay_out(p->chain.mlp, nullptr, &tile);
  return p->chain.tasks * floats * static_cast<int64_t>(sizeof(float));
}

int mlp_underdamped_cpu(const MlpUnderdampedParams& p, int64_t begin, int64_t end, void*) {
  UnderdampedTile tile;
  const int64_t floats = lay_out(p.chain.mlp, nullptr, &tile);
  run_tasks(p.chain, lanes(), floats, begin, end, [&](float* memory, int64_t first, int64_t last) {
    lay_out(p.chain.mlp, memory, &tile);
    run(p, tile, first, last);
  });
  return 0;
}

}  // namespace fastebm
