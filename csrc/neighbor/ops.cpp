// Schema, checks and registration of the nearest-neighbour operators.
#include "neighbor/ops.h"

#include <utility>

#include "launch/scratch.h"
#include "neighbor/log_distance.h"
#include "neighbor/means.h"

namespace fastebm {
namespace {

const char* const kOp = "nearest_neighbor";
constexpr int64_t kGrainElements = 16384;

// That of references (or winners) to queries x, which they may not be wider than.
Dtype reference_type(const char* what, const Tensor& y, const Tensor& x) {
  const Dtype type = dtype_of(kOp, what, y, true);
  FASTEBM_CHECK(x.scalar_type() == ScalarType::Double || type != Dtype::kFloat64, kOp, ": ", what,
                " must not be wider than x, Float, got ", name_of(y.scalar_type()));
  check_same_device(kOp, what, y, x);
  return type;
}

void check_k_and_skip(const Tensor& x, int64_t m, const OptionalTensor& skip, int64_t k) {
  FASTEBM_CHECK(k >= 1 && k <= kMaxNeighbors, kOp, ": k must be in 1..", kMaxNeighbors, ", got ",
                k);
  FASTEBM_CHECK(k <= m, kOp, ": k must be at most m = ", m, ", the references of y, got ", k);
  if (!skip) return;
  check_same_device(kOp, "skip", *skip, x);
  FASTEBM_CHECK(skip->scalar_type() == ScalarType::Long, kOp, ": skip must be int64, got ",
                name_of(skip->scalar_type()));
  FASTEBM_CHECK(skip->dim() == 1 && skip->size(0) == x.size(0) && skip->is_contiguous(), kOp,
                ": skip must be contiguous with one value per query, shape (", x.size(0), ",)");
  if (x.is_cuda())
    return;  // reading them would wait for the device; one out of range skips nothing
  const auto* values = static_cast<const int64_t*>(skip->const_data_ptr());
  for (int64_t i = 0; i < x.size(0); ++i) {
    FASTEBM_CHECK(values[i] >= -1 && values[i] < m, kOp, ": skip must be in -1..", m - 1, ", got ",
                  values[i], " for query ", i);
    FASTEBM_CHECK(values[i] < 0 || k < m, kOp, ": k must be at most ", m - 1,
                  ", m less the reference to skip, got ", k);
  }
}

// Types, shapes and numbers of a search.
NeighborParams search_params(const Tensor& x, const Tensor& y, const OptionalTensor& skip,
                             int64_t k, double y_scale, double y_offset) {
  const bool wide = x.scalar_type() == ScalarType::Double;
  FASTEBM_CHECK(wide || x.scalar_type() == ScalarType::Float, kOp,
                ": x must be float32 or float64, got ", name_of(x.scalar_type()));
  NeighborParams p{};
  p.x_dtype = wide ? Dtype::kFloat64 : Dtype::kFloat32;
  p.y_dtype = reference_type("y", y, x);
  FASTEBM_CHECK(x.dim() > 0 && x.dim() == y.dim(), kOp,
                ": x and y must be (n, *event) and (m, *event)");
  for (int64_t i = 1; i < x.dim(); ++i)
    FASTEBM_CHECK(x.size(i) == y.size(i), kOp, ": x and y must have samples of one shape, got ",
                  x.size(i), " and ", y.size(i), " in dimension ", i);
  p.n = x.size(0);
  p.m = y.size(0);
  p.dim = sample_dim(x);
  FASTEBM_CHECK(p.m < int64_t{1} << 31, kOp, ": y may hold at most 2^31 - 1 references");
  check_k_and_skip(x, p.m, skip, k);
  p.k = static_cast<int>(k);
  check_finite(kOp, "y_scale", y_scale);
  check_finite(kOp, "y_scale's offset", y_offset);
  p.y_scale = static_cast<float>(y_scale);
  p.y_offset = static_cast<float>(y_offset);
  return p;
}

template <bool kCpu>
std::tuple<Tensor, Tensor> nearest_neighbor(const Tensor& x_in, const Tensor& y_in,
                                            const OptionalTensor& skip, int64_t k, double y_scale,
                                            double y_offset) {
  NeighborParams p = search_params(x_in, y_in, skip, k, y_scale, y_offset);
  const bool wide = p.x_dtype == Dtype::kFloat64;
  const Tensor x = dense(x_in), y = dense(y_in);
  const int64_t sizes[2] = {p.n, k}, strides[2] = {k, 1}, dims = k == 1 ? 1 : 2;
  Tensor distance = empty_strided_on(
      x, sizes, strides, dims, wide ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
  Tensor index = empty_strided_on(x, sizes, strides, dims, aoti_torch_dtype_int64());
  if (p.n == 0) return {distance, index};
  p.x = x.const_data_ptr();
  p.y = y.const_data_ptr();
  p.skip = static_cast<const int64_t*>(data_or_null(skip));
  p.distance = distance.mutable_data_ptr();
  p.index = static_cast<int64_t*>(index.mutable_data_ptr());

  if constexpr (kCpu) {  // a few MB
    const int threads = static_cast<int>(torch::stable::get_num_threads());
    const int64_t bytes = nearest_neighbor_scratch_cpu(p, threads);
    Scratch large;
    p.scratch = kept_scratch<NeighborParams>(bytes, &large).take(bytes);
    nearest_neighbor_cpu(p, threads, [](int64_t tasks, const auto& body) {
      torch::stable::parallel_for(0, tasks, 1, body);
    });
  } else {  // up to 70 MB: see neighbor/blocks_cuda.h
    const int64_t size[1] = {nearest_neighbor_scratch_cuda(p)}, one[1] = {1};
    Tensor scratch = empty_strided_on(x, size, one, 1, aoti_torch_dtype_uint8());
    p.scratch = scratch.mutable_data_ptr();
    std::optional<DeviceGuard> guard;
    if (x.is_cuda()) guard.emplace(x.get_device_index());
    const int error = nearest_neighbor_cuda(p, current_stream(x));
    FASTEBM_CHECK(error == 0, kOp, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
  return {distance, index};
}

template <bool kCpu>
Tensor nearest_neighbor_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& winners,
                                 const Tensor& distance, double y_scale, double y_offset) {
  const char* const op = "nearest_neighbor_backward";
  FASTEBM_CHECK(x_in.dim() > 0, op, ": x must be (n, *event), got a 0-d tensor");
  const ScalarType type = x_in.scalar_type();
  FASTEBM_CHECK(type == ScalarType::Double || type == ScalarType::Float, op,
                ": x must be float32 or float64, got ", name_of(type));
  NeighborBackwardParams p{};
  p.x_dtype = type == ScalarType::Double ? Dtype::kFloat64 : Dtype::kFloat32;
  p.y_dtype = reference_type("winners", winners, x_in);
  p.n = x_in.size(0);
  p.dim = sample_dim(x_in);
  for (const auto& [what, t] : {std::pair("distance", &distance), std::pair("grad", &grad_in)}) {
    check_same_device(op, what, *t, x_in);
    FASTEBM_CHECK(t->scalar_type() == type, op, ": ", what, " must have the dtype of x, ",
                  name_of(type), ", got ", name_of(t->scalar_type()));
    FASTEBM_CHECK((t->dim() == 1 || t->dim() == 2) && t->size(0) == p.n, op, ": ", what,
                  " must be (n,) or (n, k), with n = ", p.n);
  }
  const int64_t k = distance.dim() == 1 ? 1 : distance.size(1);
  FASTEBM_CHECK(k >= 1 && k <= kMaxNeighbors, op, ": k must be in 1..", kMaxNeighbors, ", got ", k);
  FASTEBM_CHECK(grad_in.sizes().equals(distance.sizes()), op,
                ": grad must have the shape of distance");
  FASTEBM_CHECK(distance.is_contiguous() && winners.is_contiguous(), op,
                ": distance and winners must be contiguous");
  FASTEBM_CHECK(winners.dim() > 0 && winners.size(0) == p.n * k && sample_dim(winners) == p.dim, op,
                ": winners must be (n k, *event), with n k = ", p.n * k, " and ", p.dim,
                " elements a sample");
  check_finite(op, "y_scale", y_scale);
  check_finite(op, "y_scale's offset", y_offset);
  const Tensor grad = dense(grad_in), x = dense(x_in);
  p.k = static_cast<int>(k);
  p.grad = grad.const_data_ptr();
  p.distance = distance.const_data_ptr();
  p.x = x.const_data_ptr();
  p.winners = winners.const_data_ptr();
  p.y_scale = static_cast<float>(y_scale);
  p.y_offset = static_cast<float>(y_offset);
  Tensor grad_x = empty_as(x);
  p.grad_x = grad_x.mutable_data_ptr();
  if (x.numel() == 0) return grad_x;
  if constexpr (kCpu) {
    const int64_t grain = std::max<int64_t>(1, kGrainElements / p.dim);
    torch::stable::parallel_for(0, p.n, grain, [&](int64_t begin, int64_t end) {
      nearest_neighbor_backward_cpu(p, begin, end, nullptr);
    });
  } else {
    std::optional<DeviceGuard> guard;
    if (x.is_cuda()) guard.emplace(x.get_device_index());
    const int error = nearest_neighbor_backward_cuda(p, 0, p.n, current_stream(x));
    FASTEBM_CHECK(error == 0, op, ": CUDA error ", error, ", ", cuda_error_text(error));
  }
  return grad_x;
}

void check_eps(double eps) {
  const double square = eps * eps;
  FASTEBM_CHECK(eps > 0 && square > 0 && square < kInfinity,
                "nn_log_distance: eps must be finite and > 0, and so must its square, got ", eps);
}

// The search, and the entropy term of what it finds.
template <bool kCpu>
std::tuple<Tensor, Tensor, Tensor> nn_log_distance(const Tensor& x_in, const Tensor& y_in,
                                                   const OptionalTensor& skip, double eps,
                                                   double y_scale, double y_offset) {
  check_eps(eps);
  const Tensor x = dense(x_in), y = dense(y_in);
  auto [distance, index] = nearest_neighbor<kCpu>(x, y, skip, 1, y_scale, y_offset);
  LogDistanceParams p{};
  p.x_dtype = dtype_of(kOp, "x", x);
  p.y_dtype = dtype_of(kOp, "y", y, true);
  p.n = x.size(0);
  p.m = y.size(0);
  p.dim = sample_dim(x);
  p.x = x.const_data_ptr();
  p.y = y.const_data_ptr();
  p.y_scale = static_cast<float>(y_scale);
  p.y_offset = static_cast<float>(y_offset);
  p.distance = distance.const_data_ptr();
  p.index = static_cast<const int64_t*>(index.const_data_ptr());
  p.eps = eps;
  const bool wide = p.x_dtype == Dtype::kFloat64;
  Tensor grad = empty_as(x);
  Tensor value = empty_strided_on(x, nullptr, nullptr, 0,
                                  wide ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
  p.grad = grad.mutable_data_ptr();
  p.value = value.mutable_data_ptr();
  if constexpr (kCpu) {
    const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, p.dim));
    torch::stable::parallel_for(0, p.n, grain, [&](int64_t begin, int64_t end) {
      log_distance_gradient_cpu(p, begin, end);
    });
    log_distance_value_cpu(p);
  } else {
    std::optional<DeviceGuard> guard;
    if (x.is_cuda()) guard.emplace(x.get_device_index());
    const int error = log_distance_cuda(p, current_stream(x));
    FASTEBM_CHECK(error == 0, "nn_log_distance: CUDA error ", error, ", ", cuda_error_text(error));
  }
  return {value, grad, distance};
}

template <bool kCpu>
std::tuple<Tensor, Tensor> neighbor_means(const Tensor& y_in, const Tensor& chosen, int64_t k) {
  const char* const op = "neighbor_means";
  check_float32(op, "y", y_in, y_in);
  check_same_device(op, "chosen", chosen, y_in);
  FASTEBM_CHECK(y_in.dim() == 2 && y_in.size(0) > 0 && y_in.size(1) > 0, op,
                ": y must have shape (m, D), and hold something");
  FASTEBM_CHECK(
      chosen.scalar_type() == ScalarType::Long && chosen.dim() == 1 && chosen.is_contiguous(), op,
      ": chosen must be a contiguous int64 tensor (n,)");
  NeighborMeansParams p{};
  p.n = chosen.size(0);
  p.m = y_in.size(0);
  p.dim = y_in.size(1);
  FASTEBM_CHECK(k >= 1 && k <= kMaxNeighbors && k <= p.m, op, ": k must be in 1..",
                std::min<int64_t>(kMaxNeighbors, p.m), ", got ", k);
  const Tensor y = dense(y_in);
  p.k = static_cast<int>(k);
  p.y = static_cast<const float*>(y.const_data_ptr());
  p.chosen = static_cast<const int64_t*>(chosen.const_data_ptr());
  for (int64_t i = 0; i < p.n && !y.is_cuda(); ++i)
    FASTEBM_CHECK(p.chosen[i] >= 0 && p.chosen[i] < p.m, op, ": chosen must be in 0..", p.m - 1,
                  ", got ", p.chosen[i]);
  const int64_t sizes[2] = {p.n, p.dim}, strides[2] = {p.dim, 1};
  Tensor means = empty_strided_on(y, sizes, strides, 2, aoti_torch_dtype_float32());
  Tensor scales = empty_strided_on(y, sizes, strides + 1, 1, aoti_torch_dtype_float32());
  if (p.n == 0) return {means, scales};
  p.means = static_cast<float*>(means.mutable_data_ptr());
  p.scales = static_cast<float*>(scales.mutable_data_ptr());
  const auto run = [&](NeighborMeansLauncher* launcher) {
    if constexpr (kCpu) {
      const int64_t grain = std::max<int64_t>(1, kGrainElements / (p.dim * k));
      torch::stable::parallel_for(
          0, p.n, grain, [&](int64_t begin, int64_t end) { launcher(p, begin, end, nullptr); });
    } else {
      std::optional<DeviceGuard> guard;
      if (y.is_cuda()) guard.emplace(y.get_device_index());
      const int error = launcher(p, 0, p.n, current_stream(y));
      FASTEBM_CHECK(error == 0, op, ": CUDA error ", error, ", ", cuda_error_text(error));
    }
  };
  if constexpr (kCpu)
    run(chosen_samples_cpu);
  else
    run(chosen_samples_cuda);
  const auto [distance, index] = nearest_neighbor<kCpu>(means, y, std::nullopt, k, 1.0, 0.0);
  p.index = static_cast<const int64_t*>(index.const_data_ptr());
  if constexpr (kCpu)
    run(neighbor_means_cpu);
  else
    run(neighbor_means_cuda);
  return {means, scales};
}

}  // namespace

#ifndef FASTEBM_SIMT
void check_log_distance(const Tensor& x, const Tensor& y, const OptionalTensor& skip, double eps,
                        double y_scale, double y_offset) {
  check_eps(eps);
  search_params(x, y, skip, 1, y_scale, y_offset);
}

std::tuple<Tensor, Tensor, Tensor> nn_log_distance_cpu(const Tensor& x, const Tensor& y,
                                                       const OptionalTensor& skip, double eps,
                                                       double y_scale, double y_offset) {
  return nn_log_distance<true>(x, y, skip, eps, y_scale, y_offset);
}

std::tuple<Tensor, Tensor> means_of_neighbors_cpu(const Tensor& y, const Tensor& chosen,
                                                  int64_t k) {
  return neighbor_means<true>(y, chosen, k);
}
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(FASTEBM_NAMESPACE, m) {
  m.def(
      "nearest_neighbor(Tensor x, Tensor y, Tensor? skip, int k, float y_scale, float y_offset) "
      "-> (Tensor distance, Tensor index)");
  m.def(
      "nearest_neighbor_backward(Tensor grad, Tensor x, Tensor winners, Tensor distance, "
      "float y_scale, float y_offset) -> Tensor");
  m.def(
      "nn_log_distance(Tensor x, Tensor y, Tensor? skip, float eps, float y_scale, "
      "float y_offset) -> (Tensor value, Tensor grad, Tensor distance)");
  m.def("neighbor_means(Tensor y, Tensor chosen, int k) -> (Tensor means, Tensor scales)");
}

#define FASTEBM_IMPL(is_cpu)                                          \
  m.impl("nearest_neighbor", TORCH_BOX((&nearest_neighbor<is_cpu>))); \
  m.impl("nn_log_distance", TORCH_BOX((&nn_log_distance<is_cpu>)));   \
  m.impl("neighbor_means", TORCH_BOX((&neighbor_means<is_cpu>)));     \
  m.impl("nearest_neighbor_backward", TORCH_BOX((&nearest_neighbor_backward<is_cpu>)))

STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CPU, m) {
#ifdef FASTEBM_SIMT
  FASTEBM_IMPL(false);
#else
  FASTEBM_IMPL(true);
#endif
}

#ifdef FASTEBM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(FASTEBM_NAMESPACE, CUDA, m) { FASTEBM_IMPL(false); }
#endif

}  // namespace fastebm
