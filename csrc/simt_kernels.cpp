// The text of every CUDA source once more, for the C++ compiler and simt.h (tests only).
// Built with -ffp-contract=off, like the CPU kernels: bits must not depend on contraction.
#include "langevin_cuda.cu"
