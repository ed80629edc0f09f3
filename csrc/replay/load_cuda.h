// Reading samples on a CUDA device, blocks of four elements at a time: the bits of load_block().
#pragma once
#include "launch/element_blocks_cuda.h"
#include "replay/replay.h"

namespace fastebm {
namespace {

template <bool kWhole>
__device__ __forceinline__ int elements_in(const ReplayParams& p, uint32_t block) {
  const uint32_t whole = static_cast<uint32_t>(p.dim >> 2);
  const int rest = kWhole ? 0 : static_cast<int>(p.dim & 3);
  return block < whole ? 4 : block == whole ? rest : 0;
}

// Four stored elements as numbers.
template <class T>
__device__ __forceinline__ void numbers_of(const Quad<T>& q, float (&to)[4]) {
  widen_quad(q, to);
}
template <>
__device__ __forceinline__ void numbers_of<uint8_t>(const Quad<uint8_t>& q, float (&to)[4]) {
  for (int i = 0; i < 4; ++i) to[i] = static_cast<float>(q.words[0] >> 8 * i & 0xffu);
}

// Computes: the elements of some blocks of a sample, of which `stored` is what the buffer has.
template <class T, int kBlocks>
__device__ __forceinline__ void block_values(const ReplayParams& p, uint64_t id, int64_t slot,
                                             const uint32_t (&block)[kBlocks],
                                             const Quad<T> (&stored)[kBlocks],
                                             Quad<float> (&to)[kBlocks]) {
  Words4 words[kBlocks];
  for (int b = 0; b < kBlocks; ++b) words[b] = block_counter(p, id, block[b]);
  if (needs_words<T>(p, slot)) {
    const uint64_t key = replay_key(p, kReplayTag).key;
    philox4x32(words, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
  }
  for (int b = 0; b < kBlocks; ++b) {
    float values[4];
    if (slot >= 0) {
      numbers_of(stored[b], values);
      stored_values<T>(p, values, words[b], values);
    } else {
      initial_values(p, slot, words[b], values);
    }
    memcpy(&to[b], values, sizeof(values));
  }
}

}  // namespace
}  // namespace fastebm
