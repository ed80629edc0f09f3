// A slot for each row of a batch, from the row's own part of 0 .. size - 1: the numbers are cut
// into as many strata as the batch has rows, and row i draws one of the i-th. So slots are
// distinct, and whoever has some rows of the batch finds theirs alone, as all rows together would
// be.
#pragma once
#include "random/choice/choice.h"

namespace fastebm {

constexpr uint32_t kStratumTag = 0x8B;
constexpr int64_t kMostStrata = int64_t{1} << 22;  // times kMaxChoice, they fit in int64

struct StrataParams {
  const int64_t* rng;             // {key, step, not looked at, 0}
  int64_t size, n, first, total;  // rows first .. first + n - 1 of total, total <= size
  int64_t* chosen;                // (n,)
};

// The values [begin, end) of `chosen`.
int choose_strata_cpu(const StrataParams&, int64_t begin, int64_t end);
// Queues all of them on `stream` (a cudaStream_t); returns 0 or a cudaError_t.
int choose_strata_cuda(const StrataParams&, void* stream);

// The slot of value `at`: each of its stratum has a probability within 2^-64 of the others'.
FASTEBM_HD void choose_in_stratum(const StrataParams& p, int64_t at) {
  const int64_t row = p.first + at;
  const int64_t low = row * p.size / p.total, high = (row + 1) * p.size / p.total;
  const NoiseKey k{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]), kStratumTag};
  const Words4 w = philox4x32(noise_counter(k, static_cast<uint64_t>(row), 0),
                              static_cast<uint32_t>(k.key), static_cast<uint32_t>(k.key >> 32));
  const uint64_t u = static_cast<uint64_t>(w.v[0]) << 32 | w.v[1];
  p.chosen[at] = low + static_cast<int64_t>(mul_high(u, static_cast<uint64_t>(high - low)));
}

}  // namespace fastebm
