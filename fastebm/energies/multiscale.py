"""One energy a resolution of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fastebm.arguments import sizes
from fastebm.energies.compose import Energy, GivenEnergy
from fastebm.energies.protocol import energy, sum_scales


class MultiScaleEnergy(Energy):
    """Energies of an image at several resolutions, (B, C, H, W) -> (B, S).

    Scale s sees the average over blocks of ``factors[s]`` x ``factors[s]`` pixels. Chains follow
    the sum of the scales, losses take their mean.

        MultiScaleEnergy([ConvEnergy((1, 28 // f, 28 // f)) for f in (1, 2, 4)])

    Args:
        nets: S energies, net s for (B, C, H / factors[s], W / factors[s]); the arguments of the
            call go to each.
        factors: integers >= 1, one a net.

    Raises:
        ValueError: the numbers of nets and factors differ, or H or W is not a multiple of a factor.

    Source: Du, Li, Tenenbaum, Mordatch, Improved contrastive divergence training of energy-based
    models, 2021.
    """

    def __init__(
        self, nets: Sequence[Callable[..., Tensor]], factors: Sequence[int] = (1, 2, 4)
    ) -> None:
        super().__init__()
        nets = list(nets)
        self.factors = sizes("factors", factors)
        if len(nets) != len(self.factors) or not nets:
            raise ValueError(
                f"nets must be one for each of factors={self.factors}, got {len(nets)}"
            )
        self.nets = nn.ModuleList(
            net if isinstance(net, nn.Module) else GivenEnergy(net) for net in nets
        )

    def forward(self, x: Tensor, **model_kwargs) -> Tensor:
        if x.dim() != 4 or any(n % f for f in self.factors for n in x.shape[2:]):
            raise ValueError(
                f"x must be (B, C, H, W) with H and W multiples of each of factors={self.factors},"
                f" got {tuple(x.shape)}"
            )
        scales = (
            energy(net, avg_pool2d(x, f) if f > 1 else x, **model_kwargs)
            for net, f in zip(self.nets, self.factors, strict=True)
        )
        return torch.stack([sum_scales(e) for e in scales], 1)
