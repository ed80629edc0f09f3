// Where threads of the emulated device meet: the barrier of a block, and collectives of a warp.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt/fibers.h"

namespace simt {

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

}  // namespace simt
