// Metropolis-adjusted chains of a small perceptron on a CPU: plain, AVX2 and AVX-512 paths. The
// noise has the same bits on all; AVX2 and AVX-512 agree in everything. Mapping as in mlp/chain: a
// task takes one tile of samples after the other through all the transitions.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "mlp/adjusted/adjusted.h"
#include "mlp/chain/tile.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "simd/simd.h"

namespace fastebm {
namespace {

// x, grad and energy of `to` are those of what is proposed, these here those of where it is
// proposed from; (panel,) but x and grad.
struct AdjustedTile {
  Tile to;
  float *x, *grad, *energy;
  float *drift, *square;     // a(x) and |g(x)|^2
  float *proposals, *jumps;  // sums of min(1, r), and how many were accepted
};

int64_t lay_out(const Mlp& mlp, float* base, AdjustedTile* tile) {
  int64_t used = lay_out(mlp, base, &tile->to);
  const auto take = [&](int64_t rows) {
    float* at = base ? base + used : nullptr;
    used += rows * kMaxPanel;
    return at;
  };
  tile->x = take(mlp.dim);
  tile->grad = take(mlp.dim);
  for (float** lanes : {&tile->energy, &tile->drift, &tile->square, &tile->proposals, &tile->jumps})
    *lanes = take(1);
  return used;
}

// Where the sample of a lane jumps to in transition k.
inline void jump_lane(const MlpAdjustedParams& p, const AdjustedTile& tile, int64_t k, int lane,
                      int panel) {
  const int64_t dim = p.chain.mlp.dim, row = tile.to.first + lane;
  NoiseKey key = chain_noise_key(p.chain, k);
  key.tag = kJumpTag;
  const uint64_t id = sample_id(p.chain.step, row);
  const Jump jump = jump_of(jump_words(key, id, 0), p.size, p.uniform_below);
  const float* x = tile.x + lane;
  float* y = tile.to.x + lane;
  if (jump.uniform) {
    Words4 w{};
    for (int64_t d = 0; d < dim; ++d) {
      if (d % 4 == 0) w = jump_words(key, id, static_cast<uint32_t>(1 + d / 4));
      y[d * panel] = uniform_element(w.v[d % 4], p.lo[d], p.hi[d]);
    }
  } else {
    const float *b_i = p.population + jump.i * dim, *b_j = p.population + jump.j * dim;
    for (int64_t d = 0; d < dim; ++d) y[d * panel] = jump_element(x[d * panel], b_i[d], b_j[d]);
  }
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
#include "mlp/adjusted/simd.h"
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
#include "mlp/adjusted/simd.h"
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
#include "mlp/adjusted/simd.h"
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

void run(const MlpAdjustedParams& p, const AdjustedTile& tile, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx512) return avx512::run(p, tile, begin, end);
  if (simd_level() == Simd::kAvx2) return avx2::run(p, tile, begin, end);
#endif
  plain::run(p, tile, begin, end);
}

}  // namespace

int64_t mlp_adjusted_scratch_cpu(MlpAdjustedParams* p, int threads) {
  set_tasks(&p->chain, threads, lanes());
  AdjustedTile tile;
  const int64_t floats = lay_out(p->chain.mlp, nullptr, &tile);
  return p->chain.tasks * floats * static_cast<int64_t>(sizeof(float));
}

int mlp_adjusted_cpu(const MlpAdjustedParams& p, int64_t begin, int64_t end, void*) {
  AdjustedTile tile;
  const int64_t floats = lay_out(p.chain.mlp, nullptr, &tile);
  run_tasks(p.chain, lanes(), floats, begin, end, [&](float* memory, int64_t first, int64_t last) {
    lay_out(p.chain.mlp, memory, &tile);
    run(p, tile, first, last);
  });
  return 0;
}

}  // namespace fastebm
