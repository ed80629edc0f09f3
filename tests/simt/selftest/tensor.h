// Asynchronous copies and tensor cores.
#pragma once
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "launch/ptx_cuda.h"

namespace {

// out[i] = in[63 - i] through two groups of asynchronous copies; the second is of zeros where
// in has less than 64. kWait, kBarrier false: as a wrong kernel.
template <bool kWait, bool kBarrier>
__global__ void copy_kernel(const float* in, float* out, int n) {
  float* tile = fastebm::dynamic_shared<float>();
  const int i = static_cast<int>(threadIdx.x);
  for (int half = 0; half < 2; ++half) {
    const int at = 32 * half + 4 * i;
    if (i < 8) fastebm::copy_async(tile + at, in + (at < n ? at : 0), at < n);
    fastebm::commit_copies();
  }
  if (kWait)
    fastebm::wait_copies<0>();
  else
    fastebm::wait_copies<1>();
  if (kBarrier) __syncthreads();
  out[i] = tile[63 - i];
}

__global__ void misaligned_copy_kernel(const float* in) {
  fastebm::copy_async(fastebm::dynamic_shared<float>() + 1, in, true);
}

// c (16, 16) = a (16, 16) b (16, 16), rounded to bfloat16, as two matrices b of 8 columns.
__global__ void mma_kernel(const float* a, const float* b, float* c) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  float sums[2][4] = {};
  uint32_t left[4], right[2][2];
  for (int r = 0; r < 4; ++r) {
    const float* at = a + 16 * (g + 8 * (r & 1)) + 2 * t + 8 * (r >> 1);
    left[r] = fastebm::bfloat16_pair(at[0], at[1]);
  }
  for (int i = 0; i < 2; ++i)
    for (int r = 0; r < 2; ++r) {
      const float* at = b + 16 * (2 * t + 8 * r) + 8 * i + g;
      right[i][r] = fastebm::bfloat16_pair(at[0], at[16]);
    }
  fastebm::mma_bfloat16(sums, left, right);
  for (int i = 0; i < 2; ++i)
    for (int r = 0; r < 4; ++r) c[16 * (g + 8 * (r >> 1)) + 8 * i + 2 * t + (r & 1)] = sums[i][r];
}

// c (16, 16) += a (16, 32) b (16, 32) transposed, of bytes, as two matrices b of 8 columns.
__global__ void mma_bytes_kernel(const uint8_t* a, const uint8_t* b, int32_t* c) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  int32_t sums[2][4];
  uint32_t left[4], right[2][2];
  for (int r = 0; r < 4; ++r)
    std::memcpy(&left[r], a + 32 * (g + 8 * (r & 1)) + 4 * t + 16 * (r >> 1), 4);
  for (int i = 0; i < 2; ++i)
    for (int r = 0; r < 2; ++r) std::memcpy(&right[i][r], b + 32 * (8 * i + g) + 4 * t + 16 * r, 4);
  const auto at = [&](int i, int r) -> int32_t& {
    return c[16 * (g + 8 * (r >> 1)) + 8 * i + 2 * t + (r & 1)];
  };
  for (int i = 0; i < 2; ++i)
    for (int r = 0; r < 4; ++r) sums[i][r] = at(i, r);
  fastebm::mma_bytes(sums, left, right);
  for (int i = 0; i < 2; ++i)
    for (int r = 0; r < 4; ++r) at(i, r) = sums[i][r];
}

// Element k of row j of matrix i is 64 i + 8 j + k; a lane's four pairs to out[4 lane]. Rows are
// overwritten at once, by which time all lanes have read.
template <bool kTransposed>
__global__ void matrices_kernel(uint32_t* out) {
  uint16_t* rows = fastebm::dynamic_shared<uint16_t>();
  const unsigned lane = threadIdx.x;
  for (unsigned k = 0; k < 8; ++k) rows[8 * lane + k] = static_cast<uint16_t>(8 * lane + k);
  __syncwarp();
  uint32_t pairs[4];
  fastebm::load_matrices<kTransposed>(pairs, rows + 8 * lane);
  for (unsigned k = 0; k < 8; ++k) rows[8 * lane + k] = 0;
  for (unsigned i = 0; i < 4; ++i) out[4 * lane + i] = pairs[i];
}

__global__ void misaligned_matrices_kernel(uint32_t* out) {
  uint32_t pairs[4];
  fastebm::load_matrices<false>(pairs, fastebm::dynamic_shared<uint16_t>() + 1);
  out[threadIdx.x] = pairs[0];
}

void test_copies() {
  alignas(16) float in[64];
  for (int i = 0; i < 64; ++i) in[i] = static_cast<float>(i + 1);
  std::vector<float> out(64);
  bool right = true, unwaited = true;
  int unsynchronised = 0;
  const auto run = [&](auto kernel, int n) {
    return fastebm::launch(kernel, 1, 64, 64 * sizeof(float), nullptr, in, out.data(), n) == 0;
  };
  const auto reversed = [&](int n) {
    bool same = true;
    for (int i = 0; i < 64; ++i) same = same && out[63 - i] == (i < n ? in[i] : 0);
    return same;
  };
  for_each_schedule([&] {
    right = right && run(copy_kernel<true, true>, 64) && reversed(64);
    right = right && run(copy_kernel<true, true>, 36) && reversed(36);
    run(copy_kernel<false, true>, 64);
    unwaited = unwaited && std::isnan(out[0]) && std::isnan(out[31]) && out[32] == 32;
    unsynchronised += !(run(copy_kernel<true, false>, 64) && reversed(64));
  });
  check(right, "asynchronous copies");
  check(unwaited, "a copy that is not waited for is NaN");
  check(unsynchronised > 0, "copies without a barrier");
  check(reports("multiples of its size", misaligned_copy_kernel, 1, 1, 64, in),
        "a misaligned copy");
}

void test_mma() {
  std::vector<float> a(256), b(256), c(256);
  for (int i = 0; i < 256; ++i) {  // exact in bfloat16, sums of products exact in float32
    a[i] = static_cast<float>((i * 37) % 101 - 50);
    b[i] = static_cast<float>((i * 53) % 97 - 48) / 8;
  }
  bool exact = fastebm::launch(mma_kernel, 1, 32, 0, nullptr, a.data(), b.data(), c.data()) == 0;
  for (int i = 0; i < 256; ++i) {
    float sum = 0;
    for (int k = 0; k < 16; ++k) sum += a[i / 16 * 16 + k] * b[k * 16 + i % 16];
    exact = exact && c[i] == sum;
  }
  check(exact, "products of bfloat16 matrices");
  std::fill(a.begin(), a.end(), 1.0f);
  std::fill(b.begin(), b.end(), 0.0f);
  for (int i = 0; i < 16; ++i) b[i] = 16777216.0f, b[16 + i] = 3;
  fastebm::launch(mma_kernel, 1, 32, 0, nullptr, a.data(), b.data(), c.data());
  check(c[0] == 16777218.0f, "their sums are cut, not rounded");
  check(fastebm::bfloat16_pair(1.00390625f, -1.01171875f) == 0xBF823F80u, "ties to even bfloat16");
}

void test_mma_bytes() {
  std::vector<uint8_t> a(512), b(512);
  std::vector<int32_t> c(256);
  for (int i = 0; i < 512; ++i) {
    a[i] = static_cast<uint8_t>(i * 37 % 256);
    b[i] = static_cast<uint8_t>(255 - i * 53 % 240);
  }
  const auto start = [](int i) { return i < 8 ? INT32_MAX - i : -1000 * i; };
  for (int i = 0; i < 256; ++i) c[i] = start(i);
  bool exact = true;
  exact = !fastebm::launch(mma_bytes_kernel, 1, 32, 0, nullptr, a.data(), b.data(), c.data());
  for (int i = 0; i < 256; ++i) {
    int64_t sum = start(i);
    for (int k = 0; k < 32; ++k) sum += int64_t{a[i / 16 * 32 + k]} * b[i % 16 * 32 + k];
    exact = exact && static_cast<uint32_t>(c[i]) == static_cast<uint32_t>(sum);
  }
  check(exact, "products of matrices of bytes, modulo 2^32");
  check(fastebm::add_squares(0xFF02FE01u, 7) == 7 + 255 * 255 + 4 + 254 * 254 + 1,
        "squares of four bytes");
}

void test_matrices() {
  std::vector<uint32_t> rows(128), columns(128);
  bool right = true;
  for_each_schedule([&] {
    right = right && !fastebm::launch(matrices_kernel<false>, 1, 32, 512, nullptr, rows.data());
    right = right && !fastebm::launch(matrices_kernel<true>, 1, 32, 512, nullptr, columns.data());
    for (uint32_t lane = 0; lane < 32; ++lane)
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t g = lane / 4, t = 2 * (lane % 4), matrix = 64 * i;
        const uint32_t row = matrix + 8 * g + t, column = matrix + 8 * t + g;
        right = right && rows[4 * lane + i] == (row | (row + 1) << 16);
        right = right && columns[4 * lane + i] == (column | (column + 8) << 16);
      }
  });
  check(right, "matrices out of shared memory, and transposed");
  check(reports("multiple of 16", misaligned_matrices_kernel, 1, 32, 64, rows.data()),
        "a misaligned matrix row");
}

}  // namespace
