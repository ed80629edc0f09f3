// The order that blocks and threads run in on the emulated device: random, out of a seed.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/fibers.h"

namespace simt {

inline uint64_t schedule_seed = 0;  // another seed, another order of blocks and threads

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

}  // namespace simt
