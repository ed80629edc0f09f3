// Contrastive divergence of a small perceptron by Metropolis-adjusted chains on a CPU, as
// mlp_contrastive_divergence: local means of the population, chains, the step's adaptation, value,
// gradient in the parameters and metrics, in one operator.
#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "langevin/check.h"
#include "metropolis/check.h"
#include "mlp/adjusted/run.h"
#include "mlp/loss/phases.h"
#include "neighbor/ops.h"
#include "random/choice/choice.h"

namespace fastebm {
namespace {

const char* const kOp = "mlp_adjusted_contrastive_divergence";
constexpr int64_t kNoiseTag = 0x80;

// Standard units, (x - mean) / std element by element, or those of x where there are none.
struct Units {
  const float *mean, *std;
  int64_t dim;

  void standardize(const float* x, int64_t rows, float* out) const {
    if (!mean) {
      std::copy_n(x, rows * dim, out);
      return;
    }
    for_rows(rows, dim, [&](int64_t row) {
      for (int64_t i = 0; i < dim; ++i) out[row * dim + i] = (x[row * dim + i] - mean[i]) / std[i];
    });
  }

  // And, as this rounds, back into the box.
  void restore(const float* z, int64_t rows, float lo, float hi, float* out) const {
    if (!mean) {
      std::copy_n(z, rows * dim, out);
      return;
    }
    for_rows(rows, dim, [&](int64_t row) {
      for (int64_t i = 0; i < dim; ++i) {
        const float x = z[row * dim + i] * std[i] + mean[i];
        out[row * dim + i] = x < lo ? lo : x > hi ? hi : x;
      }
    });
  }
};

Tensor rows_of_floats(const Tensor& like, int64_t rows, int64_t columns) {
  const int64_t sizes[2] = {rows, columns}, strides[2] = {columns, 1};
  return empty_strided_on(like, sizes, strides, 2, aoti_torch_dtype_float32());
}

Units checked_units(const OptionalTensor& means, const OptionalTensor& stds, const Tensor& x,
                    std::vector<Tensor>* kept) {
  FASTEBM_CHECK(means.has_value() == stds.has_value(), kOp,
                ": mean and std must be given together");
  Units units{nullptr, nullptr, sample_dim(x)};
  if (!means) return units;
  for (const auto& [what, t] : {std::pair("mean", &*means), std::pair("std", &*stds)}) {
    check_float32(kOp, what, *t, x);
    FASTEBM_CHECK(t->numel() == units.dim, kOp, ": ", what, " must have the shape of a sample");
    kept->push_back(dense(*t));
  }
  units.mean = values(std::as_const((*kept)[0]));
  units.std = values(std::as_const((*kept)[1]));
  return units;
}

// The step size, and how its logarithm follows what is accepted: AdaptiveStep of the samplers.
// sigma is noise_std, or noise_scale sqrt(2 temperature step).
struct Step {
  double size;
  std::optional<double> noise_std;
  double noise_scale, temperature;
  std::optional<double> log;  // of a step that adapts; then size is not looked at
  double target, gain, least, largest;

  // Of the transitions to come, in `p`.
  void set(LangevinParams* p) const {
    const double step = log ? std::exp(*log) : size;
    const double sigma = noise_std ? *noise_std : noise_scale * std::sqrt(2 * temperature * step);
    FASTEBM_CHECK(step >= 0, kOp, ": step_size must be >= 0, got ", step);
    check_finite(kOp, "step_size", step);
    FASTEBM_CHECK(static_cast<float>(sigma) > 0 && sigma < kInfinity, kOp,
                  ": noise must be finite and > 0, also in float32, got ", std::abs(sigma));
    p->step_size = step;
    p->noise_std = sigma;
  }
  void follow(double acceptance, int64_t proposals) {
    log = *log + gain * static_cast<double>(proposals) * (acceptance - target);
    log = std::min(std::max(*log, least), largest);
  }
};

// Local means of the population, drawn by seed and step.
std::tuple<Tensor, Tensor> modes_of(const Tensor& population, const Tensor& rng, int64_t n_centres,
                                    int64_t n_neighbors) {
  FASTEBM_CHECK(n_centres >= 2 && n_centres <= population.size(0), kOp,
                ": n_centres must be in 2..", population.size(0), ", got ", n_centres);
  const int64_t one = 1;
  Tensor chosen = empty_strided_on(population, &n_centres, &one, 1, aoti_torch_dtype_int64());
  ChoiceParams choice{};
  choice.rng = static_cast<const int64_t*>(rng.const_data_ptr());
  choice.size = population.size(0);
  choice.n = n_centres;
  choice.chosen = static_cast<int64_t*>(chosen.mutable_data_ptr());
  choice_table(&choice);
  choose_slots_cpu(choice, 0, n_centres);
  return means_of_neighbors_cpu(population, chosen, n_neighbors);
}

// The box (lo, hi) of the user's units in those of the chains.
Box box_in(const Units& units, const Tensor& points, std::optional<double> lo,
           std::optional<double> hi, std::vector<Tensor>* kept) {
  OptionalTensor faces[2];
  const double given[2] = {lo.value_or(-kInfinity), hi.value_or(kInfinity)};
  for (int i = 0; (lo || hi) && i < 2; ++i) {
    const std::vector<float> face(static_cast<size_t>(units.dim), static_cast<float>(given[i]));
    faces[i] = floats(points, units.dim);
    units.standardize(face.data(), 1, values(*faces[i]));
  }
  return sample_box(kOp, points, faces[0], faces[1], kept);
}

// All transitions, in rounds, as run_adjusted() of fastebm/chains/adjusted.py; copies where chains
// are at `times` times of their second half, the last time in the end, to `seen`, one after
// another.
void run_to_points(MlpAdjustedParams p, int64_t n_steps, int64_t n_jumps, int64_t times,
                   int64_t round, Step* step, float* seen) {
  const int64_t n = p.chain.step.batch, size = n * p.chain.mlp.dim;
  const int64_t every = n_jumps ? n_steps / n_jumps : 0, last_jump = every * n_jumps;
  const int64_t thin = std::max<int64_t>(1, n_steps / (2 * times));
  std::set<int64_t> ends{n_steps};
  if (last_jump > 0) ends.insert(last_jump);
  for (int64_t k = round; step->log && k < n_steps; k += round) ends.insert(k);
  for (int64_t i = 1; i < times; ++i) ends.insert(n_steps - i * thin);
  const uint32_t t = p.chain.step.t;
  int64_t begin = 0, proposals = 0;
  double before = 0;
  for (const int64_t end : ends) {
    step->set(&p.chain.step);
    p.chain.step.t = t + static_cast<uint32_t>(begin);
    p.chain.n_steps = end - begin;
    p.known = begin > 0;
    p.first = begin;
    p.every = begin < last_jump ? every : 0;
    run_mlp_adjusted_cpu(p);
    proposals += end - begin - (p.every ? end / every - begin / every : 0);
    const int64_t back = n_steps - end;
    if (back % thin == 0 && back / thin < times)
      seen = std::copy_n(static_cast<const float*>(p.chain.step.out), size, seen);
    if (step->log && proposals && (end % round == 0 || end == n_steps)) {
      const double sum = mean(p.acceptance, n);
      step->follow((sum - before) / static_cast<double>(proposals), proposals);
      before = sum;
      proposals = 0;
    }
    begin = end;
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, bool, Tensor>
mlp_adjusted_contrastive_divergence(
    const Tensor& x_in, const Tensor& start_in, const std::vector<Tensor>& weights,
    const std::vector<OptionalTensor>& biases, int64_t activation, double beta, double threshold,
    const OptionalTensor& base_precision, const OptionalTensor& base_mean,
    const OptionalTensor& row_bias, const OptionalTensor& data_row_bias, int64_t n_steps,
    double step_size, std::optional<double> noise_std, double noise_scale, double temperature,
    std::optional<double> log_step, double target_acceptance, double gain, double least,
    double largest, int64_t round, const Tensor& rng, std::optional<double> lo,
    std::optional<double> hi, int64_t n_jumps, const OptionalTensor& population, int64_t n_centres,
    int64_t n_neighbors, double uniform_share, const OptionalTensor& means,
    const OptionalTensor& stds, double energy_reg_weight) {
  check_float32(kOp, "x", x_in, x_in);
  check_float32(kOp, "start", start_in, x_in);
  FASTEBM_CHECK(x_in.dim() > 0 && x_in.dim() == start_in.dim() && x_in.numel() > 0 &&
                    start_in.numel() > 0 && sample_dim(x_in) == sample_dim(start_in),
                kOp, ": x and start must be (m n, *event) and (n, *event), and hold something");
  const Tensor x = dense(x_in), start = dense(start_in);
  const int64_t n = start.size(0), all = x.size(0), dim = sample_dim(x), times = all / n;
  FASTEBM_CHECK(all % n == 0 && times <= n_steps, kOp, ": x must hold 1..", n_steps,
                " times as many samples as start, ", n, ", got ", all);
  FASTEBM_CHECK(n_steps < kStepEnd, kOp, ": n_steps must be < 2^32, got ", n_steps);
  FASTEBM_CHECK(round >= 1, kOp, ": round must be >= 1, got ", round);
  FASTEBM_CHECK(n_jumps >= 0 && n_jumps <= n_steps, kOp, ": n_jumps must be in 0..", n_steps,
                ", got ", n_jumps);
  check_finite(kOp, "energy_reg_weight", energy_reg_weight);
  std::vector<Tensor> of_units;
  const Units units = checked_units(means, stds, x, &of_units);
  Step step{step_size,         noise_std, noise_scale, temperature, log_step,
            target_acceptance, gain,      least,       largest};

  Tensor points = rows_of_floats(x, n, dim);
  std::vector<Tensor> kept;
  MlpAdjustedParams p{};
  MlpChainParams& chain = p.chain;
  chain.step = langevin_params(kOp, points, 0, 0, std::nullopt, std::nullopt, rng, 0, n_steps,
                               std::nullopt, std::nullopt, std::nullopt, std::nullopt, std::nullopt,
                               std::nullopt, kNoiseTag);
  chain.mlp = mlp_network(kOp, points, weights, biases, activation, beta, threshold, base_precision,
                          base_mean, &kept);
  RowBiases row_biases(kOp, data_row_bias, row_bias, x, n, chain.mlp);
  chain.row_bias = row_biases.chains();
  const Box box = box_in(units, points, lo, hi, &kept);
  p.jumps.lo = box.lo;
  p.jumps.hi = box.hi;
  if (n_jumps > 0) {
    FASTEBM_CHECK(population && population->dim() > 0 && population->size(0) >= 2 &&
                      sample_dim(*population) == dim,
                  kOp, ": population must be (P, *event), P >= 2, for jumps");
    check_float32(kOp, "population", *population, x);
    Tensor inner = rows_of_floats(x, population->size(0), dim);
    units.standardize(values(dense(*population)), inner.size(0), values(inner));
    const auto [centres, scales] = modes_of(inner, rng, n_centres, n_neighbors);
    p.jumps = jump_targets(kOp, points, centres, scales, box, uniform_share, &kept);
  }

  units.standardize(values(start), n, values(points));
  Tensor both = rows_of_floats(x, 2 * all, dim), grad = rows_of_floats(x, n, dim);
  Tensor energy = floats(x, 2 * all), accepted = floats(x, 2 * n);
  std::fill_n(values(accepted), 2 * n, 0.0f);
  chain.step.x = chain.step.out = values(points);
  chain.energy = values(energy);
  chain.grad = values(grad);
  p.acceptance = values(accepted);
  units.standardize(values(x), all, values(both));

  run_to_points(p, n_steps, n_jumps, times, round, &step, values(both) + all * dim);
  const double norm = sum_of(n, [&](int64_t i) {
    const float* g = values(grad) + i * dim;
    return std::sqrt(dot(g, g, dim));
  });

  MlpGradientRuns gradient(chain.mlp, 2 * all);
  const Phases of =
      phases(values(both), &row_biases, values(energy), nullptr, x, &gradient, energy_reg_weight);
  Tensor x_neg = empty_as(x);
  units.restore(values(both) + all * dim, all, static_cast<float>(lo.value_or(-kInfinity)),
                static_cast<float>(hi.value_or(kInfinity)), values(x_neg));
  const auto share = [&](int row, int64_t of_steps) {
    return of_steps ? mean(values(accepted) + row * n, n) / static_cast<double>(of_steps) : 0.0;
  };
  std::vector<Tensor> metrics =
      scalars(x, {of.loss, of.pos.mean, of.neg.mean, of.pos.std, of.neg.std, of.gap, of.squares,
                  norm / static_cast<double>(n), share(0, n_steps - n_jumps), share(1, n_jumps)});
  const double sum = sum_of(all * dim, [&](int64_t i) { return values(x_neg)[i]; });
  const Tensor sums = parameter_gradient(x, gradient, chain.mlp);
  Tensor last = empty_strided_on(x, nullptr, nullptr, 0, aoti_torch_dtype_float64());
  *static_cast<double*>(last.mutable_data_ptr()) = step.log.value_or(std::log(step_size));
  return {x_neg,
          of.e_pos,
          of.e_neg,
          sums,
          row_biases.gradient(x, chain.mlp),
          metrics,
          std::isfinite(of.gap + sum),
          last};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "mlp_adjusted_contrastive_divergence(Tensor x, Tensor start, Tensor[] weights, "
      "Tensor?[] biases, int activation, float beta, float threshold, Tensor? base_precision, "
      "Tensor? base_mean, Tensor? row_bias, Tensor? data_row_bias, int n_steps, "
      "float step_size, float? noise_std, float noise_scale, float temperature, "
      "float? log_step, float target_acceptance, float gain, float least, float largest, "
      "int round, Tensor rng, float? lo, float? hi, int n_jumps, Tensor? population, int "
      "n_centres, "
      "int n_neighbors, float uniform_share, Tensor? mean, Tensor? std, float energy_reg_weight) "
      "-> (Tensor x_neg, Tensor e_pos, Tensor e_neg, Tensor sums, Tensor to_row_bias, Tensor[] "
      "metrics, bool finite, "
      "Tensor log_step)");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
  m.impl("mlp_adjusted_contrastive_divergence", TORCH_BOX(&mlp_adjusted_contrastive_divergence));
}

}  // namespace fastebm
