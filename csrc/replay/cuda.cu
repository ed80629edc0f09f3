// Replayed samples on a CUDA device: by blocks of elements, or by images where they are augmented.
#include "replay/augmentation_cuda.h"

namespace fastebm {
namespace {

// Samples as they are stored, dequantised or initial. A thread takes two blocks of four elements of
// one sample, half of it apart, so that each warp moves memory that lies together and both share
// what is drawn for the sample: 1 or 4 B read and 4 B written an element.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kBlockThreads)
    gather_kernel(ReplayParams p, int64_t first_row, uint32_t n_threads, Divider half) {
  const uint32_t i = blockIdx.x * kBlockThreads + threadIdx.x;
  if (i >= n_threads) return;
  const uint32_t r = half(i), first = i - r * half.divisor;
  const int64_t row = first_row + r, index = p.index[row];
  const uint64_t id = sample_id(p, row);
  const uint32_t block[2] = {first, first + half.divisor};
  const T* from = static_cast<const T*>(p.data) + index * p.dim;
  const bool there = index >= 0 && index < p.stored;
  Quad<T> stored[2];
  for (int b = 0; b < 2; ++b)
    stored[b] = load_quad<kWhole>(from + 4 * static_cast<int64_t>(block[b]),
                                  there ? elements_in<kWhole>(p, block[b]) : 0);
  const int64_t slot = source_slot(p, id, index);
  Quad<float> values[2];
  block_values(p, id, slot, block, stored, values);
  float* to = p.out + row * p.dim;
  for (int b = 0; b < 2; ++b)
    store_quad<kWhole>(values[b], to + 4 * static_cast<int64_t>(block[b]),
                       elements_in<kWhole>(p, block[b]));
  if (first == 0) record_draw(p, row, index, slot);
}

// Whether images are worked on in shared memory, not in `scratch`: where two of them fit on a
// multiprocessor, which keeps 1 KB for itself in every block. One alone has too few threads to hide
// what it waits for.
bool is_shared(const ReplayParams& p) {
  constexpr int64_t kOwn = 1024, kStatic = 512;
  const int64_t half = (max_shared_bytes() + kOwn) / 2 - kOwn - kStatic;
  return static_cast<int64_t>(sizeof(float)) * p.dim <= half;
}

// Samples moved by the augmentation: a CUDA block takes one image of any size. What it holds
// between stages is in shared memory where it fits (3 x 96 x 96 on sm_90), else in the L2 cache: an
// element is read once and written once in device memory, and moved two to five times below it.
template <class T, int kC>
__global__ void __launch_bounds__(kReplayThreads)
    augment_kernel(ReplayParams p, Side height, Side width, bool whole, bool shared) {
  FASTEBM_SHARED(SampleAugmentation, s);
  const int64_t row = blockIdx.x, index = p.index[row];
  const uint64_t id = sample_id(p, row);
  const int64_t slot = source_slot(p, id, index);
  if (slot >= 0) draw_by_warps(p, id, &s);
  float* out = p.out + row * p.dim;
  float* work = shared ? dynamic_shared<float>() : static_cast<float*>(p.scratch) + row * p.dim;
  if (whole)
    load_image<T, true>(p, id, slot, slot >= 0 ? work : out);
  else
    load_image<T, false>(p, id, slot, slot >= 0 ? work : out);
  if (threadIdx.x == kReplayThreads - 1) record_draw(p, row, index, slot);
  if (slot < 0) return;
  __syncthreads();
  const float part = resize_and_color<kC>(p, height, width, s, work, out);
  if (s.color.contrast < s.color.count && p.channels == kC) {
    const double sum = block_sum<kReplayThreads>(static_cast<double>(part));
    finish_color<kC>(p, s.color, static_cast<float>(sum / static_cast<double>(p.height * p.width)),
                     out);
  }
  if (!s.blur) return;
  __syncthreads();
  blur(p, height, width, s.weight, true, out, work);
  __syncthreads();
  blur(p, height, width, s.weight, false, work, out);
}

// Whether rows of the buffer and of the result are whole blocks that can be moved at once.
template <class T>
bool is_whole(const ReplayParams& p) {
  return are_quads<T>(p.dim, p.data) && are_quads<float>(p.dim, p.out);
}

template <class T>
int gather(const ReplayParams& p, void* stream) {
  const int64_t half = (p.dim + 7) / 8;
  return for_each_launch(p.n, 4 * half, [&](int64_t first, uint32_t rows, uint32_t half_blocks) {
    const uint32_t n_threads = rows * half_blocks;
    return launch(is_whole<T>(p) ? gather_kernel<T, true> : gather_kernel<T, false>,
                  block_grid(n_threads, 1), dim3(kBlockThreads), 0, stream, p, first, n_threads,
                  Divider(half_blocks));
  });
}

template <class T, int kC>
int augment(const ReplayParams& p, void* stream) {
  const bool shared = is_shared(p);
  return launch(augment_kernel<T, kC>, dim3(static_cast<unsigned>(p.n)), dim3(kReplayThreads),
                shared ? sizeof(float) * static_cast<size_t>(p.dim) : 0, stream, p, Side(p.height),
                Side(p.width), is_whole<T>(p), shared);
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
