"""Energy of vectors: a multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fastebm.arguments import integer, sizes
from fastebm.energies.compose import Energy
from fastebm.energies.layers import activation as make_activation
from fastebm.energies.layers import start


class MLPEnergy(Energy):
    """Fully connected energy, (B, *event) -> (B,); an event is flattened to ``dim`` numbers.

    ``net`` is a plain ``nn.Sequential`` of linear layers and activations, (B, dim) -> (B, 1).
    Weights start with variance 2 / fan_in.

    Args:
        dim: elements of a sample.
        hidden: widths of the hidden layers.
        activation: "silu", "gelu", "softplus", "tanh" or "relu". Second derivatives of the smooth
            ones train ICD's last step; ReLU has none.
        spectral_norm: divide each weight by its norm. The gradient in ``x`` is then bounded, which
            steadies training, but the energy cannot become steep.

    Raises:
        ValueError: an argument is out of its range, or samples have not ``dim`` elements.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.dim = integer("dim", dim, 1)
        widths = [self.dim, *sizes("hidden", hidden)]
        layers = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), make_activation(activation)]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        start(self.net, spectral_norm)

    @property
    def flat_net(self) -> nn.Sequential:
        """What ``forward`` is made of, for ``fastebm.chains.plain_mlp``."""
        return self.net

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:].numel() != self.dim:
            raise ValueError(f"x must have samples of {self.dim} elements, got {tuple(x.shape)}")
        return self.net(x.reshape(x.shape[0], self.dim)).squeeze(1)
