// Jumps between samples of a population on a CUDA device.
#include "launch/element_blocks_cuda.h"
#include "metropolis/metropolis.h"

namespace fastebm {
namespace {

// out = x + (b_i - b_j), or a uniform point lo + (hi - lo) u. A thread takes one block of four
// elements of a sample, and finds out by itself where the sample jumps to: threads of a sample, and
// samples, move memory that lies together, but for the two rows of the population. 16 B an element.
template <bool kWhole>
__global__ void __launch_bounds__(kBlockThreads)
    population_jump_kernel(JumpParams p, int64_t first_row, uint32_t n_blocks, Divider blocks) {
  const uint32_t i = blockIdx.x * kBlockThreads + threadIdx.x;
  if (i >= n_blocks) return;
  const uint32_t in_launch = blocks(i), block = i - in_launch * blocks.divisor;
  const int64_t row = first_row + in_launch, from = 4 * static_cast<int64_t>(block);
  const int count = kWhole ? 4 : block_size(p.dim, block);
  const NoiseKey key = noise_key(p);
  const uint64_t id = sample_id(p, row);
  const Jump jump = jump_of(jump_words(key, id, 0), p.size, p.uniform_below);
  float y[4];
  if (jump.uniform) {
    const Words4 words = jump_words(key, id, 1 + block);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      y[e] = e < count ? uniform_element(words.v[e], p.lo[from + e], p.hi[from + e]) : 0.0f;
  } else {
    const auto load = [&](const float* samples, int64_t sample, float (&to)[4]) {
      unpack(load_quad<kWhole>(samples + sample * p.dim + from, count), to);
    };
    float x[4], b_i[4], b_j[4];
    load(p.x, row, x);
    load(p.population, jump.i, b_i);
    load(p.population, jump.j, b_j);
#pragma unroll
    for (int e = 0; e < 4; ++e) y[e] = jump_element(x[e], b_i[e], b_j[e]);
  }
  store_quad<kWhole>(pack(y), p.out + row * p.dim + from, count);
}

template <bool kWhole>
int jump(const JumpParams& p, void* stream) {
  return for_each_launch(p.batch, p.dim, [&](int64_t first, uint32_t rows, uint32_t blocks) {
    return launch(population_jump_kernel<kWhole>, block_grid(rows * blocks, 1), dim3(kBlockThreads),
                  0, stream, p, first, rows * blocks, Divider(blocks));
  });
}

}  // namespace

int population_jump_cuda(const JumpParams& p, int64_t, int64_t, void* stream) {
  return are_quads<float>(p.dim, p.x, p.population, p.out) ? jump<true>(p, stream)
                                                           : jump<false>(p, stream);
}

}  // namespace fastebm
