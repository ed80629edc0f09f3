// Replayed samples on a CUDA device.
#include "device.h"
#include "replay_draw.h"

namespace fastebm {
namespace {

// clang-format off
namespace one {
#define FASTEBM_TARGET __device__
#include "simd_one.h"
#include "replay_color_simd.h"
#undef FASTEBM_TARGET
}  // namespace one
// clang-format on

constexpr int kReplayThreads = 256;
// Whether images are worked on in shared memory, not in `scratch`: where two of them fit on a
// multiprocessor, which keeps 1 KB for itself in every block. One alone has too few threads to hide
// what it waits for.
bool is_shared(const ReplayParams& p) {
  constexpr int64_t kOwn = 1024, kStatic = 512;
  const int64_t half = (max_shared_bytes() + kOwn) / 2 - kOwn - kStatic;
  return static_cast<int64_t>(sizeof(float)) * p.dim <= half;
}

// Samples as they are stored, dequantised or initial. A thread takes one block of four elements of
// one sample: 1 or 4 B read and 4 B written an element.
template <class T>
__global__ void __launch_bounds__(kReplayThreads) gather_kernel(ReplayParams p, int64_t first) {
  const int64_t blocks = (p.dim + 3) / 4;
  const int64_t i = first + blockIdx.x * static_cast<int64_t>(kReplayThreads) + threadIdx.x;
  if (i >= p.n * blocks) return;
  const int64_t row = i / blocks, block = i - row * blocks, slot = source_slot(p, row);
  if (block == 0) record_draw(p, row, slot);
  load_block<T>(p, row, slot, block, p.out + row * p.dim + 4 * block);
}

// Crop, enlargement, flip, and the colours up to contrast: a thread takes every 256th pixel, kC
// channels in registers. Returns the thread's part of the sum that the mean is made of.
template <int kC>
__device__ float resize_and_color(const ReplayParams& p, const SampleAugmentation& s,
                                  const float* from, float* to) {
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  const int pixels = height * width;
  const bool colored = s.color.count > 0 && p.channels == kC;
  const bool two_passes = s.color.contrast < s.color.count;
  const float scale = 1.0f / (p.hi - p.lo);
  float sum = 0.0f;
  for (int at = static_cast<int>(threadIdx.x); at < pixels; at += kReplayThreads) {
    const int y = at / width, x = at - y * width;
    const Tap rows = resize_tap(y, s.height, height);
    const Tap columns = resize_tap(s.flip ? width - 1 - x : x, s.width, width);
    const float* upper = from + (s.top + rows.first) * width + s.left;
    const float* lower = from + (s.top + rows.second) * width + s.left;
    for (int64_t group = 0; group < p.channels; group += kC) {
      float c[kC];
      for (int i = 0; i < kC; ++i) {
        const int64_t plane = (group + i) * pixels;
        float a = upper[plane + columns.first], b = lower[plane + columns.first];
        a = a + columns.weight * (upper[plane + columns.second] - a);
        b = b + columns.weight * (lower[plane + columns.second] - b);
        c[i] = a + rows.weight * (b - a);
        if (colored) c[i] = one::to_unit(c[i], p.lo, scale);
      }
      if (colored) {
        one::color_ops<kC>(s.color, 0, s.color.contrast, 0.0f, c);
        if (two_passes) sum += kC == 3 ? one::grey(c) : c[0];
        if (!two_passes)
          for (int i = 0; i < kC; ++i) c[i] = one::from_unit(c[i], p.lo, p.hi);
      }
      for (int i = 0; i < kC; ++i) to[(group + i) * pixels + at] = c[i];
    }
  }
  return sum;
}

// Contrast and the colours after it, in place.
template <int kC>
__device__ void finish_color(const ReplayParams& p, const ColorProgram& color, float mean,
                             float* image) {
  const int pixels = static_cast<int>(p.height * p.width);
  for (int at = static_cast<int>(threadIdx.x); at < pixels; at += kReplayThreads) {
    float c[kC];
    for (int i = 0; i < kC; ++i) c[i] = image[i * pixels + at];
    one::color_ops<kC>(color, color.contrast, color.count, mean, c);
    for (int i = 0; i < kC; ++i) image[i * pixels + at] = one::from_unit(c[i], p.lo, p.hi);
  }
}

// One pass of the blur, with reflected borders: along rows or along columns.
__device__ void blur(const ReplayParams& p, const float* weight, bool along_rows, const float* from,
                     float* to) {
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  const int size = p.augmentation.kernel_size, half = size / 2;
  const int rows = static_cast<int>(p.channels) * height;
  for (int at = static_cast<int>(threadIdx.x); at < rows * width; at += kReplayThreads) {
    const int row = at / width, x = at - row * width, y = row % height;
    const float* line = along_rows ? from + row * width : from + (row - y) * width + x;
    float sum = 0.0f;
    for (int k = 0; k < size; ++k) {
      const int place = along_rows ? reflect(x + k - half, width) : reflect(y + k - half, height);
      const float term = weight[k] * line[along_rows ? place : place * width];
      sum = k == 0 ? term : sum + term;
    }
    to[at] = sum;
  }
}

// Samples moved by the augmentation: a CUDA block takes one image of any size. What it holds
// between stages is in shared memory where it fits (3 x 96 x 96 on sm_90), else in the L2 cache: an
// element is read once and written once in device memory, and moved two to five times below it.
template <class T, int kC>
__global__ void __launch_bounds__(kReplayThreads) augment_kernel(ReplayParams p, bool shared) {
  FASTEBM_SHARED(SampleAugmentation, s);
  FASTEBM_SHARED(int64_t, slot);
  const int64_t row = blockIdx.x;
  if (threadIdx.x == 0) {
    slot = source_slot(p, row);
    record_draw(p, row, slot);
    if (slot >= 0) draw_augmentation(p, row, &s);
  }
  __syncthreads();
  float* out = p.out + row * p.dim;
  float* work = shared ? dynamic_shared<float>() : static_cast<float*>(p.scratch) + row * p.dim;
  for (int64_t block = threadIdx.x; 4 * block < p.dim; block += kReplayThreads)
    load_block<T>(p, row, slot, block, (slot >= 0 ? work : out) + 4 * block);
  if (slot < 0) return;
  __syncthreads();
  const float part = resize_and_color<kC>(p, s, work, out);
  if (s.color.contrast < s.color.count && p.channels == kC) {
    const double sum = block_sum<kReplayThreads>(static_cast<double>(part));
    finish_color<kC>(p, s.color, static_cast<float>(sum / static_cast<double>(p.height * p.width)),
                     out);
  }
  if (!s.blur) return;
  __syncthreads();
  blur(p, s.weight, true, out, work);
  __syncthreads();
  blur(p, s.weight, false, work, out);
}

template <class T>
int gather(const ReplayParams& p, void* stream) {
  const int64_t blocks = p.n * ((p.dim + 3) / 4), most = int64_t{1} << 38;
  for (int64_t first = 0; first < blocks; first += most) {
    const int64_t count = blocks - first < most ? blocks - first : most;
    const int error =
        launch(gather_kernel<T>,
               dim3(static_cast<unsigned>((count + kReplayThreads - 1) / kReplayThreads)),
               dim3(kReplayThreads), 0, stream, p, first);
    if (error) return error;
  }
  return 0;
}

template <class T, int kC>
int augment(const ReplayParams& p, void* stream) {
  const bool shared = is_shared(p);
  return launch(augment_kernel<T, kC>, dim3(static_cast<unsigned>(p.n)), dim3(kReplayThreads),
                shared ? sizeof(float) * static_cast<size_t>(p.dim) : 0, stream, p, shared);
}

}  // namespace

int64_t replay_gather_scratch_cuda(const ReplayParams& p) {
  return p.augment && !is_shared(p) ? static_cast<int64_t>(sizeof(float)) * p.n * p.dim : 0;
}

int replay_gather_cuda(const ReplayParams& p, void* stream) {
  return visit_stored(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (!p.augment) return gather<T>(p, stream);
    return p.channels == 3 ? augment<T, 3>(p, stream) : augment<T, 1>(p, stream);
  });
}

}  // namespace fastebm
