// The ways to search on a CPU, and what they share whatever the instruction set.
#pragma once
#include <algorithm>

#include "neighbor/neighbor.h"

namespace fastebm {

// Up to 12 elements direct search is faster: measured with n = 128 and 1024, AVX2 and AVX-512.
constexpr int kSmallDim = 12;

// Some of the queries: those of `rows`, or the `count` from `first` on.
struct Queries {
  int64_t first, count;
  const int64_t* rows = nullptr;
  Queries part(int64_t begin, int64_t n) const {
    return {first + begin, n, rows ? rows + begin : nullptr};
  }
};

// Those that are searched for at once.
struct QueryBlock {
  int64_t first;
  const int64_t* rows;
  int queries;
  int64_t row(int q) const { return rows ? rows[q] : first + q; }
  void hold(const Queries& part) {
    first = part.first;
    rows = part.rows;
    queries = static_cast<int>(part.count);
  }
};

int64_t direct_search_scratch_cpu(const NeighborParams&);
int direct_search_cpu(const NeighborParams&, const ParallelFor&);
int64_t tile_search_scratch_cpu(const NeighborParams&, int threads);
int tile_search_cpu(const NeighborParams&, const Queries&, int threads, void* scratch,
                    const ParallelFor&);
int64_t byte_search_scratch_cpu(const NeighborParams&, int threads);
int byte_search_cpu(const NeighborParams&, int threads, const ParallelFor&);
bool can_search_bytes(const NeighborParams&);

constexpr double kUnit = 0x1p-24;  // float32 rounding

// The k smallest of what is added, sorted; infinity to begin with.
template <class C>
struct SmallestK {
  C values[kMaxNeighbors];
  int k;
  explicit SmallestK(int k) : k(k) { std::fill_n(values, k, static_cast<C>(HUGE_VAL)); }
  const C& largest() const { return values[k - 1]; }
  void add(C v) { insert(values, k, v); }
  static void insert(C* values, int k, C v) {
    if (!(v < values[k - 1])) return;
    int i = k - 1;
    for (; i > 0 && v < values[i - 1]; --i) values[i] = values[i - 1];
    values[i] = v;
  }
};

// Hands out parts of the scratch, or only counts them where it begins at null.
class Carver {
 public:
  explicit Carver(void* begin) : begin_(static_cast<char*>(begin)) {}
  template <class T>
  T* take(int64_t n) {
    char* at = begin_ + bytes_;
    bytes_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* begin_;
  int64_t bytes_ = 0;
};

}  // namespace fastebm
