// A step of Hamiltonian Monte Carlo on a CPU: the same loops for every instruction set, with the
// same bits.
#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "hamiltonian/hamiltonian.h"
#include "simd/simd.h"

namespace fastebm {
namespace {

// clang-format off
namespace plain {
#define FASTEBM_TARGET
#include "random/row_noise.h"
#include "launch/row_tiles.h"
#include "hamiltonian/rows.h"
#undef FASTEBM_TARGET
}  // namespace plain

#if defined(__x86_64__)
namespace avx2 {
#define FASTEBM_TARGET __attribute__((target("avx2,fma,f16c")))
#include "simd/avx2.h"
#include "random/philox_simd.h"
#include "random/row_noise_simd.h"
#include "launch/row_tiles.h"
#include "hamiltonian/rows.h"
#undef FASTEBM_TARGET
}  // namespace avx2

namespace avx512 {
#define FASTEBM_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#include "simd/avx512.h"
#include "random/philox_simd.h"
#include "random/row_noise_simd.h"
#include "launch/row_tiles.h"
#include "hamiltonian/rows.h"
#undef FASTEBM_TARGET
}  // namespace avx512
#endif
// clang-format on

template <class C, int kDim>
void run(const HamiltonianParams& p, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx512) return avx512::run_step<C, kDim>(p, begin, end);
  if (simd_level() == Simd::kAvx2) return avx2::run_step<C, kDim>(p, begin, end);
#endif
  plain::run_step<C, kDim>(p, begin, end);
}

template <class C>
void run_any(const HamiltonianParams& p, int64_t begin, int64_t end) {
  if (p.dim == 1) return run<C, 1>(p, begin, end);
  if (p.dim == 2) return run<C, 2>(p, begin, end);
  if (p.dim == 3) return run<C, 3>(p, begin, end);
  if (p.dim == 4) return run<C, 4>(p, begin, end);
  run<C, 0>(p, begin, end);
}

}  // namespace

int hmc_step_cpu(const HamiltonianParams& p, int64_t begin, int64_t end, void*) {
  if (p.dtype == Dtype::kFloat64)
    run_any<double>(p, begin, end);
  else
    run_any<float>(p, begin, end);
  return 0;
}

}  // namespace fastebm
