// Shared memory: what is in it, and how much there is.
#pragma once
#include <cmath>
#include <vector>

#include "check.h"

namespace {

// out[i] = in[n - 1 - i] through dynamic shared memory.
__global__ void reverse_kernel(const float* in, float* out, int n, bool write) {
  float* tile = fastebm::dynamic_shared<float>();
  const int i = static_cast<int>(threadIdx.x);
  if (write) tile[i] = in[i];
  __syncthreads();
  out[i] = tile[n - 1 - i];
}

template <int kTag>
__global__ void static_shared_kernel(float* out, bool write) {
  FASTEBM_SHARED(float[32], value);
  if (write) value[threadIdx.x] = 1;
  __syncthreads();
  out[blockIdx.x * 32 + threadIdx.x] = value[threadIdx.x];
}

// `values` floats of dynamic shared memory beside 128 B of static: out[i] = 2 i.
__global__ void both_shared_kernel(float* out, int values) {
  FASTEBM_SHARED(float[32], value);
  float* tile = fastebm::dynamic_shared<float>();
  const int i = static_cast<int>(threadIdx.x), from = values - 32;
  value[i] = tile[from + i] = static_cast<float>(i);
  __syncthreads();
  out[i] = value[i] + tile[from + i];
}

__global__ void overrun_kernel(float* out) {
  fastebm::dynamic_shared<float>()[threadIdx.x + 1] = 1;
  out[threadIdx.x] = 0;
}

// CUDA's limits hold static and dynamic shared memory together.
void test_shared_limits() {
  std::vector<float> out(32), expected(32);
  for (int i = 0; i < 32; ++i) expected[i] = static_cast<float>(2 * i);
  const auto fits = [&](size_t bytes) {
    const int values = static_cast<int>(bytes / sizeof(float));
    out.assign(32, 0);
    return simt::launch(both_shared_kernel, 1, 32, bytes, out.data(), values) == 0 &&
           out == expected;
  };
  const size_t free = 48 * 1024 - 128, most = 227 * 1024 - 128;
  check(fits(free), "48 KB of shared memory, static and dynamic");
  check(
      !fits(free + 16) && simt::launch(both_shared_kernel, 1, 32, free + 128, out.data(), 64) == 1,
      "more than 48 KB, dynamic ones not");
  check(!fits(free + 256), "more than 48 KB of dynamic shared memory");
  check(!fastebm::launch(both_shared_kernel, 1, 32, free + 128, nullptr, out.data(), 64) &&
            fits(free + 128) && !fits(free + 144),
        "what launch() asks for, it has, and no more");
  check(!fastebm::launch(both_shared_kernel, 1, 32, most, nullptr, out.data(), 64) && fits(most),
        "all that a block can have");
  check(reports("static and dynamic", both_shared_kernel, 1, 32, most + 16, out.data(), 64),
        "too much with the static part");
}

void test_shared_memory() {
  const std::vector<float> x = ramp(96);
  std::vector<float> out(96);
  bool reversed = true;
  for_each_schedule([&] {
    reversed = reversed && !fastebm::launch(reverse_kernel, 1, 96, 96 * sizeof(float), nullptr,
                                            x.data(), out.data(), 96, true);
    for (int i = 0; i < 96; ++i) reversed = reversed && out[i] == x[95 - i];
  });
  check(reversed, "dynamic shared memory");
  fastebm::launch(reverse_kernel, 1, 96, 96 * sizeof(float), nullptr, x.data(), out.data(), 96,
                  false);
  check(std::isnan(out[0]) && std::isnan(out[95]), "unwritten dynamic shared memory is NaN");

  out.assign(64, 0);
  fastebm::launch(static_shared_kernel<0>, 2, 32, 0, nullptr, out.data(), true);
  check(out == std::vector<float>(64, 1), "static shared memory");
  fastebm::launch(static_shared_kernel<0>, 2, 32, 0, nullptr, out.data(), false);
  check(std::isnan(out[0]) && std::isnan(out[63]), "static shared memory forgets the last block");
}

}  // namespace
