"""Samples of a trained model, by the recipe of the ICD paper for test time."""

from __future__ import annotations

from torch import Tensor

from fastebm.app import processes
from fastebm.app.config import MACHINES, ConfigError
from fastebm.app.training import Trainer
from fastebm.rng import ChainRNG


def generate(
    trainer: Trainer,
    n: int,
    steps: int,
    rounds: int = 0,
    steps_per_round: int = 20,
    augment: str | None = None,
    seed: int = 0,
) -> Tensor:
    """Chains from uniform noise: rounds of an augmentation and `steps_per_round` Langevin steps,
    then `steps` without.

    Args:
        augment: preset of `fastebm.Augmentation`; None: that of the training, "none": without.

    Returns:
        (n, *event), of the averaged weights where the run kept them.

    Source: Du et al. 2021, whose scripts take 10 rounds of 20 steps and then 80 to 200.
    """
    if rounds == 0:
        if augment not in (None, "none"):
            raise ConfigError(f"augment={augment!r} needs --rounds")
        return trainer.sample(n, steps, seed)
    if trainer.config.energy in MACHINES:
        raise ConfigError(f"rounds are of Langevin chains; {trainer.config.energy} has none")
    name = trainer.config.augmentation if augment is None else augment
    augmentation, sampler = (
        trainer.augmentation(None if name == "none" else name),
        trainer.eval_sampler,
    )

    def run(x: Tensor, first: int) -> Tensor:
        rng = ChainRNG(seed, sample_offset=first)
        x = sampler.sample(
            x,
            rounds * steps_per_round,
            seed=rng,
            augmentation=augmentation,
            augment_every=steps_per_round,
        )
        return sampler.sample(x, steps, seed=rng)

    return processes.in_parts(trainer.noise(n, seed), run)
