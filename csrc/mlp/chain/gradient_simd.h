// The energy of a perceptron and its gradient for a tile of samples, a sample to a lane. Included
// for each instruction set, inside its namespace, after mlp/products_simd.h and
// mlp/activation_simd.h.

template <Activation kActivation>
FASTEBM_TARGET void activate_all(const Mlp& mlp, int64_t count, float* value, float* slope) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Activated a = activate<kActivation>(load(value + i), mlp.beta, mlp.threshold);
    store(value + i, a.value);
    store(slope + i, a.slope);
  }
}

// Into tile.row_bias, where samples have some.
inline void load_row_bias(const MlpChainParams& p, const Tile& tile, int panel) {
  const int64_t width = p.mlp.width[0];
  if (p.row_bias)
    load_tile(p.row_bias + tile.first * width, width, tile.count, panel, tile.row_bias);
}

// Energies, if they are wanted, and gradients at tile.x.
template <int kVectors>
FASTEBM_TARGET void gradient(const MlpChainParams& p, const Tile& tile, bool with_energy) {
  const Mlp& mlp = p.mlp;
  constexpr int kPanel = kVectors * kLanes;
  const float* in = tile.x;
  int64_t inputs = mlp.dim;
  for (int l = 0; l < mlp.hidden; ++l) {
    float* value = tile.value[l % 2];
    const int64_t width = mlp.width[l];
    const Matrix forward{mlp.weight[l], width, inputs, inputs, 1};
    if (l == 0 && p.row_bias)
      multiply<kVectors, With::kBiases>(forward, tile.row_bias, in, value);
    else
      multiply<kVectors, With::kBias>(forward, mlp.bias[l], in, value);
    visit_activation(mlp.activation, [&](auto a) {
      activate_all<decltype(a)::value>(mlp, width * kPanel, value, tile.slope[l]);
      return 0;
    });
    in = value;
    inputs = width;
  }
  const float* last = mlp.weight[mlp.hidden];
  if (with_energy)
    multiply<kVectors, With::kBias>({last, 1, inputs, inputs, 1}, mlp.bias[mlp.hidden], in,
                                    tile.energy);
  float* back = tile.slope[mlp.hidden - 1];
  for (int64_t j = 0; j < inputs; ++j)
    for (int v = 0; v < kVectors; ++v, back += kLanes) store(back, mul(set(last[j]), load(back)));
  for (int l = mlp.hidden - 1; l > 0; --l) {
    const int64_t width = mlp.width[l], below = mlp.width[l - 1];
    multiply<kVectors, With::kFactors>({mlp.weight[l], below, width, 1, below}, tile.slope[l - 1],
                                       tile.slope[l], tile.slope[l - 1]);
  }
  multiply<kVectors, With::kBias>({mlp.weight[0], mlp.dim, mlp.width[0], 1, mlp.dim}, nullptr,
                                  tile.slope[0], tile.grad);
  if (mlp.base_precision)
    add_base<kVectors>(mlp, tile.x, tile.grad, with_energy ? tile.energy : nullptr);
}
