// Random numbers of many samples, one after the other. Included inside a namespace of its own, for
// CPUs without the vectors of random/row_noise_simd.h, which gives the same bits.

struct NoiseStream {
  NoiseKey key;
  explicit NoiseStream(const NoiseKey& k) : key(k) {}
};

// Normals of `blocks` blocks of four elements, from block `first` on, of each of `rows` samples:
// 4 * blocks floats for each, with room for 4 * kMaxLanes more at the end.
inline void row_normals(const NoiseStream& stream, const uint64_t* ids, int rows, int64_t first,
                        int64_t blocks, float* out) {
  for (int row = 0; row < rows; ++row)
    for (int64_t b = 0; b < blocks; ++b, out += 4) {
      const Normals4 n = normals4(stream.key, ids[row], static_cast<uint32_t>(first + b));
      std::copy_n(n.v, 4, out);
    }
}

// The first kElements normals, 2 or 4, of `rows` samples: element i of sample r at [i * stride +
// r], with room for as many samples as are a multiple of kMaxLanes.
template <int kElements>
void first_normals(const NoiseStream& stream, const uint64_t* ids, int rows, int64_t stride,
                   float* out) {
  for (int row = 0; row < rows; ++row) {
    const Normals4 n = normals4(stream.key, ids[row], 0);
    for (int i = 0; i < kElements; ++i) out[i * stride + row] = n.v[i];
  }
}

// A uniform number in [0, 1) for each of `rows` samples; room as above.
inline void first_uniforms(const NoiseStream& stream, const uint64_t* ids, int rows, float* out) {
  const auto k0 = static_cast<uint32_t>(stream.key.key);
  const auto k1 = static_cast<uint32_t>(stream.key.key >> 32);
  for (int row = 0; row < rows; ++row)
    out[row] = uniform_of(philox4x32(noise_counter(stream.key, ids[row], 0), k0, k1).v[0]);
}
