"""The functions of torch that traced energies are read by, under one name each."""

from __future__ import annotations

import operator
from numbers import Real

import torch
from torch import Tensor, fx, nn

Activation = tuple[str, float, float]  # name, beta, threshold, as of a Network


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation | None:
    return ("softplus", beta, threshold) if _are(beta, threshold) and beta > 0 else None


def _gelu(approximate: str = "none") -> Activation | None:
    name = {"none": "gelu", "tanh": "gelu_tanh"}.get(approximate)
    return name and (name, 1.0, 20.0)


def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> Activation | None:
    return ("leaky_relu", negative_slope, 20.0) if _are(negative_slope) else None


def _elu(
    alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0, inplace: bool = False
) -> Activation | None:
    ones = scale in (True, False, 1) and input_scale == 1  # functional.elu has inplace there
    return ("elu", alpha, 20.0) if _are(alpha) and ones else None


def _are(*values: object) -> bool:
    return all(isinstance(v, Real) for v in values)


ACTIVATIONS = {
    "silu": lambda inplace=False: ("silu", 1.0, 20.0),
    "tanh": lambda: ("tanh", 1.0, 20.0),
    "relu": lambda inplace=False: ("relu", 1.0, 20.0),
    "softplus": _softplus,
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
}
# Other names of an operation. Those that give the same numbers in another shape are one.
_ALIASES = {
    **dict.fromkeys(("truediv", "true_divide", "divide"), "div"),
    **{"multiply": "mul", "subtract": "sub", "negative": "neg", "mm": "matmul", "mv": "matmul"},
    **dict.fromkeys(("concat", "concatenate"), "cat"),
    **dict.fromkeys(("view", "flatten", "squeeze", "unsqueeze", "ravel", "view_as"), "reshape"),
    **dict.fromkeys(("contiguous", "alias"), "clone"),
    **{"float": "to", "type": "to"},
}
_IN_PLACE = ("add", "sub", "mul", "div", "truediv", "relu", "leaky_relu", "elu", "silu", "tanh")
_IN_PLACE += ("sigmoid", "neg")
# What a condition or a weight may go through: nothing random, and nothing that is changed.
_PURE = """
    _weight_norm _weight_norm_interface abs add addmm all amax amin arange argmax bmm
    broadcast_tensors broadcast_to cat chunk clamp clone cos cumsum detach diag diagonal div dot
    dropout einsum elu embedding eq erf exp expand expand_as expm1 eye full full_like ge gelu
    getitem group_norm gt index_select item layer_norm le leaky_relu linear log log1p log_softmax lt
    matmul max maximum mean min minimum mul ne neg new_full new_ones new_zeros norm normalize
    one_hot ones ones_like outer permute pow prod reciprocal relu repeat repeat_interleave reshape
    rms_norm rsqrt rsub select sigmoid sign silu sin size softmax softplus split sqrt square stack
    std sub sum t tan tanh tensor_split tile to transpose tril triu unbind unfold var vdot
    vector_norm where zeros zeros_like
"""
NAMES = {*_PURE.split(), *ACTIVATIONS, *_ALIASES}
_SPACES = (torch, nn.functional, torch._C._nn, operator, torch.linalg)
_FUNCTIONS = {
    getattr(space, name): _ALIASES.get(name, name)
    for space in _SPACES
    for name in sorted(NAMES)
    if callable(getattr(space, name, None))
}
IN_PLACE = "in place "
_FUNCTIONS |= {
    getattr(operator, f"i{name}"): f"{IN_PLACE}{_ALIASES.get(name, name)}"
    for name in ("add", "sub", "mul", "truediv")
}
_METHODS = {name: _ALIASES.get(name, name) for name in NAMES if hasattr(Tensor, name)}
_METHODS |= {f"{name}_": f"{IN_PLACE}{_ALIASES.get(name, name)}" for name in _IN_PLACE}
_FUNCTIONS |= {
    getattr(space, f"{name}_"): f"{IN_PLACE}{name}"
    for space in (torch, nn.functional)
    for name in _IN_PLACE
    if callable(getattr(space, f"{name}_", None))
}


_INPLACE_AT = {"relu": 1, "silu": 1, "leaky_relu": 2, "elu": 2, "dropout": 3}


def op_of(node: fx.Node) -> str | None:
    """The operation of a node, ``IN_PLACE`` before it where it is; None: it is not known."""
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    return _METHODS.get(node.target) if node.op == "call_method" else None


def is_inplace(node: fx.Node) -> bool:
    """Whether it changes its first argument."""
    name = op_of(node) or ""
    at = _INPLACE_AT.get(name)
    given = (*node.args[at : at + 1], node.kwargs.get("inplace")) if at else ()
    writes = name.startswith(IN_PLACE) or node.kwargs.get("out") is not None
    if name == "embedding":  # whose max_norm rescales the weight
        writes = any(v is not None for v in (*node.args[3:4], node.kwargs.get("max_norm")))
    return writes or any(value is True for value in given)


def is_random(node: fx.Node) -> bool:
    """Whether a dropout is on."""
    training = (*node.args[2:3], node.kwargs.get("training", len(node.args) < 3))
    return op_of(node) == "dropout" and any(value is not False for value in training)
