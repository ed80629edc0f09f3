// Random numbers of the samples of a batch, in order. Included once for each instruction set,
// inside its namespace, after random/philox_simd.h. Params is what an operator reads: it has
// sample_ids, and sample_id(p, row).

// What numbers_of_batch() keeps from one call to the next.
struct KeptWords {
  SampleWords words;
  int64_t row = -1;
};

// The numbers of `count` blocks, at most kLanes, from `block` of sample `row` on. A sample has
// `blocks` of them.
template <class Law, class Params>
FASTEBM_TARGET inline Normals numbers_of_batch(const Params& p, const NoiseKey& key,
                                               const RoundKeys& keys, int64_t blocks, int64_t row,
                                               int64_t block, int count, KeptWords* kept) {
  if (block + count <= blocks && blocks >= kLanes) {
    if (row != kept->row) kept->words = sample_words(key, sample_id(p, kept->row = row));
    return normals_of_sample<Law>(keys, kept->words,
                                  counters_ascending(static_cast<uint64_t>(block)));
  }
  if (blocks <= kShortSample && !p.sample_ids) {
    Counters at, ids;
    counters_across(static_cast<uint64_t>(block), sample_id(p, row), static_cast<uint64_t>(blocks),
                    &at, &ids);
    return normals<Law>(keys, at, ids);
  }
  uint64_t ids[kLanes] = {}, at[kLanes] = {};
  for (int i = 0; i < count; ++i) {
    ids[i] = sample_id(p, row);
    at[i] = static_cast<uint64_t>(block);
    if (++block == blocks) block = 0, ++row;
  }
  return normals<Law>(keys, counters_from(at), counters_from(ids));
}

// Those of these numbers that an element needs, in order, where a last block has `last` elements;
// returns how many. There is room for 4 kLanes.
FASTEBM_TARGET inline int64_t pack_numbers(const Normals& n, int count, int64_t blocks,
                                           int64_t block, int last, float* packed) {
  alignas(64) float all[4 * kLanes];
  for (int i = 0; i < 4; ++i) store(all + i * kLanes, n.v[i]);
  int64_t run = 0;
  for (int i = 0; i < count; ++i) {
    std::memcpy(packed + run, all + 4 * i, 16);  // what is over is overwritten by the next
    run += block == blocks - 1 ? last : 4;
    if (++block == blocks) block = 0;
  }
  return run;
}

// Normals of `count` samples of kDim elements, 1 or 2, which is the first half of their blocks;
// with room for whole vectors.
template <int kDim, class Params>
FASTEBM_TARGET inline void short_noise(const Params& p, const RoundKeys& keys, int64_t row,
                                       int64_t count, float* noise) {
  for (int64_t i = 0; i < count; i += kLanes) {
    uint64_t id[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) id[l] = sample_id(p, row + std::min(i + l, count - 1));
    const Normals n =
        normals_by_lane<kDim>(keys, 0, kDim == 1 ? counters_by_lane(id) : counters_by_pair(id));
    store(noise + i * kDim, kDim == 1 ? n.v[0] : unpack_low(n.v[0], n.v[1]));
    if (kDim == 2) store(noise + i * kDim + kLanes, unpack_high(n.v[0], n.v[1]));
  }
}
