// A search on the device, real or emulated, up to its scores.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "neighbor/bytes_cuda.h"
#include "neighbor/direct_cuda.h"
#include "neighbor/select_cuda.h"

namespace fastebm {
namespace {

int failures = 0;

void check(double share, const char* what, int64_t n, int64_t m, int64_t dim) {
  std::printf("%s %s (%d, %d, %d): %.3f of the bound\n", share <= 1 ? "ok" : "FAILED", what,
              static_cast<int>(n), static_cast<int>(m), static_cast<int>(dim), share);
  failures += !(share <= 1);
}

// Memory of the device.
template <class T>
struct OnDevice {
  T* data = nullptr;
  size_t size;
  explicit OnDevice(const std::vector<T>& values) : size(values.size()) {
    const size_t bytes = size * sizeof(T);
#ifdef __CUDACC__
    if (cudaMalloc(&data, bytes) != cudaSuccess) std::abort();
    if (cudaMemcpy(data, values.data(), bytes, cudaMemcpyHostToDevice) != cudaSuccess) std::abort();
#else
    data = static_cast<T*>(operator new(bytes, std::align_val_t(64)));
    std::memcpy(data, values.data(), bytes);
#endif
  }
  OnDevice(const OnDevice&) = delete;
  // Waits for the kernels before; empty where one of them failed.
  std::vector<T> copy() const {
    std::vector<T> values(size);
#ifdef __CUDACC__
    if (cudaMemcpy(values.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost) != cudaSuccess)
      values.clear();
#else
    std::memcpy(values.data(), data, size * sizeof(T));
#endif
    return values;
  }
  ~OnDevice() {
#ifdef __CUDACC__
    cudaFree(data);
#else
    operator delete(data, std::align_val_t(64));
#endif
  }
};

template <class X, class Y>
struct Samples {
  std::vector<X> x;
  std::vector<Y> y;
  float scale, offset;
};

// Samples on the device, and the scratch of the one block that they are.
template <class X, class Y>
struct Search {
  NeighborParams p{};
  ScoreBlock b;
  OnDevice<X> x_memory;
  OnDevice<Y> y_memory;
  OnDevice<float> scratch;
  std::vector<float> found;  // of the scratch, once the scores are there

  static NeighborParams params(const Samples<X, Y>& s, Dtype x_dtype, Dtype y_dtype, int64_t dim) {
    NeighborParams p{};
    p.x_dtype = x_dtype;
    p.y_dtype = y_dtype;
    p.dim = dim;
    p.n = static_cast<int64_t>(s.x.size()) / dim;
    p.m = static_cast<int64_t>(s.y.size()) / dim;
    p.k = 1;
    p.y_scale = s.scale;
    p.y_offset = s.offset;
    return p;
  }
  Search(const Samples<X, Y>& s, Dtype x_dtype, Dtype y_dtype, int64_t dim, bool rounded = false)
      : p(params(s, x_dtype, y_dtype, dim)),
        x_memory(s.x),
        y_memory(s.y),
        scratch(std::vector<float>(plan_blocks(p, nullptr).bytes / 4, NAN)) {
    p.x = x_memory.data;
    p.y = y_memory.data;
    b = plan_blocks(p, scratch.data).block;
    int error = 0;
    if (dim <= kDirectDim) {
      error = launch_direct_score<X>(p, b, nullptr);
    } else if constexpr (sizeof(Y) == 1) {
      error = launch_quantize<X>(p, b, nullptr);
      if (!error) error = launch_byte_score(p, b, nullptr);
      if (!error) error = launch_tensor_score<Y>(p, b, nullptr);
    } else {
      error = launch_split<X>(p, b, nullptr);
      if constexpr (sizeof(Y) <= 4)
        if (!error && rounded) error = launch_rounded_score<Y>(p, b, nullptr);
      b.grid_queries = rounded ? b.grid_queries : nullptr;  // all are scored
      if (!error && !rounded) error = launch_tensor_score<Y>(p, b, nullptr);
    }
    if (!error) found = scratch.copy();
  }
  // What is at `at` in the scratch.
  template <class T>
  const T* host(const T* at) const {
    return reinterpret_cast<const T*>(
        reinterpret_cast<const char*>(found.data()) +
        (reinterpret_cast<const char*>(at) - reinterpret_cast<const char*>(scratch.data)));
  }
};

}  // namespace
}  // namespace fastebm
