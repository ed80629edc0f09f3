// First-layer biases of each sample, of data and chains, and the gradient in them.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "mlp/check.h"
#include "mlp/loss/floats.h"

namespace fastebm {
namespace {

// Those of `all` samples of data, then those of n chains, all / n times over, as the chains' points
// lie in a loss; or null where samples have none of their own.
class RowBiases {
 public:
  RowBiases(const char* op, const OptionalTensor& data, const OptionalTensor& chains,
            const Tensor& x, int64_t n, const Mlp& mlp)
      : data_(x.size(0) * mlp.width[0]), chains_(n * mlp.width[0]) {
    FASTEBM_CHECK(data.has_value() == chains.has_value(), op,
                  ": row_bias and data_row_bias must be given together");
    if (!data) return;
    std::vector<Tensor> kept;
    both_.resize(static_cast<size_t>(2 * data_));
    to_both_.resize(both_.size());
    const float* from = row_biases(op, "data_row_bias", data, x, mlp, x.size(0), &kept);
    float* at = std::copy_n(from, data_, both_.data());
    from = row_biases(op, "row_bias", chains, x, mlp, n, &kept);
    for (int64_t i = 0; i < data_; i += chains_) at = std::copy_n(from, chains_, at);
  }

  const float* both() const { return both_.empty() ? nullptr : both_.data(); }
  const float* chains() const { return both_.empty() ? nullptr : both_.data() + data_; }
  float* to_both() { return both_.empty() ? nullptr : to_both_.data(); }
  float* to_chains() { return both_.empty() ? nullptr : to_both_.data() + data_; }

  // The gradient that was added to to_both(): of the data, then the sum over the times of the
  // chains, (all + n, width_1); or nothing.
  Tensor gradient(const Tensor& like, const Mlp& mlp) const {
    const int64_t floats = both_.empty() ? 0 : data_ + chains_;
    const int64_t sizes[2] = {floats / mlp.width[0], mlp.width[0]}, strides[2] = {sizes[1], 1};
    Tensor sum = empty_strided_on(like, sizes, strides, 2, aoti_torch_dtype_float32());
    if (both_.empty()) return sum;
    const float* from = to_both_.data();
    float* to = std::copy_n(from, floats, values(sum)) - chains_;
    for (from += floats; from < to_both_.data() + 2 * data_; from += chains_)
      for (int64_t i = 0; i < chains_; ++i) to[i] += from[i];
    return sum;
  }

 private:
  int64_t data_, chains_;  // how many floats those are
  std::vector<float> both_, to_both_;
};

}  // namespace
}  // namespace fastebm
