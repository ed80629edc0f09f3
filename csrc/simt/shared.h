// Shared memory on the emulated device. It is 0xFF bytes (NaN) at first in every
// block, and a launch knows how much its kernel has: a variable reports itself where it is
// declared, by a macro, as g++ drops the section attribute of a variable in a template.
#pragma once
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace simt {

struct AlignedDelete {
  void operator()(char* p) const { ::operator delete[](p, std::align_val_t(128)); }
};
using SharedMemory = std::unique_ptr<char[], AlignedDelete>;  // exact size: ASan sees overruns

inline SharedMemory shared_memory(size_t bytes) {
  return SharedMemory(bytes ? new (std::align_val_t(128)) char[bytes] : nullptr);
}

class StaticVariable {
 public:
  StaticVariable(void* at, size_t bytes) : at_(at), bytes_(bytes) { all().push_back(this); }

  // To be called where a thread comes by: the running kernel has this variable.
  void use() {
    if (used_) return;
    used_ = true;
    std::memset(at_, 0xFF, bytes_);
  }

  static void begin_launch() {
    for (StaticVariable* v : all()) v->used_ = false;
  }
  static void begin_block() {
    for (const StaticVariable* v : all())
      if (v->used_) std::memset(v->at_, 0xFF, v->bytes_);
  }
  static size_t bytes_used() {
    size_t sum = 0;
    for (const StaticVariable* v : all()) sum += v->used_ ? v->bytes_ : 0;
    return sum;
  }

 private:
  static std::vector<StaticVariable*>& all() {
    static std::vector<StaticVariable*> variables;
    return variables;
  }
  void* at_;
  size_t bytes_;
  bool used_ = false;
};

}  // namespace simt
