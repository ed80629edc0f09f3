// The Langevin step with vectors. Included once for each instruction set, inside its namespace,
// after random/batch_simd.h.

// langevin_element() for kLanes elements; *bits gets those not clamped (low half) and those not
// clipped (high half).
template <class T>
FASTEBM_TARGET inline void step_vector(const T* x, const T* grad, T* out, Floats noise,
                                       const RowCoefficients<float>& c, uint32_t* bits) {
  const Floats clip = set(c.clip), unclip = set(-c.clip), lo = set(c.lo), hi = set(c.hi);
  const Floats from = load(x), displacement = set(c.displacement);
  const Floats g = mul(set(c.scale), grad ? load(grad) : set(0.0f));
  Floats y = fma(set(-c.step), min(clip, max(unclip, g)), from);
  y = fma(set(c.sigma), noise, y);
  const Floats least = sub(from, displacement), most = add(from, displacement);
  const Floats near = min(most, max(least, y));
  store(out, min(hi, max(lo, near)));
  if (bits)
    *bits = within(near, lo, hi) |
            (within(g, unclip, clip) & not_greater(least, y) & not_greater(y, most)) << kLanes;
}

FASTEBM_TARGET inline void step_vector(const double* x, const double* grad, double* out,
                                       Floats noise, const RowCoefficients<double>& c,
                                       uint32_t* bits) {
  alignas(64) float n[kLanes];
  store(n, noise);
  uint32_t inside = 0, unclipped = 0;
  for (int i = 0; i < kLanes; i += 4) {
    const unsigned b = langevin_block(x + i, grad ? grad + i : grad, out + i, 4, n + i, c);
    inside |= (b & 15u) << i;
    unclipped |= (b >> 4) << i;
  }
  if (bits) *bits = inside | unclipped << kLanes;
}

// The bits of step_vector, four elements to a byte as LangevinParams::mask wants them.
inline void store_mask(uint8_t* mask, uint32_t bits) {
  for (int i = 0; i < kLanes / 4; ++i)
    mask[i] = static_cast<uint8_t>((bits >> 4 * i & 15u) | (bits >> (kLanes + 4 * i) & 15u) << 4);
}

// `count` consecutive elements from `at` on, whose noise lies at `noise`, with room to read on.
template <class T>
FASTEBM_TARGET inline void step_run(const LangevinParams& p, int64_t at, int64_t count,
                                    const float* noise, const RowCoefficients<Compute<T>>& c) {
  const T* x = static_cast<const T*>(p.x) + at;
  const T* grad = p.grad ? static_cast<const T*>(p.grad) + at : nullptr;
  T* out = static_cast<T*>(p.out) + at;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    step_vector(x + i, grad ? grad + i : grad, out + i, load(noise + i), c, nullptr);
  if (i == count) return;
  T rest_x[kLanes] = {}, rest_grad[kLanes] = {};
  const size_t bytes = sizeof(T) * static_cast<size_t>(count - i);
  std::memcpy(rest_x, x + i, bytes);
  if (grad) std::memcpy(rest_grad, grad + i, bytes);
  step_vector(rest_x, grad ? rest_grad : grad, rest_x, load(noise + i), c, nullptr);
  std::memcpy(out + i, rest_x, bytes);
}

// Samples [begin, end) of kDim elements.
template <class T, int kDim>
FASTEBM_TARGET void step_of_short_samples(const LangevinParams& p, int64_t begin, int64_t end) {
  constexpr int kRows = 8 * kLanes;
  const RoundKeys keys = round_keys(noise_key(p));
  const auto c = coefficients_of<T>(p, begin);
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t count = std::min<int64_t>(kRows, end - row);
    alignas(64) float noise[kRows * kDim];
    short_noise<kDim>(p, keys, row, count, noise);
    step_run<T>(p, row * kDim, count * kDim, noise, c);
  }
}

// Blocks [begin, end) of the batch, kLanes at a time. Full blocks that lie together go straight
// from registers; the rest (short or ragged samples, samples with coefficients of their own) has
// its noise written out first, without the normals that no element needs.
template <class T>
FASTEBM_TARGET void step(const LangevinParams& p, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_per_row(p.dim);
  const NoiseKey key = noise_key(p);
  const RoundKeys keys = round_keys(key);
  const bool noisy = needs_noise(p), per_row = rows_differ(p), whole_blocks = p.dim % 4 == 0;
  if (noisy && p.dim <= 2 && !per_row && !p.mask)
    return p.dim == 1 ? step_of_short_samples<T, 1>(p, begin, end)
                      : step_of_short_samples<T, 2>(p, begin, end);
  int64_t row = begin / blocks, block = begin - row * blocks, row_of_c = row;
  auto c = coefficients_of<T>(p, row);
  KeptWords words;
  Normals n{};
  while (begin < end) {
    if (per_row && row != row_of_c) c = coefficients_of<T>(p, row_of_c = row);
    const int count = static_cast<int>(std::min<int64_t>(kLanes, end - begin));
    const bool one_row = block + count <= blocks;
    if (noisy) n = numbers_of_batch<NormalLaw>(p, key, keys, blocks, row, block, count, &words);

    const bool full = whole_blocks || (one_row && 4 * (block + count) <= p.dim);
    const int64_t at = row * p.dim + 4 * block;
    if (count == kLanes && full && (one_row || !per_row)) {
      for (int i = 0; i < 4; ++i) {
        const int64_t j = at + i * kLanes;
        uint32_t bits;
        step_vector(static_cast<const T*>(p.x) + j,
                    p.grad ? static_cast<const T*>(p.grad) + j : nullptr,
                    static_cast<T*>(p.out) + j, n.v[i], c, p.mask ? &bits : nullptr);
        if (p.mask) store_mask(p.mask + begin + i * kLanes / 4, bits);
      }
      begin += count;
      block += count;
      while (block >= blocks) block -= blocks, ++row;
      continue;
    }

    alignas(64) float noise[4 * kLanes], packed[4 * kLanes + kLanes] = {};
    for (int i = 0; i < 4; ++i) store(noise + i * kLanes, n.v[i]);
    int64_t run_at = at, run = 0;
    const int last = static_cast<int>(p.dim - 4 * (blocks - 1));  // elements of a last block
    for (int i = 0; i < count; ++i) {
      if (p.mask) {
        if (per_row && row != row_of_c) c = coefficients_of<T>(p, row_of_c = row);
        step_block<T>(p, row, block, blocks, noise + 4 * i, c);
      } else {
        std::memcpy(packed + run, noise + 4 * i, 16);  // what is over is overwritten by the next
        run += block == blocks - 1 ? last : 4;
      }
      if (++block == blocks) {
        block = 0;
        if (per_row && run) {
          if (row != row_of_c) c = coefficients_of<T>(p, row_of_c = row);
          step_run<T>(p, run_at, run, packed, c);
          run_at += run;
          run = 0;
        }
        ++row;
      }
    }
    if (run) {
      if (per_row && row != row_of_c) c = coefficients_of<T>(p, row_of_c = row);
      step_run<T>(p, run_at, run, packed, c);
    }
    begin += count;
  }
}
