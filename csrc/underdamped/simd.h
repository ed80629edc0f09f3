// The underdamped step with vectors. Included once for each instruction set, inside its namespace,
// after random/batch_simd.h.

constexpr int64_t kRun = 16 * kLanes;  // most elements of a run

// A value that all elements of a run share, a vector of it, or one for each element.
template <class C>
struct RunValues {
  alignas(64) C all[kRun + kLanes] = {};  // with room to read on
  int64_t each = 0;                       // 1: one for each

  const C* at(int64_t i) const { return all + each * i; }
  void share(double value) { std::fill_n(all, kLanes, static_cast<C>(value)); }
};

// What the elements of a run read beside x, v and grad.
template <class C>
struct Run {
  RunValues<C> kick, drift, decay, sigma, lo, hi;
  bool own, boxed;  // there are values of single samples or elements; there is a box

  explicit Run(const UnderdampedParams& p) {
    kick.share(p.kick), drift.share(p.drift), decay.share(p.decay), sigma.share(p.noise_std);
    lo.share(p.lo), hi.share(p.hi);
    kick.each = p.kicks != nullptr, drift.each = p.drifts != nullptr;
    decay.each = p.decays != nullptr, sigma.each = p.noise_stds != nullptr;
    lo.each = hi.each = p.los != nullptr;
    own = p.kicks || p.drifts || p.decays || p.noise_stds || p.los;
    boxed = p.los || std::isfinite(p.lo) || std::isfinite(p.hi);
  }
};

// Of the elements from `element` of sample `row` on, through the batch, those that are not shared.
template <class C>
FASTEBM_TARGET inline void fill(const UnderdampedParams& p, int64_t row, int64_t element,
                                int64_t count, Run<C>* run) {
  for (int64_t i = 0; i < count; ++row, element = 0) {
    const int64_t n = std::min(count - i, p.dim - element);
    const auto c = underdamped_coefficients<C>(p, row);
    if (p.kicks) std::fill_n(run->kick.all + i, n, c.kick);
    if (p.drifts) std::fill_n(run->drift.all + i, n, c.drift);
    if (p.decays) std::fill_n(run->decay.all + i, n, c.decay);
    if (p.noise_stds) std::fill_n(run->sigma.all + i, n, c.sigma);
    if (p.los) {
      const int64_t at = row * p.box_stride + element;
      std::copy_n(static_cast<const C*>(p.los) + at, n, run->lo.all + i);
      std::copy_n(static_cast<const C*>(p.his) + at, n, run->hi.all + i);
    }
    i += n;
  }
}

FASTEBM_TARGET inline Floats negated(Floats v) { return flip_sign(v, set_int(-1)); }

// reflect() of underdamped/underdamped.h for kLanes elements.
FASTEBM_TARGET inline void reflect(Floats* x, Floats* v, Floats lo, Floats hi) {
  const Floats face = pick_less(*x, lo, lo, hi), mirrored = sub(face, sub(*x, face));
  const Floats turned = negated(*v);
  *v = pick_less(*x, lo, turned, pick_less(hi, *x, turned, *v));
  const Floats inside = pick_less(*x, lo, mirrored, pick_less(hi, *x, mirrored, *x));
  *x = min(hi, max(lo, inside));
}

// underdamped_element() for kLanes elements, of which the first is number i of the run.
template <class T>
FASTEBM_TARGET inline void step_vector(T* x, T* v, const T* grad, const float* noise,
                                       const Run<float>& run, int64_t i) {
  const Floats drift = load(run.drift.at(i));
  const Floats lo = load(run.lo.at(i)), hi = load(run.hi.at(i));
  Floats v1 = fma(negated(load(run.kick.at(i))), load(grad), load(v));
  Floats x1 = fma(drift, v1, load(x));
  if (run.boxed) reflect(&x1, &v1, lo, hi);
  v1 = fma(load(run.sigma.at(i)), load(noise + i), mul(load(run.decay.at(i)), v1));
  x1 = fma(drift, v1, x1);
  if (run.boxed) reflect(&x1, &v1, lo, hi);
  store(x, x1);
  store(v, v1);
}

FASTEBM_TARGET inline void step_vector(double* x, double* v, const double* grad, const float* noise,
                                       const Run<double>& run, int64_t i) {
  for (int64_t l = 0; l < kLanes; ++l) {
    const auto value = [&](const RunValues<double>& of) { return of.at(i)[l]; };
    underdamped_element<double>(
        x + l, v + l, grad[l], noise[i + l],
        {value(run.kick), value(run.drift), value(run.decay), value(run.sigma)},
        {value(run.lo), value(run.hi)});
  }
}

// `count` consecutive elements from `at` on.
template <class T>
FASTEBM_TARGET inline void step_run(const UnderdampedParams& p, int64_t at, int64_t count,
                                    const float* noise, const Run<Compute<T>>& run) {
  T *x = static_cast<T*>(p.x) + at, *v = static_cast<T*>(p.v) + at;
  const T* grad = static_cast<const T*>(p.grad) + at;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) step_vector(x + i, v + i, grad + i, noise, run, i);
  if (i == count) return;
  T rest_x[kLanes] = {}, rest_v[kLanes] = {}, rest_grad[kLanes] = {};
  const size_t bytes = sizeof(T) * static_cast<size_t>(count - i);
  std::memcpy(rest_x, x + i, bytes);
  std::memcpy(rest_v, v + i, bytes);
  std::memcpy(rest_grad, grad + i, bytes);
  step_vector(rest_x, rest_v, rest_grad, noise, run, i);
  std::memcpy(x + i, rest_x, bytes);
  std::memcpy(v + i, rest_v, bytes);
}

// Blocks [begin, end) of the batch: kLanes at a time, or of short samples more.
template <class T>
FASTEBM_TARGET int step(const UnderdampedParams& p, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_per_row(p.dim);
  const int last = static_cast<int>(p.dim - 4 * (blocks - 1));  // elements of a last block
  const NoiseKey key = noise_key(p);
  const RoundKeys keys = round_keys(key);
  const bool noisy = needs_noise(p);
  Run<Compute<T>> run(p);
  alignas(64) float noise[kRun + kLanes] = {};
  KeptWords words;
  int64_t row = begin / blocks, block = begin - row * blocks;
  while (begin < end) {
    const int64_t most = p.dim <= 2 ? kRun / 2 : kLanes;
    const auto taken = static_cast<int>(std::min(most, end - begin));
    const int64_t next_row = (begin + taken) / blocks;
    const int64_t next_block = begin + taken - next_row * blocks;
    const int64_t at = row * p.dim + 4 * block;
    const int64_t count = next_row * p.dim + 4 * next_block - at;
    if (noisy && p.dim == 1) {
      short_noise<1>(p, keys, row, taken, noise);
    } else if (noisy && p.dim == 2) {
      short_noise<2>(p, keys, row, taken, noise);
    } else if (noisy) {
      const Normals n =
          numbers_of_batch<NormalLaw>(p, key, keys, blocks, row, block, taken, &words);
      if (count == 4 * kLanes)
        for (int i = 0; i < 4; ++i) store(noise + i * kLanes, n.v[i]);
      else
        pack_numbers(n, taken, blocks, block, last, noise);
    }
    if (run.own) fill(p, row, 4 * block, count, &run);
    step_run<T>(p, at, count, noise, run);
    begin += taken;
    row = next_row;
    block = next_block;
  }
  return 0;
}
