// The sums of launch/sums_cuda.h, and what becomes of them without their barriers.
#pragma once
#include <cmath>
#include <cstdio>
#include <set>
#include <vector>

#include "check.h"
#include "launch/sums_cuda.h"

namespace {

constexpr int kThreads = 256;

// out[row] = sum over columns of x (rows, columns); one block a row. `kBarrier` false leaves out
// the barrier that block_sum has between its two stages.
template <bool kBarrier>
__global__ void __launch_bounds__(kThreads)
    row_sum_kernel(const float* x, double* out, int columns) {
  FASTEBM_SHARED(double[kThreads / 32], warp_sums);
  double sum = 0;
  for (int c = threadIdx.x; c < columns; c += kThreads) sum += x[blockIdx.x * columns + c];
  sum = fastebm::warp_sum(sum);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  if (kBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    sum = 0;
    for (double w : warp_sums) sum += w;
    out[blockIdx.x] = sum;
  }
}

// Two block sums in a row, as a kernel that clips by norm does; out holds every thread's results.
template <int kSize, bool kBarrierBetween>
__global__ void block_sum_kernel(const double* x, double* out) {
  const int i = threadIdx.x;
  out[i] = fastebm::block_sum<kSize>(x[i]);
  if (kBarrierBetween) __syncthreads();
  out[kSize + i] = fastebm::block_sum<kSize>(2 * x[i]);
}

// Rows of `columns` numbers, each summed by a group of threads; out holds every thread's result.
__global__ void group_sum_kernel(const double* x, double* out, int rows, int columns,
                                 fastebm::RowGroups<kThreads> groups) {
  const int row = static_cast<int>(groups.row());
  double sum = 0;
  if (row < rows)
    for (int c = groups.lane(); c < columns; c += groups.lanes()) sum += x[row * columns + c];
  sum = fastebm::group_sum<kThreads>(sum, groups.lanes());
  if (row < rows) out[row * groups.lanes() + groups.lane()] = sum;
}

void test_row_sum() {
  const int rows = 5, columns = 700;
  const std::vector<float> x = ramp(rows * columns);
  std::vector<double> expected(rows), out(rows);
  for (int i = 0; i < rows * columns; ++i) expected[i / columns] += x[i];
  bool right = true;
  std::set<std::vector<double>> seen;
  int wrong = 0;
  for_each_schedule([&] {
    const int code = fastebm::launch(row_sum_kernel<true>, rows, kThreads, 0, nullptr, x.data(),
                                     out.data(), columns);
    right = right && code == 0 && out == expected;  // quarters: every order of adding is exact
    fastebm::launch(row_sum_kernel<false>, rows, kThreads, 0, nullptr, x.data(), out.data(),
                    columns);
    wrong += out != expected;
    for (double& v : out) v = std::isnan(v) ? -1e9 : v;  // comparable
    seen.insert(out);
  });
  check(right, "row sum, every schedule");
  check(wrong > kSchedules / 2, "row sum without its barrier is wrong");
  check(seen.size() > 1, "row sum without its barrier depends on the schedule");
}

template <int kSize>
void test_block_sum() {
  std::vector<double> x(kSize), out(2 * kSize);
  for (int i = 0; i < kSize; ++i) x[i] = std::sin(1.0 + i) * std::pow(10.0, i % 7);
  std::vector<double> tree = x;  // the order launch/sums_cuda.h promises
  for (int w = 0; w < kSize; w += 32)
    for (int h = 16; h > 0; h /= 2)
      for (int l = 0; l < h; ++l) tree[w + l] += tree[w + l + h];
  for (int h = kSize / 64; h > 0; h /= 2)
    for (int w = 0; w < h; ++w) tree[32 * w] += tree[32 * (w + h)];
  bool same = true;
  int wrong = 0;
  for_each_schedule([&] {
    same = same && fastebm::launch(block_sum_kernel<kSize, true>, 1, kSize, 0, nullptr, x.data(),
                                   out.data()) == 0;
    for (int i = 0; i < kSize; ++i)
      same = same && out[i] == tree[0] && out[kSize + i] == 2 * tree[0];
    fastebm::launch(block_sum_kernel<kSize, false>, 1, kSize, 0, nullptr, x.data(), out.data());
    for (int i = 0; i < 2 * kSize; ++i)
      if (out[i] != (i < kSize ? tree[0] : 2 * tree[0])) {
        ++wrong;
        break;
      }
  });
  char name[64];
  std::snprintf(name, sizeof name, "block_sum<%d> is its documented tree, bit for bit", kSize);
  check(same, name);
  if (kSize > 32) check(wrong > 0, "block_sum twice without a barrier between is wrong");
}

// A group gives the bits of a whole block whose other threads have zeros.
void test_group_sum() {
  constexpr int kRows = 11;
  bool same = true;
  for (int columns : {1, 3, 8, 20, 33, 128, 300}) {
    const fastebm::RowGroups<kThreads> groups(columns);
    std::vector<double> x(kRows * columns), out(kRows * kThreads), sums(kRows);
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::pow(10.0, i % 7) / (1.0 + i);
    for (int row = 0; row < kRows; ++row) {
      double lanes[kThreads] = {}, whole[2 * kThreads];
      for (int c = 0; c < columns; ++c) lanes[c % kThreads] += x[row * columns + c];
      fastebm::launch(block_sum_kernel<kThreads, true>, 1, kThreads, 0, nullptr, lanes, whole);
      sums[row] = whole[0];
    }
    for_each_schedule([&] {
      same = same && fastebm::launch(group_sum_kernel, groups.grid(kRows), kThreads, 0, nullptr,
                                     x.data(), out.data(), kRows, columns, groups) == 0;
      for (int i = 0; i < kRows * groups.lanes(); ++i)
        same = same && out[i] == sums[i / groups.lanes()];
    });
  }
  check(same, "sums of groups of 1 to 256 threads, several to a block");
}

}  // namespace
