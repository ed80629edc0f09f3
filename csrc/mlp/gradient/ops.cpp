// Schema, checks and registration of the gradient in the parameters of a small perceptron.
#include "mlp/check.h"
#include "mlp/gradient/run.h"

namespace fastebm {
namespace {

const char* const kOp = "mlp_gradient";

const float* rows(const char* what, const Tensor& t, const Tensor& x) {
  check_float32(kOp, what, t, x);
  FASTEBM_CHECK(t.dim() == 2 && t.size(1) > 0 && t.sizes().equals(x.sizes()) && t.is_contiguous(),
                kOp, ": ", what, " must be contiguous, of shape (B, D) with D >= 1");
  return static_cast<const float*>(t.const_data_ptr());
}

Tensor mlp_gradient(const Tensor& x, const std::vector<Tensor>& weights,
                    const std::vector<OptionalTensor>& biases, int64_t activation, double beta,
                    double threshold, const OptionalTensor& base_precision,
                    const OptionalTensor& base_mean, const OptionalTensor& row_bias, int64_t n_data,
                    double factor, double square_factor, const OptionalTensor& v,
                    OptionalTensor sums, OptionalTensor grad, OptionalTensor to_row_bias) {
  MlpGradientParams p{};
  p.x = rows("x", x, x);
  std::vector<Tensor> kept;
  p.mlp = mlp_network(kOp, x, weights, biases, activation, beta, threshold, base_precision,
                      base_mean, &kept);
  p.batch = x.size(0);
  p.row_bias = row_biases(kOp, "row_bias", row_bias, x, p.mlp, p.batch, &kept);
  p.v = v ? rows("v", *v, x) : nullptr;
  check_finite(kOp, "factor", factor);
  check_finite(kOp, "square_factor", square_factor);
  p.factor = static_cast<float>(factor);
  p.square_factor = static_cast<float>(square_factor);
  FASTEBM_CHECK(n_data >= 0 && n_data <= p.batch, kOp, ": n_data must be in 0..B, got ", n_data);
  p.n_data = n_data;
  if (grad) {
    check_float32(kOp, "grad", *grad, x);
    FASTEBM_CHECK(grad->dim() == 2 && grad->size(0) == p.batch - n_data &&
                      grad->size(1) == x.size(1) && grad->is_contiguous(),
                  kOp, ": grad must be contiguous, of shape (B - n_data, D)");
    check_written(kOp, "grad", *grad);
    p.grad = static_cast<float*>(grad->mutable_data_ptr());
  }
  if (sums) {
    const int64_t n = parameter_count(p.mlp);
    check_float32(kOp, "sums", *sums, x);
    FASTEBM_CHECK(sums->dim() == 1 && sums->size(0) == n && sums->is_contiguous(), kOp,
                  ": sums must be contiguous, of shape (", n, ",), the number of parameters");
    check_written(kOp, "sums", *sums);
  }
  if (to_row_bias) {
    FASTEBM_CHECK(row_bias && sums, kOp, ": to_row_bias needs row_bias and sums");
    p.to_row_bias = written_floats(kOp, "to_row_bias", *to_row_bias, x, {p.batch, p.mlp.width[0]},
                                   "(B, width_1)");
  }
  const int64_t size[1] = {p.batch}, one[1] = {1};
  Tensor energy = empty_strided_on(x, size, one, 1, aoti_torch_dtype_float32());
  p.energy = static_cast<float*>(energy.mutable_data_ptr());
  if (p.batch == 0) return energy;
  p.summed = sums.has_value();
  MlpGradientRuns gradient(p.mlp, p.batch);
  gradient.run(p);
  if (sums) gradient.add_to(static_cast<float*>(sums->mutable_data_ptr()));
  return energy;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "mlp_gradient(Tensor x, Tensor[] weights, Tensor?[] biases, int activation, float beta, "
      "float threshold, Tensor? base_precision, Tensor? base_mean, Tensor? row_bias, int n_data, "
      "float factor, float square_factor, Tensor? v, Tensor(a!)? "
      "sums, "
      "Tensor(b!)? grad, Tensor(c!)? to_row_bias) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
  m.impl("mlp_gradient", TORCH_BOX(&mlp_gradient));
}

}  // namespace fastebm
