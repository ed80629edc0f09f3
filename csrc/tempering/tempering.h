// Swaps between replicas at neighbouring temperatures over raw memory (parallel tempering: Swendsen
// and Wang 1986, Geyer 1991): the arithmetic of one pair, what a caller fills in, and the
// launchers. No torch, no Python.
//
// Replicas r and r + 1 of a chain exchange their states with probability min(1, exp(log r)),
//   log r = (1 / T_r - 1 / T_{r+1}) (E_r - E_{r+1}),
// which leaves the product of exp(-E / T_r) over replicas as it is. A velocity goes along, scaled
// by sqrt(T_new / T_old), to which its law at the new temperature is due. NaN is refused.
#pragma once
#include "metropolis/metropolis.h"

namespace fastebm {

constexpr uint32_t kSwapTag = 0x8f;

// All arrays are dense: x, grad, velocity (replicas, chains, dim) of `dtype`.
struct SwapParams {
  Dtype dtype;
  int64_t replicas, chains, dim;
  int64_t parity;  // pairs (r, r + 1) with r % 2 of this
  void *x, *grad;
  void* velocity;  // or null
  void* energy;    // (replicas, chains) float64 if `wide`, else float32
  bool wide;
  const double* temperatures;  // (replicas,)
  float* swaps;                // (replicas - 1, chains): to which min(1, r) is added
  const int64_t* rng;          // {key, step, first chain's id, 0}, on the device of x
  uint32_t t;                  // added to the step in rng
  const int64_t* sample_ids;   // null: first chain's id + its number; or (chains,)
};

// Pairs of replicas, times chains: which is what there is to do.
FASTEBM_HD int64_t pairs_of(const SwapParams& p) { return (p.replicas - p.parity) / 2 * p.chains; }

// Both devices: returns 0 or a cudaError_t. The CPU launcher takes [begin, end) of pairs_of(), the
// CUDA one all of them, on `stream`.
using SwapLauncher = int(const SwapParams& p, int64_t begin, int64_t end, void* stream);
SwapLauncher replica_swap_cpu, replica_swap_cuda;

FASTEBM_HD NoiseKey noise_key(const SwapParams& p) {
  return NoiseKey{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]) + p.t, kSwapTag};
}

// One pair of one chain. `low` and `high` number the two states among replicas * chains.
struct SwapPair {
  int64_t replica, chain, low, high;
};

FASTEBM_HD SwapPair swap_pair(const SwapParams& p, int64_t number) {
  const int64_t replica = p.parity + 2 * (number / p.chains), chain = number % p.chains;
  const int64_t low = replica * p.chains + chain;
  return {replica, chain, low, low + p.chains};
}

FASTEBM_HD double energy_of(const SwapParams& p, int64_t state) {
  return p.wide ? static_cast<const double*>(p.energy)[state]
                : static_cast<double>(static_cast<const float*>(p.energy)[state]);
}

FASTEBM_HD float swap_log_ratio(const SwapParams& p, const SwapPair& pair) {
  const double* t = p.temperatures + pair.replica;
  const double by = 1.0 / t[0] - 1.0 / t[1];
  return static_cast<float>(mul_rn(by, energy_of(p, pair.low) - energy_of(p, pair.high)));
}

FASTEBM_HD bool is_accepted(const SwapParams& p, const SwapPair& pair, float log_r) {
  const int64_t id = p.sample_ids ? p.sample_ids[pair.chain] : p.rng[2] + pair.chain;
  const Normals4 n =
      normals4(noise_key(p), static_cast<uint64_t>(id), static_cast<uint32_t>(pair.replica));
  return is_accepted(log_r, n.v[0], n.v[1]);
}

FASTEBM_HD void swap_energies(const SwapParams& p, const SwapPair& pair) {
  const double low = energy_of(p, pair.low), high = energy_of(p, pair.high);
  if (p.wide) {
    static_cast<double*>(p.energy)[pair.low] = high;
    static_cast<double*>(p.energy)[pair.high] = low;
  } else {
    static_cast<float*>(p.energy)[pair.low] = static_cast<float>(high);
    static_cast<float*>(p.energy)[pair.high] = static_cast<float>(low);
  }
}

// What a velocity that comes to the pair's first and second temperature is multiplied by.
template <class C>
struct Scales {
  C to_low, to_high;
};

template <class C>
FASTEBM_HD Scales<C> velocity_scales(const SwapParams& p, const SwapPair& pair) {
  const double* t = p.temperatures + pair.replica;
  return {static_cast<C>(sqrt(t[0] / t[1])), static_cast<C>(sqrt(t[1] / t[0]))};
}

template <class T>
FASTEBM_HD void swap_elements(T* low, T* high) {
  const T kept = *low;
  *low = *high;
  *high = kept;
}

template <class T>
FASTEBM_HD void swap_velocities(T* low, T* high, const Scales<Compute<T>>& scales) {
  const Compute<T> kept = widen(*low);
  *low = narrow<T>(mul_rn(scales.to_low, widen(*high)));
  *high = narrow<T>(mul_rn(scales.to_high, kept));
}

}  // namespace fastebm
