"""Settings of torch that a CUDA graph bakes in, and modes that it cannot be taken in."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fastebm.chains.waits import NoWaits, Reads


def settings_key(device: torch.device) -> Hashable:
    """The settings of torch that choose kernels."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled(device.type),
        torch.get_autocast_dtype(device.type),
        cuda.matmul.fp32_precision,
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        cuda.matmul.allow_fp16_accumulation,
        cuda.preferred_blas_library(),
        cuda.preferred_linalg_library(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cudnn.conv.fp32_precision,
        cudnn.rnn.fp32_precision,
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


def has_modes() -> bool:
    """Whether calls of torch go through modes other than that of a default device and those that
    only watch a warm-up or a capture, where a chain must be what it is outside."""
    if not torch._C._len_torch_function_stack() and not torch._C._len_torch_dispatch_stack():
        return False
    modes = _get_current_function_mode_stack() + _get_current_dispatch_mode_stack()
    return not all(isinstance(mode, (DeviceContext, NoWaits, Reads)) for mode in modes)
