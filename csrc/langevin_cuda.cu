// The Langevin step on a CUDA device.
#include "device.h"
#include "langevin.h"

namespace fastebm {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocksPerLaunch = int64_t{1} << 31;

// n / divisor for n < 2^31 by one multiplication (Granlund and Montgomery 1994).
struct Divider {
  uint32_t divisor, multiplier, shift;
  explicit Divider(uint32_t d) : divisor(d), multiplier(0), shift(0) {
    while ((uint64_t{1} << shift) < d) ++shift;
    multiplier =
        static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }
  __host__ __device__ uint32_t operator()(uint32_t n) const {
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(n) * multiplier) >> 32);
    return (high + n) >> shift;
  }
};

// Four values moved at once (two moves for float64).
template <class T>
struct alignas(sizeof(T) < 4 ? 8 : 16) Pack {
  T v[4];
};

// The block at element `at`, which has `count` elements; whole packs where kPacked.
template <class T, bool kPacked>
__device__ __forceinline__ void step_block(const LangevinParams& p, int64_t at, int count,
                                           int64_t mask_at, const Normals4& n,
                                           const RowCoefficients<Compute<T>>& c) {
  const T* x = static_cast<const T*>(p.x) + at;
  const T* grad = p.grad ? static_cast<const T*>(p.grad) + at : nullptr;
  T* out = static_cast<T*>(p.out) + at;
  uint8_t bits;
  if (kPacked) {
    const Pack<T> xs = *reinterpret_cast<const Pack<T>*>(x);
    Pack<T> gs{}, ys;
    if (grad) gs = *reinterpret_cast<const Pack<T>*>(grad);
    bits = langevin_block<T>(xs.v, gs.v, ys.v, 4, n.v, c);
    *reinterpret_cast<Pack<T>*>(out) = ys;
  } else {
    bits = langevin_block<T>(x, grad, out, count, n.v, c);
  }
  if (p.mask) p.mask[mask_at] = bits;
}

__device__ __forceinline__ int block_size(int64_t dim, int64_t block) {
  return dim - 4 * block < 4 ? static_cast<int>(dim - 4 * block) : 4;
}

// out = clamp(x - step * clip(grad) + sigma * n). A thread takes one block of four elements of one
// sample. float32 in place moves 12 B an element, and 1/4 B for the mask where one is wanted.
template <class T, bool kPacked, bool kNoise>
__global__ void __launch_bounds__(kThreads)
    langevin_step_kernel(LangevinParams p, int64_t first_row, uint32_t n_blocks, Divider blocks) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= n_blocks) return;
  const uint32_t r = blocks(i), block = i - r * blocks.divisor;
  const int64_t row = first_row + r;
  const auto c = row_coefficients<Compute<T>>(p, row, Compute<T>(1));
  Normals4 n{};
  if (kNoise) n = normals4(noise_key(p), sample_id(p, row), block);
  step_block<T, kPacked>(p, row * p.dim + 4 * static_cast<int64_t>(block), block_size(p.dim, block),
                         row * blocks.divisor + block, n, c);
}

// The same with each sample's gradient norm bounded: a CUDA block takes one sample, sums squares,
// then steps. Reads grad twice, the second time from the cache where a sample fits.
template <class T, bool kPacked, bool kNoise>
__global__ void __launch_bounds__(kThreads)
    langevin_step_norm_clip_kernel(LangevinParams p, int64_t first_row) {
  using C = Compute<T>;
  const int64_t row = first_row + blockIdx.x, blocks = blocks_per_row(p.dim);
  const T* grad = static_cast<const T*>(p.grad) + row * p.dim;
  double sum = 0;  // in this order: row_sum_of_squares() of the CPU gives the same bits
  for (int64_t b = threadIdx.x; b < blocks; b += kThreads)
    for (int64_t j = 4 * b; j < 4 * b + 4 && j < p.dim; ++j) {
      const double g = static_cast<double>(widen(grad[j]));
      sum = fma_rn(g, g, sum);
    }
  const C scale = norm_clip_scale<C>(block_sum<kThreads>(sum), p.grad_norm_clip);
  const auto c = row_coefficients<C>(p, row, scale);
  const NoiseKey key = noise_key(p);
  for (int64_t b = threadIdx.x; b < blocks; b += kThreads) {
    Normals4 n{};
    if (kNoise) n = normals4(key, sample_id(p, row), static_cast<uint32_t>(b));
    step_block<T, kPacked>(p, row * p.dim + 4 * b, block_size(p.dim, b), row * blocks + b, n, c);
  }
}

// grad_x = m * grad_out, grad_grad = -step * m * c * grad_out. A thread takes one block of four;
// float32 moves 12.25 B an element.
template <class T>
__global__ void __launch_bounds__(kThreads)
    langevin_step_backward_kernel(LangevinBackwardParams p, int64_t first_row, uint32_t n_blocks,
                                  Divider blocks) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= n_blocks) return;
  const uint32_t r = blocks(i), block = i - r * blocks.divisor;
  langevin_backward_block<T>(p, first_row + r, block, blocks.divisor);
}

bool aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <class T>
bool packable(const LangevinParams& p) {
  constexpr size_t kAlign = alignof(Pack<T>);
  return p.dim % 4 == 0 && aligned(p.x, kAlign) && aligned(p.grad, kAlign) &&
         aligned(p.out, kAlign);
}

// Calls f(first_row, rows) for runs of samples whose blocks fit one launch.
template <class F>
int for_each_launch(int64_t batch, int64_t blocks, F&& f) {
  const int64_t rows = kMaxBlocksPerLaunch / blocks - 1;
  for (int64_t first = 0; first < batch; first += rows) {
    const int error = f(first, batch - first < rows ? batch - first : rows);
    if (error) return error;
  }
  return 0;
}

template <class T, bool kPacked, bool kNoise>
int step(const LangevinParams& p, void* stream) {
  const int64_t blocks = blocks_per_row(p.dim);
  return for_each_launch(p.batch, blocks, [&](int64_t first, int64_t rows) {
    if (p.grad && p.grad_norm_clip - p.grad_norm_clip == 0)
      return launch(langevin_step_norm_clip_kernel<T, kPacked, kNoise>,
                    dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, stream, p, first);
    const uint32_t n_blocks = static_cast<uint32_t>(rows * blocks);
    return launch(langevin_step_kernel<T, kPacked, kNoise>,
                  dim3((n_blocks + kThreads - 1) / kThreads), dim3(kThreads), 0, stream, p, first,
                  n_blocks, Divider(static_cast<uint32_t>(blocks)));
  });
}

template <class T>
int step(const LangevinParams& p, void* stream) {
  const bool noisy = p.noise_stds || p.noise_std != 0;
  if (packable<T>(p))
    return noisy ? step<T, true, true>(p, stream) : step<T, true, false>(p, stream);
  return noisy ? step<T, false, true>(p, stream) : step<T, false, false>(p, stream);
}

template <class T>
int backward(const LangevinBackwardParams& p, void* stream) {
  const int64_t blocks = blocks_per_row(p.dim);
  return for_each_launch(p.batch, blocks, [&](int64_t first, int64_t rows) {
    const uint32_t n_blocks = static_cast<uint32_t>(rows * blocks);
    return launch(langevin_step_backward_kernel<T>, dim3((n_blocks + kThreads - 1) / kThreads),
                  dim3(kThreads), 0, stream, p, first, n_blocks,
                  Divider(static_cast<uint32_t>(blocks)));
  });
}

}  // namespace

int langevin_step_cuda(const LangevinParams& p, int64_t, int64_t, void* stream) {
  return visit_dtype(p.dtype, [&](auto t) { return step<decltype(t)>(p, stream); });
}

int langevin_step_backward_cuda(const LangevinBackwardParams& p, int64_t, int64_t, void* stream) {
  return visit_dtype(p.dtype, [&](auto t) { return backward<decltype(t)>(p, stream); });
}

}  // namespace fastebm
