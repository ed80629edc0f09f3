"""A small perceptron as the operators on its energy take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

MAX_HIDDEN, MAX_WIDTH, MAX_DIM_CUDA = 4, 256, 256  # as in csrc/mlp/mlp.h
ACTIVATIONS = ("silu", "tanh", "relu", "softplus", "gelu", "gelu_tanh")  # in the kernels' order


class Network(NamedTuple):
    """``h <- act(weights[l] h + biases[l])`` for each layer but the last, which gives the energy.

    Weights are (outputs, inputs), biases (outputs,) or None, a module's own; ``beta`` and
    ``threshold`` are those of softplus.
    """

    weights: list[Tensor]
    biases: list[Tensor | None]
    activation: str
    beta: float = 1.0
    threshold: float = 20.0

    @property
    def activation_index(self) -> int:
        """The activation as the kernels number it."""
        if self.activation not in ACTIVATIONS:
            raise RuntimeError(f"activation must be one of {ACTIVATIONS}, got {self.activation!r}")
        return ACTIVATIONS.index(self.activation)

    @property
    def parameters(self) -> list[Tensor | None]:
        """Weight and bias of each layer in turn."""
        return [p for layer in zip(self.weights, self.biases, strict=True) for p in layer]
