// Tensor cores and asynchronous copies of sm_80 on the emulated device.
//
// A copy is made when its group is waited for, and until then its target is 0xFF bytes (NaN): a
// missing wait or barrier, or a copy into a tile still in use, is a wrong result. What this cannot
// show: copies that land early, and the exact sums of the hardware. Here a product of matrices is
// summed exactly and then cut to float32 towards zero, which the hardware does after fewer terms.
// Products of bytes are the hardware's, to the bit.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "simt/collectives.h"

namespace simt {

inline void copy_async(void* to, const void* from, unsigned bytes) {
  Fiber& self = machine->fibers[machine->running];
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes)
    fail("an asynchronous copy of addresses that are not multiples of its size");
  std::memset(to, 0xFF, bytes);
  self.copies.push_back({to, from, bytes, self.group});
}

inline void commit_copies() { ++machine->fibers[machine->running].group; }

inline void wait_copies(unsigned left) {
  Fiber& self = machine->fibers[machine->running];
  size_t done = 0;
  for (; done < self.copies.size() && self.copies[done].group + left < self.group; ++done) {
    const Copy& copy = self.copies[done];
    if (copy.from)
      std::memcpy(copy.to, copy.from, copy.bytes);
    else
      std::memset(copy.to, 0, copy.bytes);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

inline uint32_t bfloat16_bits(float v) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  return v != v ? 0x7FFFu : (u + 0x7FFFu + (u >> 16 & 1)) >> 16;
}

inline uint32_t bfloat16_pair(float low, float high) {
  return bfloat16_bits(high) << 16 | bfloat16_bits(low);
}

// Element 0 (low) or 1 of a pair.
inline double bfloat16_of(uint32_t pair, int half) {
  const uint32_t u = half ? pair & 0xFFFF0000u : pair << 16;
  float v;
  std::memcpy(&v, &u, 4);
  return v;
}

struct MatricesLane {
  const void* row;
  uint32_t* r;
};

// Four 8 x 8 matrices of 16-bit elements in the layout of ldmatrix.x4; all lanes read at once.
inline void load_matrices(uint32_t* r, const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("a matrix row that is not on a multiple of 16");
  MatricesLane mine{row, r};
  meet(0xFFFFFFFFu, reinterpret_cast<uint64_t>(&mine), [transposed](const auto& all) {
    const auto lane = [&](unsigned l) { return reinterpret_cast<const MatricesLane*>(all[l]); };
    for (unsigned l = 0; l < 32; ++l)
      for (unsigned i = 0; i < 4; ++i) {
        const auto element = [&](unsigned j, unsigned k) -> uint32_t {
          return static_cast<const uint16_t*>(lane(8 * i + j)->row)[k];
        };
        const unsigned g = l / 4, t = 2 * (l % 4);
        lane(l)->r[i] = transposed ? element(t, g) | element(t + 1, g) << 16
                                   : element(g, t) | element(g, t + 1) << 16;
      }
  });
}

template <class C>
struct MmaLane {
  C (*c)[4];
  const uint32_t* a;
  const uint32_t (*b)[2];
};

// c[i] += a b[i] in the layout of mma.sync.m16n8k16, for `tiles` matrices b.
inline void mma_bfloat16(float (*c)[4], const uint32_t* a, const uint32_t (*b)[2], int tiles) {
  MmaLane<float> mine{c, a, b};
  meet(0xFFFFFFFFu, reinterpret_cast<uint64_t>(&mine), [tiles](const auto& all) {
    const auto lane = [&](int l) { return reinterpret_cast<const MmaLane<float>*>(all[l]); };
    double left[16][16], right[16][8];
    for (int l = 0; l < 32; ++l)
      for (int r = 0; r < 4; ++r)
        for (int h = 0; h < 2; ++h)
          left[l / 4 + 8 * (r & 1)][2 * (l % 4) + 8 * (r >> 1) + h] = bfloat16_of(lane(l)->a[r], h);
    for (int i = 0; i < tiles; ++i) {
      for (int l = 0; l < 32; ++l)
        for (int r = 0; r < 2; ++r)
          for (int h = 0; h < 2; ++h)
            right[2 * (l % 4) + 8 * r + h][l / 4] = bfloat16_of(lane(l)->b[i][r], h);
      for (int l = 0; l < 32; ++l)
        for (int r = 0; r < 4; ++r) {
          float& out = lane(l)->c[i][r];
          double sum = out;
          for (int k = 0; k < 16; ++k)
            sum += left[l / 4 + 8 * (r >> 1)][k] * right[k][2 * (l % 4) + (r & 1)];
          out = static_cast<float>(sum);
          if (std::abs(out) > std::abs(sum)) out = std::nextafter(out, 0.0f);
        }
    }
  });
}

// c[i] += a b[i] in the layout of mma.sync.m16n8k32 of bytes, for `tiles` matrices b.
inline void mma_bytes(int32_t (*c)[4], const uint32_t* a, const uint32_t (*b)[2], int tiles) {
  MmaLane<int32_t> mine{c, a, b};
  meet(0xFFFFFFFFu, reinterpret_cast<uint64_t>(&mine), [tiles](const auto& all) {
    const auto lane = [&](int l) { return reinterpret_cast<const MmaLane<int32_t>*>(all[l]); };
    uint8_t left[16][32], right[8][32];  // rows of a, columns of b
    for (int l = 0; l < 32; ++l)
      for (int r = 0; r < 4; ++r)
        std::memcpy(&left[l / 4 + 8 * (r & 1)][4 * (l % 4) + 16 * (r >> 1)], &lane(l)->a[r], 4);
    for (int i = 0; i < tiles; ++i) {
      for (int l = 0; l < 32; ++l)
        for (int r = 0; r < 2; ++r)
          std::memcpy(&right[l / 4][4 * (l % 4) + 16 * r], &lane(l)->b[i][r], 4);
      for (int l = 0; l < 32; ++l)
        for (int r = 0; r < 4; ++r) {
          const uint8_t *row = left[l / 4 + 8 * (r >> 1)], *column = right[2 * (l % 4) + (r & 1)];
          uint32_t sum = static_cast<uint32_t>(lane(l)->c[i][r]);
          for (int k = 0; k < 32; ++k) sum += static_cast<uint32_t>(row[k]) * column[k];
          lane(l)->c[i][r] = static_cast<int32_t>(sum);
        }
    }
  });
}

}  // namespace simt
