// A coefficient that chains on a perceptron's energy take beside those of Langevin steps.
#pragma once
#include "langevin/langevin.h"

namespace fastebm {

// A number, or a table of n_steps or 1 rows of B or 1 values: strides, of a step and of a sample,
// are 0 for what all share.
struct ChainCoefficient {
  double value;
  const float* table;  // null for none
  int64_t stride[2];
};

// Of step k: NaN for a value of a table that is negative or not finite.
FASTEBM_HD float coefficient_at(const ChainCoefficient& c, int64_t k, int64_t row) {
  if (!c.table) return static_cast<float>(c.value);
  return checked_coefficient(c.table[k * c.stride[0] + row * c.stride[1]]);
}

}  // namespace fastebm
