// One lane, for CUDA: the operations of simd/avx2.h that kernels share formulas in with the CPU.
// Included inside a namespace of its own, where FASTEBM_TARGET says which functions they are.

using Floats = float;

#define FASTEBM_OP FASTEBM_TARGET
FASTEBM_OP Floats set(float v) { return v; }
FASTEBM_OP Floats add(Floats a, Floats b) { return a + b; }
FASTEBM_OP Floats sub(Floats a, Floats b) { return a - b; }
FASTEBM_OP Floats mul(Floats a, Floats b) { return a * b; }  // not contracted: CMakeLists.txt
FASTEBM_OP Floats div(Floats a, Floats b) { return a / b; }
// min and max return their second operand where one is NaN.
FASTEBM_OP Floats min(Floats a, Floats b) { return a < b ? a : b; }
FASTEBM_OP Floats max(Floats a, Floats b) { return a > b ? a : b; }
FASTEBM_OP Floats pick_less(Floats a, Floats b, Floats x, Floats y) { return a < b ? x : y; }
#undef FASTEBM_OP
