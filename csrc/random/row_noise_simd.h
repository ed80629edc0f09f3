// Random numbers of many samples, kLanes blocks at a time: random/row_noise.h says which. Included
// for each instruction set, inside its namespace, after random/philox_simd.h.

struct NoiseStream {
  NoiseKey key;
  RoundKeys keys;
  FASTEBM_TARGET explicit NoiseStream(const NoiseKey& k) : key(k), keys(round_keys(k)) {}
};

FASTEBM_TARGET inline void store_normals(const Normals& n, float* out) {
  for (int i = 0; i < 4; ++i) store(out + i * kLanes, n.v[i]);
}

FASTEBM_TARGET inline void row_normals(const NoiseStream& stream, const uint64_t* ids, int rows,
                                       int64_t first, int64_t blocks, float* out) {
  const auto start = static_cast<uint64_t>(first);
  if (rows == 1 || blocks % kLanes == 0) {
    for (int row = 0; row < rows; ++row, out += 4 * blocks) {
      const SampleWords words = sample_words(stream.key, ids[row]);
      for (int64_t b = 0; b < blocks; b += kLanes) {
        const Counters at = counters_ascending(start + static_cast<uint64_t>(b));
        store_normals(normals_of_sample(stream.keys, words, at), out + 4 * b);
      }
    }
    return;
  }
  const int64_t all = rows * blocks;
  int row = 0;
  int64_t block = 0;
  for (int64_t b = 0; b < all; b += kLanes) {
    uint64_t at[kLanes], id[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      at[i] = start + static_cast<uint64_t>(block);
      id[i] = ids[row];
      if (++block == blocks) block = 0, row += row + 1 < rows;
    }
    store_normals(normals(stream.keys, counters_from(at), counters_from(id)), out + 4 * b);
  }
}

// ids: with room to read on, up to a multiple of kLanes.
template <int kElements>
FASTEBM_TARGET void first_normals(const NoiseStream& stream, const uint64_t* ids, int rows,
                                  int64_t stride, float* out) {
  for (int row = 0; row < rows; row += kLanes) {
    const Normals n = normals_by_lane<kElements>(stream.keys, 0, counters_by_lane(ids + row));
    for (int i = 0; i < kElements; ++i) store(out + i * stride + row, n.v[i]);
  }
}

FASTEBM_TARGET inline void first_uniforms(const NoiseStream& stream, const uint64_t* ids, int rows,
                                          float* out) {
  for (int row = 0; row < rows; row += kLanes) {
    const Counters id = counters_by_lane(ids + row);
    store(out + row, normals_by_lane<2, UniformLaw>(stream.keys, 0, id).v[0]);
  }
}
