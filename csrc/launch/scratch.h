// Memory for the CPU's calls: a thread keeps it for its next one, as the faults of pages that the
// system hands out anew cost more than a small batch's arithmetic.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace fastebm {

class Scratch {
 public:
  // At least so many bytes, 64-byte aligned, not initialised; what was there before is gone.
  void* take(int64_t bytes) {
    if (bytes > bytes_) {
      memory_.reset();
      bytes_ = 0;
      memory_.reset(std::aligned_alloc(64, static_cast<size_t>(bytes + 63) / 64 * 64));
      if (!memory_) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  int64_t bytes_ = 0;
};

// The calling thread's own for the use that `Tag` names, or `large` where it would keep too much.
template <class Tag>
Scratch& kept_scratch(int64_t bytes, Scratch* large) {
  constexpr int64_t kMostKept = int64_t{16} << 20;
  thread_local Scratch kept;
  return bytes <= kMostKept ? kept : *large;
}

}  // namespace fastebm
