// The threads of a block on the emulated device: fibers, each of which runs until it stops itself.
#pragma once
#include <ucontext.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/shared.h"
#include "simt/types.h"

#ifdef __SANITIZE_ADDRESS__  // has to be told when the stack changes
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

inline constexpr size_t kStackBytes = 128 * 1024;

enum class State { ready, at_block_barrier, at_warp_collective, returned };

struct Copy {  // an asynchronous one, not yet made
  void* to;
  const void* from;  // null: zeros
  unsigned bytes;
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

// Apart, because getcontext may return twice and its caller's variables be lost.
__attribute__((noinline)) inline void set_up_stack(ucontext_t& context, char* stack) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;  // thread_main never returns
  makecontext(&context, thread_main, 0);
}

}  // namespace simt
