"""The built library whose operators the wrappers call, and what it was built for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastebm import _C as extension

op = torch.ops.fastebm  # tests put the emulated device's here
_libraries: list[torch.library.Library] = []  # what they register ends with them


def has_kernels(device: torch.device) -> bool:
    """Whether kernels were built for it."""
    return device.type == "cpu" or (device.type == "cuda" and bool(extension.cuda_archs))


def call(operator: torch._ops.OpOverload, *args):
    """The operator of these arguments, which may not have forward-mode tangents: it would drop
    them, and the derivative would be zero.

    Raises:
        RuntimeError: as the operator; or an argument has a tangent.
    """
    if forward_ad._current_level >= 0:
        _refuse_tangents(operator, args)
    return operator(*args)


def _refuse_tangents(operator: torch._ops.OpOverload, args: tuple) -> None:
    for argument, value in zip(operator._schema.arguments, args, strict=True):
        for tensor in _tensors(value):
            if forward_ad.unpack_dual(tensor).tangent is not None:
                raise RuntimeError(
                    f"{operator._schema.name.partition('::')[2]} has no forward-mode derivative,"
                    f" and {argument.name} has a tangent: detach it, or use reverse mode"
                )


def _tensors(value: object) -> Iterator[Tensor]:
    for part in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(part, Tensor):
            yield part


def check_overwritten(operator: str, **tensors: Tensor | None) -> None:
    """Raises a RuntimeError where a tensor that an operator changes in place requires a gradient,
    which it does not record: what comes after would differentiate the tensor as it was."""
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            if tensor is not None and tensor.requires_grad:
                raise RuntimeError(
                    f"{operator}: {name} requires a gradient, which is not recorded: change a"
                    " clone of its detach(), or call this under torch.no_grad()"
                )


def record_no_gradient(namespace: str, *operators: str) -> None:
    """Let calls of these operators pass autograd by: it would only say that they have no gradient,
    and takes a third of the time of a small call."""
    library = torch.library.Library(namespace, "IMPL")
    for operator in operators:
        library.impl(operator, torch.library.fallthrough_kernel, "Autograd")
    _libraries.append(library)


def check_rows(x: Tensor, values: dict[str, Tensor | None], samples: dict) -> None:
    """What fakes of operators on chains ``x`` check: ``values`` are (B,), ``samples`` like x, both
    of its dtype."""
    torch._check(x.dim() > 0, lambda: "x must have a batch dimension, (B, ...)")
    torch._check(
        x.dtype in (torch.float32, torch.float64),
        lambda: f"x must be float32 or float64, got {x.dtype}",
    )
    for tensors, shape in ((values, x.shape[:1]), (samples, x.shape)):
        for name, value in tensors.items():
            fits = value is None or (value.shape == shape and value.dtype == x.dtype)
            torch._check(fits, lambda n=name: f"{n} does not fit the shape or dtype of x")
