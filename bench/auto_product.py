"""The automatic rule as fastebm has it: `fastebm train FILE --preset auto`."""

from __future__ import annotations

from auto_runs import Network, Run
from torch import Tensor

from fastebm.app.config import TrainConfig
from fastebm.app.data import Dataset
from fastebm.app.evaluation import total_energy
from fastebm.app.presets import PRESETS
from fastebm.app.training import Trainer
from fastebm.energies.standardized import Standardized

JUMP_EVERY = 5  # steps of a chain that samples, as in training


def build(data: Dataset, seed: int, steps: int, network: Network, **given: float) -> Run:
    """The preset on data of any scale; `given`: what is not the preset's, such as the step and the
    learning rate that it starts from."""
    settings = PRESETS["auto"] | {"k_steps": network.k_steps} | given
    model = Standardized(network.model(data.train.shape[1], seed), data.train)
    config = TrainConfig(**settings, steps=steps, seed=seed)
    trainer = Trainer(config, data, model, on_nonfinite="warn")

    def sample(n: int, n_steps: int, seed: int, jump_every: int | None) -> Tensor:
        jumps = n_steps // jump_every if jump_every else 0
        start = trainer.noise(n, seed)
        return trainer.eval_sampler.sample(start, n_steps, seed=seed, jumps=jumps)

    return Run(
        trainer,
        lambda x: total_energy(trainer.eval_model, x),
        {
            "jumps": lambda n, n_steps, seed: sample(n, n_steps, seed, JUMP_EVERY),
            "alone": lambda n, n_steps, seed: sample(n, n_steps, seed, None),
        },
    )
