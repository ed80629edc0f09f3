// A slot for each row of a batch, such that slots are distinct, 0 .. size - 1 are equally probable,
// and whoever has some rows of the batch finds theirs alone, as all rows together would be.
//
// With g the greatest common divisor of size and total, the slots are g blocks of size / g and the
// rows g blocks of total / g, block b of the rows for block b of the slots: so N processes that
// share both evenly keep to their own. In a block, row j of m draws from the j-th of m strata.
// Where m > 1 these differ by one in length, so there a random amount turns the block as a ring.
#pragma once
#include <numeric>

#include "random/choice/choice.h"

namespace fastebm {

constexpr uint32_t kStratumTag = 0x8B;
constexpr int64_t kMostStrata = int64_t{1} << 22;  // times kMaxChoice, they fit in int64

struct StrataParams {
  const int64_t* rng;  // {key, step, not looked at, 0}
  int64_t first, n;    // rows first .. first + n - 1
  int64_t length;      // of a block of slots, from strata_blocks
  uint32_t rows;       // of a block of rows
  int64_t* chosen;     // (n,)
};

// The values [begin, end) of `chosen`.
int choose_strata_cpu(const StrataParams&, int64_t begin, int64_t end);
// Queues all of them on `stream` (a cudaStream_t); returns 0 or a cudaError_t.
int choose_strata_cuda(const StrataParams&, void* stream);

// Fills in the blocks; 0 < total <= size.
inline void strata_blocks(StrataParams* p, int64_t size, int64_t total) {
  const int64_t blocks = std::gcd(size, total);
  p->length = size / blocks;
  p->rows = static_cast<uint32_t>(total / blocks);
}

FASTEBM_HD Words4 stratum_words(const StrataParams& p, uint32_t row) {
  const NoiseKey k{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]), kStratumTag};
  return philox4x32(noise_counter(k, row, 0), static_cast<uint32_t>(k.key),
                    static_cast<uint32_t>(k.key >> 32));
}

// One of 0 .. length - 1, each with a probability within 2^-64 of the others'.
FASTEBM_HD uint64_t one_of(uint32_t high, uint32_t low, uint64_t length) {
  return mul_high(static_cast<uint64_t>(high) << 32 | low, length);
}

// The slot of value `at`: words 0 and 1 of its row draw it, 2 and 3 of the block's first row turn.
FASTEBM_HD void choose_in_stratum(const StrataParams& p, int64_t at) {
  const auto row = static_cast<uint32_t>(p.first + at);
  const auto length = static_cast<uint64_t>(p.length);
  const uint32_t block = row / p.rows;
  uint64_t low = 0, high = length, turn = 0;
  if (p.rows > 1) {
    const uint32_t begin = block * p.rows;
    low = (row - begin) * length / p.rows;
    high = (row - begin + 1) * length / p.rows;
    const Words4 w = stratum_words(p, begin);
    turn = one_of(w.v[2], w.v[3], length);
  }
  const Words4 w = stratum_words(p, row);
  uint64_t slot = low + one_of(w.v[0], w.v[1], high - low) + turn;
  slot -= slot >= length ? length : 0;
  p.chosen[at] = static_cast<int64_t>(block * length + slot);
}

}  // namespace fastebm
