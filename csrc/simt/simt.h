// CUDA's thread model on a CPU, for tests: the text of the kernels, run by a C++ compiler.
//
// A thread is a fiber; __syncthreads and the warp collectives are the only places where one stops
// and another goes on, so the order of threads is ours: seeded, random, and different in every
// block, which makes a missing barrier a wrong or seed-dependent result. Blocks run one after
// another. Shared memory starts as 0xFF bytes (NaN) in every block, and has CUDA's limits. What
// CUDA leaves undefined (a barrier that some thread never reaches, lanes that disagree about a
// mask) is an error. Not modelled: speed, threads that interleave between two collectives, TMA.
// Tensor cores and asynchronous copies: simt/tensor.h. Shared memory: simt/shared.h.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "simt/shared.h"
#include "simt/types.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __host__
#define __device__
#define __global__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

inline constexpr int warpSize = 32;
inline dim3 gridDim, blockDim;
inline uint3 blockIdx, threadIdx;

namespace simt {

// The numbers are cudaError_t's.
inline constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719;
inline constexpr size_t kStackBytes = 128 * 1024;
// Shared memory of a block on sm_90, static and dynamic: at most, and what it has without asking.
inline constexpr size_t kMaxSharedBytes = 227 * 1024, kUnaskedSharedBytes = 48 * 1024;

inline uint64_t schedule_seed = 0;  // another seed, another order of blocks and threads

enum class State { ready, at_block_barrier, at_warp_collective, returned };

struct Copy {  // an asynchronous one of 16 bytes, not yet made
  void* to;
  const void* from;  // null: zeros
  unsigned group;
};

struct Fiber {
  ucontext_t context;
  uint3 index;
  State state;
  uint32_t mask;                      // lanes met at the warp collective it waits in
  uint64_t published;                 // what it brings there
  std::array<uint64_t, 32> received;  // what the lanes of the mask brought
  std::vector<Copy> copies;           // in the order they were asked for
  unsigned group;                     // of the next copy
};

struct Machine {
  std::vector<Fiber> fibers;  // one block's threads, by linear index
  std::function<void()> body;
  SharedMemory dynamic_shared;
  ucontext_t scheduler{};
  const void* scheduler_stack = nullptr;  // known to ASan only
  size_t scheduler_stack_bytes = 0;
  unsigned running = 0;  // linear index of the thread that runs
  bool woken = false;    // it made others ready
  bool new_phase = false;
  std::string failure;  // what a thread threw
};
inline Machine* machine = nullptr;

inline std::string at(const char* what, uint3 i) {
  return std::string(what) + " (" + std::to_string(i.x) + "," + std::to_string(i.y) + "," +
         std::to_string(i.z) + ")";
}

[[noreturn]] inline void fail(const std::string& what) {
  throw std::runtime_error("simt: " + what + " [" + at("block", blockIdx) + "]");
}

inline void resume(Fiber& fiber) {
  Machine& m = *machine;
  m.running = static_cast<unsigned>(&fiber - m.fibers.data());
  threadIdx = fiber.index;
#ifdef __SANITIZE_ADDRESS__
  void* mine = nullptr;
  __sanitizer_start_switch_fiber(&mine, fiber.context.uc_stack.ss_sp, kStackBytes);
#endif
  swapcontext(&m.scheduler, &fiber.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
#endif
}

// Back to the scheduler; returns when this thread is resumed (never, once it has returned).
inline void stop(State state) {
  Machine& m = *machine;
  Fiber& self = m.fibers[m.running];
  self.state = state;
#ifdef __SANITIZE_ADDRESS__
  void* mine = nullptr;
  __sanitizer_start_switch_fiber(state == State::returned ? nullptr : &mine, m.scheduler_stack,
                                 m.scheduler_stack_bytes);
#endif
  swapcontext(&self.context, &m.scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
#endif
}

inline void thread_main() {
  Machine& m = *machine;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_stack_bytes);
#endif
  try {
    m.body();
  } catch (const std::exception& e) {  // must not leave a fiber
    m.failure = std::string(e.what()) + " [" + at("thread", threadIdx) + "]";
  }
  stop(State::returned);
}

inline void sync_block() {
  Machine& m = *machine;
  m.fibers[m.running].state = State::at_block_barrier;
  for (const Fiber& f : m.fibers)
    if (f.state != State::at_block_barrier) return stop(State::at_block_barrier);
  for (Fiber& f : m.fibers) f.state = State::ready;
  m.woken = m.new_phase = true;
  stop(State::ready);  // the last to arrive is not the first to leave
}

inline unsigned lane() { return machine->running % 32; }

// Meets the lanes of mask and returns what each brought; 0xFF bytes for lanes not in mask. The last
// to come calls act(what all brought) while the others wait.
template <class F>
const std::array<uint64_t, 32>& meet(uint32_t mask, uint64_t value, F&& act) {
  Machine& m = *machine;
  Fiber& self = m.fibers[m.running];
  Fiber* warp = &m.fibers[m.running - lane()];
  const size_t lanes = std::min<size_t>(32, m.fibers.size() - (m.running - lane()));
  if (!(mask >> lane() & 1)) fail("a lane calls a warp collective whose mask leaves it out");
  if (lanes < 32 && mask >> lanes)
    fail("the mask of a warp collective names lanes that the block does not have");
  self.state = State::at_warp_collective;
  self.mask = mask;
  self.published = value;
  // A lane may still wait in another collective of its own group of lanes, and come here after.
  const auto here = [&](size_t l) {
    return warp[l].state == State::at_warp_collective && warp[l].mask == mask;
  };
  bool all_here = true;
  for (size_t l = 0; l < lanes; ++l) all_here = all_here && (!(mask >> l & 1) || here(l));
  if (!all_here) {
    stop(State::at_warp_collective);
    return self.received;
  }
  std::array<uint64_t, 32> all;
  all.fill(~uint64_t{0});
  for (size_t l = 0; l < lanes; ++l)
    if (mask >> l & 1) all[l] = warp[l].published;
  act(all);
  for (size_t l = 0; l < lanes; ++l)
    if (mask >> l & 1) {
      warp[l].received = all;
      warp[l].state = State::ready;
    }
  m.woken = true;
  stop(State::ready);
  return self.received;
}

inline const std::array<uint64_t, 32>& meet(uint32_t mask, uint64_t value) {
  return meet(mask, value, [](const auto&) {});
}

template <class T>
T exchange(uint32_t mask, T value, unsigned source) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet(mask, bits)[source % 32];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// The order threads run in until the next block barrier: either warp after warp, which lets one
// warp run as far ahead of the others as the barriers allow, or all lanes mixed.
inline void shuffle(std::vector<unsigned>& order, std::mt19937_64& random) {
  std::shuffle(order.begin(), order.end(), random);
  if (random() & 1) return;
  std::array<uint64_t, 32> rank;
  for (uint64_t& r : rank) r = random();
  std::stable_sort(order.begin(), order.end(),
                   [&](unsigned a, unsigned b) { return rank[a / 32] < rank[b / 32]; });
}

[[noreturn]] inline void fail_deadlock() {
  size_t barrier = 0, collective = 0, returned = 0;
  for (const Fiber& f : machine->fibers) {
    barrier += f.state == State::at_block_barrier;
    collective += f.state == State::at_warp_collective;
    returned += f.state == State::returned;
  }
  fail("deadlock: " + std::to_string(barrier) + " threads wait at __syncthreads, " +
       std::to_string(collective) + " at a warp collective, " + std::to_string(returned) +
       " have returned");
}

inline void run_block(std::mt19937_64& random) {
  Machine& m = *machine;
  std::vector<unsigned> order(m.fibers.size());
  std::iota(order.begin(), order.end(), 0u);
  shuffle(order, random);
  for (size_t next = 0, live = order.size(); live > 0;) {
    if (next == order.size()) fail_deadlock();
    Fiber& fiber = m.fibers[order[next++]];
    if (fiber.state != State::ready) continue;
    m.woken = m.new_phase = false;
    resume(fiber);
    if (!m.failure.empty()) throw std::runtime_error(m.failure);
    live -= fiber.state == State::returned;
    if (m.new_phase) shuffle(order, random);
    if (m.woken) next = 0;
  }
}

// Apart, because getcontext may return twice and its caller's variables be lost.
__attribute__((noinline)) inline void set_up_stack(ucontext_t& context, char* stack) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;  // thread_main never returns
  makecontext(&context, thread_main, 0);
}

// Returns false, and runs no further, where a block has more than `limit` bytes of shared memory.
inline bool run_grid(dim3 grid, dim3 block, size_t shared_bytes, size_t limit) {
  Machine& m = *machine;
  static std::vector<std::unique_ptr<char[]>> stacks;  // kept: faster than giving them back
  while (stacks.size() < m.fibers.size()) stacks.emplace_back(new char[kStackBytes]);
  gridDim = grid;
  blockDim = block;
  std::mt19937_64 random(schedule_seed);
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), uint64_t{0});
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (const uint64_t b : blocks) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    StaticVariable::begin_block();
    if (shared_bytes > 0) std::memset(m.dynamic_shared.get(), 0xFF, shared_bytes);
    for (unsigned i = 0; i < m.fibers.size(); ++i) {
      Fiber& f = m.fibers[i];
      f.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
      f.state = State::ready;
      f.copies.clear();
      f.group = 0;
      set_up_stack(f.context, stacks[i].get());
    }
    run_block(random);
    if (shared_bytes > 0 && shared_bytes + StaticVariable::bytes_used() > limit) return false;
  }
  return true;
}

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

inline void __syncthreads() { simt::sync_block(); }
inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu) { simt::meet(mask, 0); }

template <class T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return simt::exchange(mask, value, static_cast<unsigned>(source));
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask) {
  return simt::exchange(mask, value, simt::lane() ^ static_cast<unsigned>(lane_mask));
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta) {
  const unsigned source = simt::lane() + delta;
  return simt::exchange(mask, value, source < 32 ? source : simt::lane());
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  const auto& votes = simt::meet(mask, predicate != 0);
  uint32_t bits = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) bits |= static_cast<uint32_t>(votes[l]) << l;
  return bits;
}

// A thread is only ever stopped in a collective, so plain code is atomic.
template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
