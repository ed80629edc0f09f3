// Products of bytes on AMX tiles, over neighbor/vnni_simd.h: 16 references, 16 queries and 64
// elements an instruction. Included before neighbor/bytes_simd.h.

struct alignas(64) TileShapes {  // as LDTILECFG reads them
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  TileShapes() {
    std::fill_n(row_bytes, 8, uint16_t{64});
    std::fill_n(rows, 8, uint8_t{16});
  }
};

struct ProductUnit {
  FASTEBM_TARGET ProductUnit() {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
    asm volatile("" ::: "memory");  // loads of tiles come after stores to what they read
  }
  FASTEBM_TARGET ~ProductUnit() { _tile_release(); }
};

// dots[r][q] = y[r] . x[q] of kRows references and kTiles tiles of queries.
template <int kTiles>
FASTEBM_TARGET inline void multiply_tiles(const Word* y, const Word* x, int depth,
                                          int32_t (*dots)[kBytePanel]) {
  static_assert(kRows == 32 && kBytePanel == 32, "two tiles each");
  constexpr int kStride = kBytePanel * kPer;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int k = 0; k < depth; k += kByteAlign) {
    const Word* at = x + k * kBytePanel;
    _tile_loadd(4, y + k, kBytePitch);
    _tile_loadd(5, y + 16 * kBytePitch + k, kBytePitch);
    _tile_loadd(6, at, kStride);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(2, 5, 6);
    if constexpr (kTiles > 1) {
      _tile_loadd(7, at + kStride / 2, kStride);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(3, 5, 7);
    }
  }
  _tile_stored(0, dots[0], sizeof *dots);
  _tile_stored(1, dots[0] + 16, sizeof *dots);
  _tile_stored(2, dots[16], sizeof *dots);
  _tile_stored(3, dots[16] + 16, sizeof *dots);
}

// c[r][q] (+)= |y[r]|^2 + |x[q]|^2 - 2 y[r].x[q], of kRows references and the first `queries` of a
// panel, at least, from y . (x - 128) and sums[r] of y (y - 256).
FASTEBM_TARGET inline void multiply_rows(const Word* y, const Word* x, int depth, int queries,
                                         const int32_t* sums, const int32_t* squares, bool first,
                                         float* c) {
  alignas(64) int32_t dots[kRows][kBytePanel];
  if (queries > 16)
    multiply_tiles<2>(y, x, depth, dots);
  else
    multiply_tiles<1>(y, x, depth, dots);
  for (int r = 0; r < kRows; ++r)
    for (int q = 0; q < queries; q += kLanes)
      add_square(load_ints(dots[r] + q), sums[r], squares + q, first, c + r * kBytePanel + q);
}
