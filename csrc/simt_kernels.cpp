// The text of every CUDA source once more, for the C++ compiler and simt.h (tests only).
// Built with -ffp-contract=off, like the CPU kernels: bits must not depend on contraction.
#include "device.h"

#define launch(...) (simt::note_launch(#__VA_ARGS__), launch(__VA_ARGS__))
// clang-format off
#include "choice_cuda.cu"
#include "device_cuda.cu"
#include "gibbs_cuda.cu"
#include "langevin_cuda.cu"
#include "mlp_chain_cuda.cu"
#include "neighbor_cuda.cu"
#include "neighbor_log_distance_cuda.cu"
#include "replay_cuda.cu"
// clang-format on
