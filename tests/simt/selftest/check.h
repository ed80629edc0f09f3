// What the tests of the emulator are written with.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "launch/device.h"

namespace {

constexpr int kSchedules = 20;

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

}  // namespace
