"""Persistent contrastive divergence: chains that wait in a buffer between the batches."""

from __future__ import annotations

import torch

from fastebm.losses.chain_checks import check_buffer, check_jumps
from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.replay.buffer import ReplayBuffer
from fastebm.samplers.gibbs import GibbsSampler
from fastebm.samplers.sampler import Sampler


class PersistentContrastiveDivergence(ContrastiveDivergence):
    """CD with chains that start at samples of ``buffer`` and go back into it.

    Args:
        buffer: a ReplayBuffer of the samples' shape; it becomes a submodule.
        jumps: of the ``k_steps``, jumps between the modes of the samples in the buffer: see
            ``LangevinDynamics.sample``. They need a sampler with ``adjusted=True``, and a float32
            buffer of mode ``"slot"``.
        n_chains: how many chains there are, >= 1; None: as many as the batch. Where the batch holds
            m times as many samples, m <= k_steps, the loss takes the chains at m times of the
            second half of their steps; else it takes all of them in the end, and ``x_neg`` is
            (n_chains, *event). Arguments of the model may then have no row for each sample.
        others, metrics: as in ``ContrastiveDivergence``.

    Source: Tieleman, Training restricted Boltzmann machines using approximations to the likelihood
    gradient, 2008; Du and Mordatch, Implicit generation and modeling with energy-based models,
    2019.
    """

    def __init__(
        self,
        model,
        sampler: Sampler | GibbsSampler,
        buffer: ReplayBuffer,
        k_steps: int = 10,
        energy_reg_weight: float = 0.0,
        on_nonfinite: str = "raise",
        jumps: int = 0,
        n_chains: int | None = None,
    ) -> None:
        super().__init__(model, sampler, k_steps, energy_reg_weight, on_nonfinite)
        check_buffer(buffer)
        if isinstance(sampler, GibbsSampler) and buffer.data.dtype == torch.uint8:
            raise ValueError(
                "buffer must be float32 or bfloat16 for a GibbsSampler: uint8 would dither the"
                " states of its units"
            )
        self.buffer, self.jumps, self.n_chains = buffer, jumps, n_chains
        check_jumps(sampler, buffer, jumps)

    def _times(self, n: int) -> int:
        times, rest = divmod(n, self.n_chains or n)
        return 1 if rest or times > self.k_steps else times
