// The text of every CUDA source once more, for the C++ compiler and simt/simt.h (tests only).
// Built with -ffp-contract=off, like the CPU kernels: bits must not depend on contraction.
#include "launch/device.h"

#define launch(...) (simt::note_launch(#__VA_ARGS__), launch(__VA_ARGS__))
// clang-format off
#include "random/choice/cuda.cu"
#include "launch/device_cuda.cu"
#include "gibbs/cuda.cu"
#include "langevin/cuda.cu"
#include "mlp/chain/cuda.cu"
#include "neighbor/cuda.cu"
#include "neighbor/log_distance_cuda.cu"
#include "replay/cuda.cu"
// clang-format on
