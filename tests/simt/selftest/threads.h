// Threads that meet: barriers, collectives of a warp, atomics; and each way to miss each other.
#pragma once
#include <vector>

#include "check.h"
#include "launch/sums_cuda.h"

namespace {

__global__ void early_return_kernel(float* out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void divergent_shuffle_kernel(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = fastebm::warp_sum(1.0f);
}

__global__ void unequal_masks_kernel(unsigned* out) {
  *out = __ballot_sync(threadIdx.x < 16 ? 0xFFFFFFFFu : 0xFFFF0000u, 1);
}

__global__ void outside_mask_kernel(unsigned* out) { *out = __ballot_sync(0xFFFEu, 1); }

// Ballots and shuffles within the halves of a warp, whose lanes meet independently.
__global__ void halves_kernel(unsigned* votes, int* neighbor) {
  const unsigned half = threadIdx.x % 32 < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  votes[threadIdx.x] = __ballot_sync(half, threadIdx.x % 3 == 0);
  if (half & 1) __syncwarp(half);  // one half does more than the other
  neighbor[threadIdx.x] = __shfl_down_sync(half, static_cast<int>(threadIdx.x), 1);
  __syncwarp();
}

__global__ void shuffle_kernel(int* down, int* from, int* crossed) {
  const int i = static_cast<int>(threadIdx.x);
  down[i] = __shfl_down_sync(0xFFFFFFFFu, i, 3);
  from[i] = __shfl_sync(0xFFFFFFFFu, i, 33);
  crossed[i] = __shfl_xor_sync(0xFFFFFFFFu, i, 5);
}

__global__ void count_kernel(int* global, int* most, int* per_block) {
  FASTEBM_SHARED(int, counter);
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  atomicAdd(&counter, 1);
  const int thread = static_cast<int>(threadIdx.x + blockDim.x * threadIdx.y);
  atomicAdd(global, thread);
  atomicMax(most, thread);
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0)
    per_block[blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)] = counter;
}

void test_errors() {
  std::vector<float> out(1024);
  unsigned bits = 0;
  bool deadlock = true, divergent = true, masks = true;
  for_each_schedule([&] {
    deadlock = deadlock && reports("63 threads wait at __syncthreads", early_return_kernel, 2, 64,
                                   0, out.data());
    divergent = divergent && reports("deadlock", divergent_shuffle_kernel, 1, 32, 0, out.data());
    masks = masks && reports("16 at a warp collective, 16", unequal_masks_kernel, 1, 32, 0, &bits);
  });
  check(deadlock, "a thread that returns before a barrier");
  check(divergent, "a warp sum that half a warp reaches");
  check(masks, "lanes that meet with unequal masks");
  check(reports("leaves it out", outside_mask_kernel, 1, 32, 0, &bits), "a lane outside its mask");
  check(reports("does not have", divergent_shuffle_kernel, 1, 16, 0, out.data()),
        "a full mask in a part of a warp");
  check(reports("1 to 1024", early_return_kernel, 1, 1025, 0, out.data()), "too many threads");
  check(reports("a grid has", early_return_kernel, 0, 32, 0, out.data()), "an empty grid");
  check(reports("227 KB", early_return_kernel, 1, 32, 228 * 1024, out.data()),
        "too much shared memory");
  check(fastebm::launch(early_return_kernel, 1, 4, 0, nullptr, out.data()) == 0 && out[3] == 1,
        "a launch after failed ones works");
}

void test_warp() {
  std::vector<unsigned> votes(64);
  std::vector<int> a(64), b(64), c(64);
  bool halves = true, shuffles = true;
  for_each_schedule([&] {
    halves = halves && !fastebm::launch(halves_kernel, 1, 64, 0, nullptr, votes.data(), a.data());
    for (int i = 0; i < 64; ++i) {
      unsigned expected = 0;
      for (int l = i / 16 * 16; l < i / 16 * 16 + 16; ++l) expected |= (l % 3 == 0) << (l % 32);
      halves = halves && votes[i] == expected;
      if (i % 16 != 15) halves = halves && a[i] == i + 1;
    }
    shuffles = shuffles &&
               !fastebm::launch(shuffle_kernel, 1, 64, 0, nullptr, a.data(), b.data(), c.data());
    for (int i = 0; i < 64; ++i)
      shuffles = shuffles && a[i] == (i % 32 < 29 ? i + 3 : i) && b[i] == i / 32 * 32 + 1 &&
                 c[i] == (i ^ 5);
  });
  check(halves, "ballot and shuffle in half warps");
  check(shuffles, "shuffle down, from a lane, and crossed");
}

void test_atomics() {
  std::vector<int> per_block(12);
  bool counts = true;
  for_each_schedule([&] {
    int total = 0, most = -9;
    counts = counts && !fastebm::launch(count_kernel, dim3(2, 3, 2), dim3(8, 6), 0, nullptr, &total,
                                        &most, per_block.data());
    counts = counts && total == 12 * 48 * 47 / 2 && most == 47;
    for (int n : per_block) counts = counts && n == 48;
  });
  check(counts, "atomics in shared and global memory, 3-D indices");
}

}  // namespace
