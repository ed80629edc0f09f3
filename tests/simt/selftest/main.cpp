// Proves the emulator that the emulated-CUDA tests stand on: right kernels are right under every
// schedule, and each kind of wrong kernel is found. Prints "ok NAME" lines; test_simt_shim.py
// compiles and runs it.
#include <vector>

#include "shared_memory.h"
#include "sums.h"
#include "tensor.h"
#include "threads.h"

int main(int argc, char**) {
  if (argc > 1) {  // any argument: the overrun that AddressSanitizer must stop
    std::vector<float> out(32);
    return fastebm::launch(overrun_kernel, 1, 32, 32 * sizeof(float), nullptr, out.data());
  }
  test_row_sum();
  test_block_sum<32>();
  test_block_sum<256>();
  test_block_sum<1024>();
  test_group_sum();
  test_errors();
  test_shared_limits();
  test_warp();
  test_copies();
  test_mma();
  test_mma_bytes();
  test_matrices();
  test_atomics();
  test_shared_memory();
  return failures != 0;
}
