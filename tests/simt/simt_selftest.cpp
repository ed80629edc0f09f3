// Proves the emulator that the emulated-CUDA tests stand on: right kernels are right under every
// schedule, and each kind of wrong kernel is found. Prints "ok NAME" lines; test_simt_shim.py
// compiles and runs it.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <vector>

#include "launch/device.h"

namespace {

constexpr int kThreads = 256;
constexpr int kSchedules = 20;

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

__global__ void count_kernel(int* global, int* per_block) {
  FASTEBM_SHARED(int, counter);
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  atomicAdd(&counter, 1);
  atomicAdd(global, static_cast<int>(threadIdx.x + blockDim.x * threadIdx.y));
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0)
    per_block[blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)] = counter;
}

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

__global__ void overrun_kernel(float* out) {
  fastebm::dynamic_shared<float>()[threadIdx.x + 1] = 1;
  out[threadIdx.x] = 0;
}

int failures = 0;

void check(bool ok, const char* what) {
  std::printf("%s %s\n", ok ? "ok" : "FAILED", what);
  failures += !ok;
}

template <class F>
void for_each_schedule(F f) {
  for (int s = 0; s < kSchedules; ++s) {
    simt::schedule_seed = static_cast<uint64_t>(s);
    f();
  }
}

template <class... P, class... A>
bool reports(const char* text, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
             A... args) {
  const int code = fastebm::launch(kernel, grid, block, shared, nullptr, args...);
  const bool found = code != 0 && std::strstr(fastebm::error_text(code), text) != nullptr;
  if (!found) std::printf("     code %d: %s\n", code, fastebm::error_text(code));
  return found;
}

std::vector<float> ramp(int n) {
  std::vector<float> v(n);
  for (int i = 0; i < n; ++i) v[i] = 0.25f * static_cast<float>(i % 97) - 3;
  return v;
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
  std::vector<double> tree = x;  // the order launch/device.h promises
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
  check(fastebm::launch(static_shared_kernel<0>, 1, 32, 0, nullptr, out.data(), true) == 0,
        "a launch after failed ones works");
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
  check(reports("multiples of 16", misaligned_copy_kernel, 1, 1, 64, in), "a misaligned copy");
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

void test_memory() {
  std::vector<int> per_block(12);
  bool counts = true;
  for_each_schedule([&] {
    int total = 0;
    counts = counts && !fastebm::launch(count_kernel, dim3(2, 3, 2), dim3(8, 6), 0, nullptr, &total,
                                        per_block.data());
    counts = counts && total == 12 * 48 * 47 / 2;
    for (int n : per_block) counts = counts && n == 48;
  });
  check(counts, "atomics in shared and global memory, 3-D indices");

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

int main(int argc, char**) {
  if (argc > 1) {  // any argument: the overrun that AddressSanitizer must stop
    std::vector<float> out(32);
    return fastebm::launch(overrun_kernel, 1, 32, 32 * sizeof(float), nullptr, out.data());
  }
  test_row_sum();
  test_block_sum<32>();
  test_block_sum<256>();
  test_block_sum<1024>();
  test_group_sum();
  test_errors();
  test_shared_limits();
  test_warp();
  test_copies();
  test_mma();
  test_matrices();
  test_memory();
  return failures != 0;
}
