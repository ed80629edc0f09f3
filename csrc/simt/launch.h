// Launches on the emulated device, with CUDA's limits and errors.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "simt/fibers.h"
#include "simt/schedule.h"

namespace simt {

// The numbers are cudaError_t's.
inline constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719;
// Shared memory of a block on sm_90, static and dynamic: at most, and what it has without asking.
inline constexpr size_t kMaxSharedBytes = 227 * 1024, kUnaskedSharedBytes = 48 * 1024;

inline std::mutex one_at_a_time;  // launches: the machine and shared memory are global
inline thread_local std::string last_error_text;
inline const char* last_error() { return last_error_text.c_str(); }

inline std::set<std::string> launched;  // names of kernels

// Of a call launch(kernel, ...), whose arguments these are: every name in them that ends so.
inline void note_launch(const std::string& arguments) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  static const std::regex name("\\w+_kernel\\b");
  for (std::sregex_iterator i(arguments.begin(), arguments.end(), name), end; i != end; ++i)
    launched.insert(i->str());
}

inline int refuse(int code, const std::string& what) {
  last_error_text = "simt: " + what;
  return code;
}

// Dynamic shared memory that a kernel was allowed to have (cudaFuncSetAttribute).
inline std::map<const void*, size_t> asked_bytes;

template <class... P>
int ask_for_shared(void (*kernel)(P...), size_t bytes) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (bytes > kMaxSharedBytes)
    return refuse(kInvalidValue, "a block has at most 227 KB of shared memory");
  asked_bytes[reinterpret_cast<const void*>(kernel)] = bytes;
  return 0;
}

// Runs the whole grid before it returns. Never throws: returns 0 or a cudaError_t's number, and
// last_error() says what went wrong in this OS thread's last failed launch.
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A&&... args) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024)
    return refuse(kInvalidConfiguration, "a block has 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFF || grid.y > 65535 ||
      grid.z > 65535)
    return refuse(kInvalidConfiguration, "a grid has 1 to (2^31-1, 65535, 65535) blocks");
  const auto asked = asked_bytes.find(reinterpret_cast<const void*>(kernel));
  const bool has_asked = asked != asked_bytes.end();
  if (shared_bytes > (has_asked ? asked->second : kUnaskedSharedBytes))
    return refuse(kInvalidValue, "more dynamic shared memory than was asked for");
  try {
    // By value and with implicit conversions only, as CUDA passes arguments.
    const auto bind = [kernel](P... p) { return [=] { kernel(p...); }; };
    Machine m;
    m.fibers = std::vector<Fiber>(threads);
    m.body = bind(std::forward<A>(args)...);
    m.dynamic_shared = shared_memory(shared_bytes);
    machine = &m;
    StaticVariable::begin_launch();
    if (!run_grid(grid, block, shared_bytes, has_asked ? kMaxSharedBytes : kUnaskedSharedBytes))
      return refuse(kInvalidValue, "static and dynamic shared memory of a block are too much");
  } catch (const std::exception& e) {
    last_error_text = e.what();
    return kLaunchFailure;
  }
  return 0;
}

}  // namespace simt
