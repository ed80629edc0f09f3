// The positive and the negative phase, their gradient by formulas, and the energies' squares.
#pragma once
#include <initializer_list>
#include <vector>

#include "mlp/gradient/run.h"
#include "mlp/loss/floats.h"
#include "mlp/loss/row_bias.h"

namespace fastebm {
namespace {

struct Phases {
  Tensor e_pos, e_neg;
  Moments pos, neg;
  double gap, squares, loss;
};

// E(data) - E(chains) and the mean squares, of `both` (2 n, dim), data first; their gradient is
// kept in `gradient`. Sets energy (2 n,), and unless it is null to_x, dE/dx of the chains.
Phases phases(const float* both, RowBiases* row_biases, float* energy, float* to_x,
              const Tensor& data, MlpGradientRuns* gradient, double energy_reg_weight) {
  const int64_t n = data.size(0);
  MlpGradientParams p{};
  p.summed = true;
  p.batch = 2 * n;
  p.n_data = n;
  p.x = both;
  p.row_bias = row_biases->both();
  p.to_row_bias = row_biases->to_both();
  p.factor = static_cast<float>(1.0 / static_cast<double>(n));
  p.square_factor = static_cast<float>(2 * energy_reg_weight / static_cast<double>(n));
  p.energy = energy;
  p.grad = to_x;
  gradient->run(p);
  Phases found{floats(data, n), floats(data, n), {energy, n}, {energy + n, n}, 0, 0, 0};
  std::copy_n(energy, n, values(found.e_pos));
  std::copy_n(energy + n, n, values(found.e_neg));
  found.loss = found.gap = found.pos.mean - found.neg.mean;
  found.squares = found.pos.square + found.neg.square;
  if (energy_reg_weight != 0) found.loss += energy_reg_weight * found.squares;
  return found;
}

// The gradient in the parameters of all that ran.
Tensor parameter_gradient(const Tensor& like, const MlpGradientRuns& gradient, const Mlp& mlp) {
  Tensor sums = floats(like, parameter_count(mlp));
  std::fill_n(values(sums), sums.size(0), 0.0f);
  gradient.add_to(values(sums));
  return sums;
}

std::vector<Tensor> scalars(const Tensor& like, std::initializer_list<double> numbers) {
  std::vector<Tensor> tensors;
  for (const double number : numbers) {
    tensors.push_back(empty_strided_on(like, nullptr, nullptr, 0, aoti_torch_dtype_float32()));
    *values(tensors.back()) = static_cast<float>(number);
  }
  return tensors;
}

}  // namespace
}  // namespace fastebm
