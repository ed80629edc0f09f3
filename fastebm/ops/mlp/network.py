"""A small perceptron as the operators on its energy take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

MAX_HIDDEN, MAX_WIDTH, MAX_DIM_CUDA = 4, 512, 512  # as in csrc/mlp/mlp.h
# In the kernels' order.
ACTIVATIONS = ("silu", "tanh", "relu", "softplus", "gelu", "gelu_tanh", "leaky_relu", "elu")


class Network(NamedTuple):
    """The energy ``mlp(x) + sum_i base_precision_i (x_i - base_mean_i)^2 / 2``, where mlp takes
    ``h <- act(weights[l] h + biases[l])`` for each layer but the last, which gives a number.

    Weights are (outputs, inputs), biases (outputs,) or None; losses differentiate in them and in
    ``row_bias`` as autograd does, so that they may be a module's own or made of these.

    Attributes:
        beta, threshold: of softplus; ``beta`` is also the negative slope of leaky_relu and elu's
            alpha.
        base_precision, base_mean: (D,) float32, finite, precisions >= 0, or None for no base and
            for a mean of zeros. No gradient goes to them.
        row_bias: (B, width_1) float32, or None: each sample's own biases of the first layer, for
            ``biases[0]``. A condition c enters as ``W_c c + b``, W_c that of its own linear map, or
            the first layer's columns of inputs that are not of the sample.
    """

    weights: list[Tensor]
    biases: list[Tensor | None]
    activation: str
    beta: float = 1.0
    threshold: float = 20.0
    base_precision: Tensor | None = None
    base_mean: Tensor | None = None
    row_bias: Tensor | None = None

    @property
    def activation_index(self) -> int:
        """The activation as the kernels number it."""
        if self.activation not in ACTIVATIONS:
            raise RuntimeError(f"activation must be one of {ACTIVATIONS}, got {self.activation!r}")
        return ACTIVATIONS.index(self.activation)

    @property
    def arguments(self) -> tuple:
        """All of it, as operators take it."""
        weights, biases, _, beta, threshold, *rest = self
        return (weights, biases, self.activation_index, beta, threshold, *rest)

    @property
    def parameters(self) -> list[Tensor | None]:
        """Weight and bias of each layer in turn; None for a bias that ``row_bias`` stands for."""
        own = [p for layer in zip(self.weights, self.biases, strict=True) for p in layer]
        return own if self.row_bias is None else [own[0], None, *own[2:]]

    def is_same(self, other: Network) -> bool:
        """Whether it has the same values; waits for a device."""

        def same(a: object, b: object) -> bool:
            tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
            return a is b or (a.shape == b.shape and bool((a == b).all()) if tensors else a == b)

        (ours, theirs) = ((*n.weights, *n.biases, *n[2:]) for n in (self, other))
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
