// The gradient in the parameters for a tile of samples, a sample to a lane; the letters are those
// of mlp_gradient.h. Included for each instruction set, inside its namespace, after
// mlp_products_simd.h.

constexpr int kPanel = 2 * kLanes;  // samples of a tile

FASTEBM_TARGET inline void forward(const MlpGradientParams& p, const Work& work) {
  const Mlp& mlp = p.mlp;
  for (int l = 0; l < mlp.hidden; ++l) {
    const int64_t width = mlp.width[l], inputs = mlp.inputs(l);
    float* value = work.h[l + 1];
    multiply<2, false>({mlp.weight[l], width, inputs, inputs, 1}, mlp.bias[l], nullptr, work.h[l],
                       value);
    visit_activation(mlp.activation, [&](auto activation) FASTEBM_TARGET {
      for (int64_t i = 0; i < width * kPanel; i += kLanes) {
        const Activated a =
            activate<decltype(activation)::value>(load(value + i), mlp.beta, mlp.threshold);
        store(value + i, a.value);
        store(work.slope[l] + i, a.slope);
        if (p.v) store(work.curvature[l] + i, a.curvature);
      }
      return 0;
    });
  }
  const int64_t inputs = mlp.inputs(mlp.hidden);
  multiply<2, false>({mlp.weight[mlp.hidden], 1, inputs, inputs, 1}, mlp.bias[mlp.hidden], nullptr,
                     work.h[mlp.hidden], work.energy);
}

FASTEBM_TARGET inline void backward(const MlpGradientParams& p, const Work& work) {
  const Mlp& mlp = p.mlp;
  const int top = mlp.hidden - 1;
  for (int64_t j = 0; j < mlp.width[top]; ++j)
    for (int64_t i = j * kPanel; i < (j + 1) * kPanel; i += kLanes) {
      const Floats w = set(mlp.weight[mlp.hidden][j]);
      store(work.to_h[top] + i, w);
      store(work.to_z[top] + i, mul(w, load(work.slope[top] + i)));
    }
  for (int l = top; l > 0; --l) {
    const int64_t width = mlp.width[l], below = mlp.width[l - 1];
    multiply<2, false>({mlp.weight[l], below, width, 1, below}, nullptr, nullptr, work.to_z[l],
                       work.to_h[l - 1]);
    for (int64_t i = 0; i < below * kPanel; i += kLanes)
      store(work.to_z[l - 1] + i, mul(load(work.slope[l - 1] + i), load(work.to_h[l - 1] + i)));
  }
  if (p.grad && work.first + work.count > p.n_data)
    multiply<2, false>({mlp.weight[0], mlp.dim, mlp.width[0], 1, mlp.dim}, nullptr, nullptr,
                       work.to_z[0], work.grad);
}

// t and r: what depends on v. work.t[0] is v.
FASTEBM_TARGET inline void along(const Mlp& mlp, const Work& work) {
  for (int l = 0; l < mlp.hidden; ++l) {
    const int64_t width = mlp.width[l], inputs = mlp.inputs(l);
    multiply<2, false>({mlp.weight[l], width, inputs, inputs, 1}, nullptr, nullptr, work.t[l],
                       work.moved);
    for (int64_t i = 0; i < width * kPanel; i += kLanes) {
      const Floats moved = load(work.moved + i);
      store(work.t[l + 1] + i, mul(load(work.slope[l] + i), moved));
      store(work.through[l] + i,
            mul(mul(load(work.curvature[l] + i), moved), load(work.to_h[l] + i)));
    }
  }
  for (int l = mlp.hidden - 1; l > 0; --l) {
    const int64_t width = mlp.width[l], below = mlp.width[l - 1];
    multiply<2, true>({mlp.weight[l], below, width, 1, below}, nullptr, work.slope[l - 1],
                      work.through[l], work.moved);
    for (int64_t i = 0; i < below * kPanel; i += kLanes)
      store(work.through[l - 1] + i, add(load(work.through[l - 1] + i), load(work.moved + i)));
  }
}

// (features, kPanel) in panels of features, (features / kPanel, kPanel samples, kPanel).
inline void transpose(const float* from, int64_t features, float* to) {
  typedef float Four __attribute__((vector_size(16)));
  typedef int32_t Order __attribute__((vector_size(16)));
  for (int64_t begin = 0; begin < features; begin += kPanel, to += kPanel * kPanel)
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

// out[r] += sum over the samples s of g[r][s] h[s], for kCount rows of a panel of columns.
template <int kCount>
FASTEBM_TARGET inline void add_outer_rows(const float* g, const float* h, float* out) {
  Floats sum[kCount][2];
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r)
    for (int v = 0; v < 2; ++v) sum[r][v] = load(out + r * kPanel + v * kLanes);
  for (int s = 0; s < kPanel; ++s) {
    const Floats x[2] = {load(h + s * kPanel), load(h + s * kPanel + kLanes)};
#pragma GCC unroll 16
    for (int r = 0; r < kCount; ++r) {
      const Floats w = set(g[r * kPanel + s]);
      for (int v = 0; v < 2; ++v) sum[r][v] = fma(w, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r)
    for (int v = 0; v < 2; ++v) store(out + r * kPanel + v * kLanes, sum[r][v]);
}

// sums += g h^T for (rows, kPanel) and (columns, kPanel).
FASTEBM_TARGET inline void add_outer(const float* g, int64_t rows, const float* h, int64_t columns,
                                     const Work& work, float* sums) {
  transpose(h, columns, work.transposed);
  const float* block = work.transposed;
  for (int64_t begin = 0; begin < columns; begin += kPanel, block += kPanel * kPanel) {
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows, sums += kRows * kPanel)
      add_outer_rows<kRows>(g + row * kPanel, block, sums);
    for (; row < rows; ++row, sums += kPanel) add_outer_rows<1>(g + row * kPanel, block, sums);
  }
}

// What the tile adds to the sums.
FASTEBM_TARGET inline void add_up(const MlpGradientParams& p, const Work& work) {
  const Mlp& mlp = p.mlp;
  for (int lane = 0; lane < kPanel; ++lane) {
    float factor = work.first + lane < p.n_data ? p.factor : -p.factor;
    if (p.square_factor != 0.0f) factor += p.square_factor * work.energy[lane];  // may be infinite
    work.factor[lane] = lane < work.count ? factor : 0.0f;
  }
  const Floats factor[2] = {load(work.factor), load(work.factor + kLanes)};
  for (int l = 0; l < mlp.hidden; ++l) {
    const int64_t width = mlp.width[l], inputs = mlp.inputs(l);
    for (int64_t j = 0; j < width; ++j)
      for (int v = 0; v < 2; ++v) {
        const int64_t i = j * kPanel + v * kLanes;
        const Floats g = mul(factor[v], load(work.to_z[l] + i));
        const Floats both = p.v ? add(g, load(work.through[l] + i)) : g;
        store(work.through[l] + i, both);
        store(work.bias[l] + i, add(load(work.bias[l] + i), both));
      }
    add_outer(work.through[l], width, work.h[l], inputs, work, work.weight[l]);
    if (p.v) add_outer(work.to_z[l], width, work.t[l], inputs, work, work.weight[l]);
  }
  for (int64_t j = 0; j < mlp.inputs(mlp.hidden); ++j)
    for (int v = 0; v < 2; ++v) {
      const int64_t i = j * kPanel + v * kLanes;
      Floats sum = fma(factor[v], load(work.h[mlp.hidden] + i), load(work.last_weight + i));
      if (p.v) sum = add(sum, load(work.t[mlp.hidden] + i));
      store(work.last_weight + i, sum);
    }
  for (int v = 0; v < 2; ++v)
    store(work.last_bias + v * kLanes, add(load(work.last_bias + v * kLanes), factor[v]));
}

// Samples [begin, end). Lanes without one have x = 0, v = 0 and the factor 0, and add nothing.
FASTEBM_TARGET inline void run(const MlpGradientParams& p, Work work, int64_t begin, int64_t end) {
  const int64_t dim = p.mlp.dim;
  for (work.first = begin; work.first < end; work.first += work.count) {
    work.count = static_cast<int>(std::min<int64_t>(kPanel, end - work.first));
    load_tile(p.x + work.first * dim, dim, work.count, kPanel, work.h[0]);
    forward(p, work);
    backward(p, work);
    if (p.v) {
      load_tile(p.v + work.first * dim, dim, work.count, kPanel, work.t[0]);
      along(p.mlp, work);
    }
    if (p.summed) add_up(p, work);
    std::copy_n(work.energy, work.count, p.energy + work.first);
    const int skipped = static_cast<int>(
        std::min<int64_t>(std::max<int64_t>(p.n_data - work.first, 0), work.count));
    if (p.grad)
      store_tile(work.grad + skipped, dim, work.count - skipped, kPanel,
                 p.grad + (work.first + skipped - p.n_data) * dim);
  }
}
