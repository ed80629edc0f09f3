// n distinct numbers out of 0 .. size - 1: the first n values of a random permutation that is a
// formula, so there is no table of `size` entries, every value comes by itself, and its inverse
// says which place a number has. Here is what a caller fills in, the launchers, and the formula.
//
// The numbers are cells of a table of about sqrt(size) rows and columns. A round moves every column
// down by a random amount of its own, the next one every row to the right (a Feistel network over
// the integers mod rows and columns; Black and Rogaway, CT-RSA 2002). A cell past the end is moved
// on until it is a number. With exactly random amounts the law of all permutations of up to 6
// numbers is uniform to 4e-9 of each probability, and that of any two values to 1e-6 for all sizes.
#pragma once
#include "random/philox.h"

namespace fastebm {

constexpr uint32_t kChoiceTag = 0x89;
constexpr int kRounds = 16, kRoundsOfFew = 64;  // a small table mixes less in a round
constexpr int64_t kFew = 128, kMaxChoice = int64_t{1} << 40;

struct ChoiceParams {
  const int64_t* rng;  // {key, step, not looked at, 0}
  uint32_t t;          // added to the step
  int64_t size, n, n_slots;
  uint32_t rows, columns;  // from choice_table
  uint64_t inverse;        // of columns: above 2^62 / columns, by 1 at most
  const int64_t* slots;    // null, or (n_slots,)
  int64_t* chosen;         // (n,)
  int64_t* own;            // (n_slots,): where in `chosen` a slot is, or -1
};

// The values [begin, end) of `chosen`, and after its n those of `own`.
int choose_slots_cpu(const ChoiceParams&, int64_t begin, int64_t end);
// Queues all of them on `stream` (a cudaStream_t); returns 0 or a cudaError_t.
int choose_slots_cuda(const ChoiceParams&, void* stream);

// Fills in the table: rows >= columns, and less than a row of cells too many.
inline void choice_table(ChoiceParams* p) {
  p->rows = static_cast<uint32_t>(std::sqrt(static_cast<double>(p->size)));
  while (static_cast<int64_t>(p->rows) * p->rows < p->size) ++p->rows;
  p->columns = static_cast<uint32_t>((p->size + p->rows - 1) / p->rows);
  p->inverse = (uint64_t{1} << 62) / p->columns + 1;
}

// The upper half of a product.
FASTEBM_HD uint64_t mul_high(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

// number / columns: exact, as number * columns < 2^62.
FASTEBM_HD uint32_t row_of(const ChoiceParams& p, int64_t number) {
  return static_cast<uint32_t>(mul_high(4 * static_cast<uint64_t>(number), p.inverse));
}

FASTEBM_HD int choice_rounds(const ChoiceParams& p) {
  return p.size < kFew ? kRoundsOfFew : kRounds;
}

// One word for each round, from the stream.
struct ChoiceKey {
  uint32_t word[kRoundsOfFew];
};

// The words 4 block .. of the key.
FASTEBM_HD void choice_words(const ChoiceParams& p, int block, ChoiceKey* key) {
  const NoiseKey k{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]) + p.t,
                   kChoiceTag};
  const Words4 w = philox4x32(noise_counter(k, 0, static_cast<uint32_t>(block)),
                              static_cast<uint32_t>(k.key), static_cast<uint32_t>(k.key >> 32));
  for (int i = 0; i < 4; ++i) key->word[4 * block + i] = w.v[i];
}

// By how much line `line` moves, in 0 .. length - 1: a bijection of 32 bits in which each bit goes
// into all (constants: C. Wellons, hash-prospector), of a window that the word chooses.
FASTEBM_HD uint32_t line_shift(uint32_t line, uint32_t word, uint32_t length) {
  uint32_t h = line + word;
  h = (h ^ h >> 16) * 0x7feb352du;
  h = (h ^ h >> 15) * 0x846ca68bu;
  h ^= h >> 16;
  return static_cast<uint32_t>(static_cast<uint64_t>(h) * length >> 32);
}

// The rounds, on kLanes numbers at once: one by one, each waits for itself.
template <int kLanes>
FASTEBM_HD void permute(const ChoiceParams& p, const ChoiceKey& key, int64_t* number) {
  uint32_t row[kLanes], column[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    row[i] = row_of(p, number[i]);
    column[i] = static_cast<uint32_t>(number[i] - static_cast<int64_t>(row[i]) * p.columns);
  }
  for (int r = 0; r < choice_rounds(p); r += 2)
    for (int i = 0; i < kLanes; ++i) {
      row[i] += line_shift(column[i], key.word[r], p.rows);
      row[i] -= row[i] >= p.rows ? p.rows : 0;
      column[i] += line_shift(row[i], key.word[r + 1], p.columns);
      column[i] -= column[i] >= p.columns ? p.columns : 0;
    }
  for (int i = 0; i < kLanes; ++i) number[i] = static_cast<int64_t>(row[i]) * p.columns + column[i];
}

// Their inverse.
template <int kLanes>
FASTEBM_HD void permute_back(const ChoiceParams& p, const ChoiceKey& key, int64_t* number) {
  uint32_t row[kLanes], column[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    row[i] = row_of(p, number[i]);
    column[i] = static_cast<uint32_t>(number[i] - static_cast<int64_t>(row[i]) * p.columns);
  }
  for (int r = choice_rounds(p); r > 0; r -= 2)
    for (int i = 0; i < kLanes; ++i) {
      column[i] += p.columns - line_shift(row[i], key.word[r - 1], p.columns);
      column[i] -= column[i] >= p.columns ? p.columns : 0;
      row[i] += p.rows - line_shift(column[i], key.word[r - 2], p.rows);
      row[i] -= row[i] >= p.rows ? p.rows : 0;
    }
  for (int i = 0; i < kLanes; ++i) number[i] = static_cast<int64_t>(row[i]) * p.columns + column[i];
}

// What is at the places at, at + 1, ... of the permutation.
template <int kLanes>
FASTEBM_HD void choose(const ChoiceParams& p, const ChoiceKey& key, int64_t at) {
  int64_t number[kLanes];
  for (int i = 0; i < kLanes; ++i) number[i] = at + i;
  permute<kLanes>(p, key, number);
  for (int i = 0; i < kLanes; ++i) {
    while (number[i] >= p.size) permute<1>(p, key, number + i);
    p.chosen[at + i] = number[i];
  }
}

// At which places the slots at, at + 1, ... are, if at one of the first n.
template <int kLanes>
FASTEBM_HD void find(const ChoiceParams& p, const ChoiceKey& key, int64_t at) {
  int64_t place[kLanes];
  bool known[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const int64_t slot = p.slots[at + i];
    known[i] = slot >= 0 && slot < p.size;
    place[i] = known[i] ? slot : 0;
  }
  permute_back<kLanes>(p, key, place);
  for (int i = 0; i < kLanes; ++i) {
    while (place[i] >= p.size) permute_back<1>(p, key, place + i);
    p.own[at + i] = known[i] && place[i] < p.n ? place[i] : -1;
  }
}

}  // namespace fastebm
