// What launch/ops.h needs to know of the CUDA runtime.
#include "launch/device.h"

namespace fastebm {

const char* cuda_error_text(int error) { return error_text(error); }

}  // namespace fastebm
