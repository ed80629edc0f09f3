// The gradient in the parameters for tiles of samples, a sample to a lane; the letters are those
// of mlp/gradient/gradient.h. Included for each instruction set, inside its namespace, after
// mlp/products_simd.h.

constexpr int kPanel = 2 * kLanes;  // samples of a tile

FASTEBM_TARGET inline void forward(const MlpGradientParams& p, const Tile& tile) {
  const Mlp& mlp = p.mlp;
  for (int l = 0; l < mlp.hidden; ++l) {
    const int64_t width = mlp.width[l], inputs = mlp.inputs(l);
    float* value = tile.h[l + 1];
    const Matrix weight{mlp.weight[l], width, inputs, inputs, 1};
    if (l == 0 && p.row_bias) {
      load_tile(p.row_bias + tile.first * width, width, tile.count, kPanel, value);
      multiply<2, With::kBiases>(weight, value, tile.h[0], value);
    } else {
      multiply<2, With::kBias>(weight, mlp.bias[l], tile.h[l], value);
    }
    visit_activation(mlp.activation, [&](auto activation) FASTEBM_TARGET {
      for (int64_t i = 0; i < width * kPanel; i += kLanes) {
        const Activated a =
            activate<decltype(activation)::value>(load(value + i), mlp.beta, mlp.threshold);
        store(value + i, a.value);
        store(tile.slope[l] + i, a.slope);
        if (p.v) store(tile.curvature[l] + i, a.curvature);
      }
      return 0;
    });
  }
  const int64_t inputs = mlp.inputs(mlp.hidden);
  multiply<2, With::kBias>({mlp.weight[mlp.hidden], 1, inputs, inputs, 1}, mlp.bias[mlp.hidden],
                           tile.h[mlp.hidden], tile.energy);
}

FASTEBM_TARGET inline void backward(const MlpGradientParams& p, const Tile& tile) {
  const Mlp& mlp = p.mlp;
  const int top = mlp.hidden - 1;
  for (int64_t j = 0; j < mlp.width[top]; ++j)
    for (int64_t i = j * kPanel; i < (j + 1) * kPanel; i += kLanes) {
      const Floats w = set(mlp.weight[mlp.hidden][j]);
      store(tile.to_h[top] + i, w);
      store(tile.to_z[top] + i, mul(w, load(tile.slope[top] + i)));
    }
  for (int l = top; l > 0; --l) {
    const int64_t width = mlp.width[l], below = mlp.width[l - 1];
    multiply<2, With::kBias>({mlp.weight[l], below, width, 1, below}, nullptr, tile.to_z[l],
                             tile.to_h[l - 1]);
    for (int64_t i = 0; i < below * kPanel; i += kLanes)
      store(tile.to_z[l - 1] + i, mul(load(tile.slope[l - 1] + i), load(tile.to_h[l - 1] + i)));
  }
  const bool with_grad = p.grad && tile.first + tile.count > p.n_data;
  if (with_grad)
    multiply<2, With::kBias>({mlp.weight[0], mlp.dim, mlp.width[0], 1, mlp.dim}, nullptr,
                             tile.to_z[0], tile.grad);
  if (mlp.base_precision) add_base<2>(mlp, tile.h[0], with_grad ? tile.grad : nullptr, tile.energy);
}

// t and r: what depends on v. tile.t[0] is v.
FASTEBM_TARGET inline void along(const Mlp& mlp, const Tile& tile) {
  for (int l = 0; l < mlp.hidden; ++l) {
    const int64_t width = mlp.width[l], inputs = mlp.inputs(l);
    multiply<2, With::kBias>({mlp.weight[l], width, inputs, inputs, 1}, nullptr, tile.t[l],
                             tile.moved);
    for (int64_t i = 0; i < width * kPanel; i += kLanes) {
      const Floats moved = load(tile.moved + i);
      store(tile.t[l + 1] + i, mul(load(tile.slope[l] + i), moved));
      store(tile.through[l] + i,
            mul(mul(load(tile.curvature[l] + i), moved), load(tile.to_h[l] + i)));
    }
  }
  for (int l = mlp.hidden - 1; l > 0; --l) {
    const int64_t width = mlp.width[l], below = mlp.width[l - 1];
    multiply<2, With::kFactors>({mlp.weight[l], below, width, 1, below}, tile.slope[l - 1],
                                tile.through[l], tile.moved);
    for (int64_t i = 0; i < below * kPanel; i += kLanes)
      store(tile.through[l - 1] + i, add(load(tile.through[l - 1] + i), load(tile.moved + i)));
  }
}

// (features, kPanel) in panels of features, of kPanel x kPanel numbers each, `stride` apart.
inline void transpose(const float* from, int64_t features, float* to, int64_t stride) {
  typedef float Four __attribute__((vector_size(16)));
  typedef int32_t Order __attribute__((vector_size(16)));
  for (int64_t begin = 0; begin < features; begin += kPanel, to += stride)
    for (int64_t j = 0; j < kPanel; j += 4)
      for (int64_t s = 0; s < kPanel; s += 4) {
        Four row[4] = {};
        for (int64_t i = 0; i < std::min<int64_t>(4, features - begin - j); ++i)
          std::memcpy(&row[i], from + (begin + j + i) * kPanel + s, sizeof(Four));
        const Four a = __builtin_shuffle(row[0], row[1], Order{0, 4, 1, 5});
        const Four b = __builtin_shuffle(row[0], row[1], Order{2, 6, 3, 7});
        const Four c = __builtin_shuffle(row[2], row[3], Order{0, 4, 1, 5});
        const Four d = __builtin_shuffle(row[2], row[3], Order{2, 6, 3, 7});
        const Four columns[4] = {
            __builtin_shuffle(a, c, Order{0, 1, 4, 5}), __builtin_shuffle(a, c, Order{2, 3, 6, 7}),
            __builtin_shuffle(b, d, Order{0, 1, 4, 5}), __builtin_shuffle(b, d, Order{2, 3, 6, 7})};
        for (int64_t i = 0; i < 4; ++i)
          std::memcpy(to + (s + i) * kPanel + j, &columns[i], sizeof(Four));
      }
}

// out[r] += sum over the tiles and their samples s of g[r][s] h[s], for kCount rows of a panel of
// columns. h: (tiles, kPanel samples, kPanel).
template <int kCount>
FASTEBM_TARGET inline void add_outer_rows(const float* const* g, int64_t row, const float* h,
                                          int tiles, float* out) {
  Floats sum[kCount][2];
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r)
    for (int v = 0; v < 2; ++v) sum[r][v] = load(out + r * kPanel + v * kLanes);
  for (int t = 0; t < tiles; ++t) {
    const float* from = g[t] + row * kPanel;
    for (int s = 0; s < kPanel; ++s, h += kPanel) {
      const Floats x[2] = {load(h), load(h + kLanes)};
#pragma GCC unroll 16
      for (int r = 0; r < kCount; ++r) {
        const Floats w = set(from[r * kPanel + s]);
        for (int v = 0; v < 2; ++v) sum[r][v] = fma(w, x[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r)
    for (int v = 0; v < 2; ++v) store(out + r * kPanel + v * kLanes, sum[r][v]);
}

// sums += g h^T for the (rows, kPanel) and (columns, kPanel) of each tile.
FASTEBM_TARGET inline void add_outer(const float* const (&g)[kTiles], int64_t rows,
                                     const float* const (&h)[kTiles], int64_t columns, int tiles,
                                     float* transposed, float* sums) {
  const int64_t stride = tiles * kPanel * kPanel;
  for (int t = 0; t < tiles; ++t)
    transpose(h[t], columns, transposed + t * kPanel * kPanel, stride);
  for (int64_t begin = 0; begin < columns; begin += kPanel, transposed += stride) {
    constexpr int kHalf = kRows / 2 + 1;
    int64_t row = 0;
    for (; row + kRows <= rows && rows - row != kRows + 2; row += kRows, sums += kRows * kPanel)
      add_outer_rows<kRows>(g, row, transposed, tiles, sums);
    for (; row + kHalf <= rows; row += kHalf, sums += kHalf * kPanel)
      add_outer_rows<kHalf>(g, row, transposed, tiles, sums);
    for (; row < rows; ++row, sums += kPanel) add_outer_rows<1>(g, row, transposed, tiles, sums);
  }
}

// The factor a_i of each lane; what the tile adds to all sums but those of outer products.
FASTEBM_TARGET inline void add_lanes(const MlpGradientParams& p, const Tile& tile,
                                     const Work& work) {
  const Mlp& mlp = p.mlp;
  for (int lane = 0; lane < kPanel; ++lane) {
    float factor = tile.first + lane < p.n_data ? p.factor : -p.factor;
    if (p.square_factor != 0.0f) factor += p.square_factor * tile.energy[lane];  // may be infinite
    tile.factor[lane] = lane < tile.count ? factor : 0.0f;
  }
  const Floats factor[2] = {load(tile.factor), load(tile.factor + kLanes)};
  for (int l = 0; l < mlp.hidden; ++l)
    for (int64_t j = 0; j < mlp.width[l]; ++j)
      for (int v = 0; v < 2; ++v) {
        const int64_t i = j * kPanel + v * kLanes;
        const Floats g = mul(factor[v], load(tile.to_z[l] + i));
        const Floats both = p.v ? add(g, load(tile.through[l] + i)) : g;
        store(tile.through[l] + i, both);
        store(work.bias[l] + i, add(load(work.bias[l] + i), both));
      }
  if (p.to_row_bias)
    add_tile(tile.through[0], mlp.width[0], tile.count, kPanel,
             p.to_row_bias + tile.first * mlp.width[0]);
  for (int64_t j = 0; j < mlp.inputs(mlp.hidden); ++j)
    for (int v = 0; v < 2; ++v) {
      const int64_t i = j * kPanel + v * kLanes;
      Floats sum = fma(factor[v], load(tile.h[mlp.hidden] + i), load(work.last_weight + i));
      if (p.v) sum = add(sum, load(tile.t[mlp.hidden] + i));
      store(work.last_weight + i, sum);
    }
  for (int v = 0; v < 2; ++v)
    store(work.last_bias + v * kLanes, add(load(work.last_bias + v * kLanes), factor[v]));
}

FASTEBM_TARGET inline void add_up(const MlpGradientParams& p, const Work& work, int tiles) {
  for (int t = 0; t < tiles; ++t) add_lanes(p, work.tile[t], work);
  for (int l = 0; l < p.mlp.hidden; ++l) {
    const float *through[kTiles], *to_z[kTiles], *h[kTiles], *along_v[kTiles];
    for (int t = 0; t < tiles; ++t) {
      const Tile& tile = work.tile[t];
      through[t] = tile.through[l];
      to_z[t] = tile.to_z[l];
      h[t] = tile.h[l];
      along_v[t] = tile.t[l];
    }
    const int64_t width = p.mlp.width[l], inputs = p.mlp.inputs(l);
    add_outer(through, width, h, inputs, tiles, work.transposed, work.weight[l]);
    if (p.v) add_outer(to_z, width, along_v, inputs, tiles, work.transposed, work.weight[l]);
  }
}

// Samples [begin, end). Lanes without one have x = 0, v = 0 and the factor 0, and add nothing.
FASTEBM_TARGET inline void run(const MlpGradientParams& p, Work work, int64_t begin, int64_t end) {
  const int64_t dim = p.mlp.dim;
  int tiles = 0;
  for (int64_t first = begin; first < end; first += kPanel) {
    Tile& tile = work.tile[tiles++];
    tile.first = first;
    tile.count = static_cast<int>(std::min<int64_t>(kPanel, end - first));
    load_tile(p.x + first * dim, dim, tile.count, kPanel, tile.h[0]);
    forward(p, tile);
    backward(p, tile);
    if (p.v) {
      load_tile(p.v + first * dim, dim, tile.count, kPanel, tile.t[0]);
      along(p.mlp, tile);
    }
    std::copy_n(tile.energy, tile.count, p.energy + first);
    const int skipped =
        static_cast<int>(std::min<int64_t>(std::max<int64_t>(p.n_data - first, 0), tile.count));
    if (p.grad)
      store_tile(tile.grad + skipped, dim, tile.count - skipped, kPanel,
                 p.grad + (first + skipped - p.n_data) * dim);
    if (p.summed && (tiles == kTiles || first + kPanel >= end)) add_up(p, work, tiles);
    tiles %= kTiles;
  }
}
