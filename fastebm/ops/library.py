"""The built library whose operators the wrappers call, and what it was built for."""

from __future__ import annotations

import torch

from fastebm import _C as extension

op = torch.ops.fastebm  # tests put the emulated device's here
_libraries: list[torch.library.Library] = []  # what they register ends with them


def has_kernels(device: torch.device) -> bool:
    """Whether kernels were built for it."""
    return device.type == "cpu" or (device.type == "cuda" and bool(extension.cuda_archs))


def record_no_gradient(namespace: str, *operators: str) -> None:
    """Let calls of these operators pass autograd by: it would only say that they have no gradient,
    and takes a third of the time of a small call."""
    library = torch.library.Library(namespace, "IMPL")
    for operator in operators:
        library.impl(operator, torch.library.fallthrough_kernel, "Autograd")
    _libraries.append(library)
