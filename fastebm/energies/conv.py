"""Energy of small images: a plain convolutional network."""

from __future__ import annotations

from torch import Tensor, nn

from fastebm.arguments import integer
from fastebm.energies.compose import Energy
from fastebm.energies.layers import (
    activation as make_activation,
)
from fastebm.energies.layers import check_event, check_image_shape, halvings, start


class ConvEnergy(Energy):
    """Convolutional energy for 8x8 to 32x32 images, (B, C, H, W) -> (B,).

    4x4 convolutions of stride 2 halve the image until its shorter side is 2 or 3 pixels (four at
    32x32, three at 28x28, two at 8x8), with ``width``, 2 ``width``, then 4 ``width`` channels; then
    a hidden linear layer of 4 ``width`` units. A kernel that is a multiple of the stride reaches
    all pixels equally often, so gradients in ``x`` have no checkerboard. There is no normalisation:
    the energy of a sample depends on that sample alone. 1x28x28 at the default width: 312 000
    parameters; a quarter at half the width, for a third of the time.

    Args:
        shape: (C, H, W), H and W at least 4.
        width: channels of the first layer.
        activation, spectral_norm: as in ``MLPEnergy``.

    Raises:
        ValueError: an argument is out of its range, or ``x`` is not (B, C, H, W).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int = 32,
        activation: str = "silu",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.shape = check_image_shape(shape, least=4)
        channels, height, length = self.shape
        width = integer("width", width, 1)
        layers = []
        for k in range(halvings(self.shape, until=4)):
            out = width * min(2**k, 4)
            layers += [nn.Conv2d(channels, out, 4, 2, 1), make_activation(activation)]
            channels, height, length = out, height // 2, length // 2
        self.net = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(channels * height * length, 4 * width),
            make_activation(activation),
            nn.Linear(4 * width, 1),
        )
        start(self.net, spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        check_event(x, self.shape)
        return self.net(x).squeeze(1)
