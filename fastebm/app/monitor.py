"""What a run says while it trains: a line now and then, or records as JSON."""

from __future__ import annotations

import json
import math
import time

from fastebm.app.config import MACHINES
from fastebm.app.training import Trainer
from fastebm.samplers.scale import data_scale

LARGE_GAP = 5.0  # in units of the temperature, where that is above 1
GROWTH = 1.5  # from one line to the next, twice in a row
LINES = 20  # of a run, unless it is logged less often
MODES = ("lines", "json", "quiet")


class Monitor:
    """Prints the state of a run at logging points.

    Args:
        trainer: what is watched.
        console: rich console to print to.
        mode: "lines", some 20 a run; "json", one object at every logging point; "quiet".

    While the gap E(data) - E(chains) is large and growing, a warning names the likely cause.
    """

    def __init__(self, trainer: Trainer, console, mode: str = "lines"):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self._trainer, self._console, self._mode = trainer, console, mode
        self._every = max(1, trainer.config.steps // LINES)
        self._next = trainer.iteration + min(self._every, 10)
        self._gaps: list[float] = []
        self._mark()

    def show(self, values: dict[str, float]) -> None:
        """Say something about the numbers of `Trainer.probe`, if it is time to."""
        step = self._trainer.iteration
        if self._mode == "quiet" or (
            self._mode == "lines" and step < self._next and step < self._trainer.config.steps
        ):
            return
        rate, share = self._rates()
        warning = self._warning(values)
        if self._mode == "json":
            timed = {**values, "it_per_s": rate, "sampler_share": share}
            clean = {k: v if math.isfinite(v) else None for k, v in timed.items()}
            told = {} if warning is None else {"warning": warning}
            text = json.dumps({"step": step, **clean, **told})
        else:
            text = line(step, values, rate, share if self._trainer.device.type == "cpu" else None)
        self._say(text)
        if warning is not None and self._mode == "lines":
            self._say(f"WARN {warning}", style="yellow")
        self._next = (step // self._every + 1) * self._every
        self._mark()

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def _warning(self, values: dict[str, float]) -> str | None:
        """What makes the gap grow, if it is large and has grown over the last three lines."""
        if "energy_gap" not in values:
            return None
        self._gaps = [*self._gaps[-2:], values["energy_gap"]]
        first, middle, last = map(abs, self._gaps) if len(self._gaps) == 3 else (0, 0, 0)
        large = last > LARGE_GAP * max(1.0, values["effective_temperature"])
        if not large or middle < GROWTH * first or last < GROWTH * middle:
            return None
        return f"gap {values['energy_gap']:+.3g} and growing: {self._cause()}"

    def _cause(self) -> str:
        trainer = self._trainer
        if trainer.config.energy in MACHINES:
            return (
                "the chains fall behind the energy; more k_steps, a lower lr or an energy penalty"
            )
        step, noise = map(float, trainer.sampler.coefficients(0))
        remedies = ["lower the step"]
        if trainer.config.loss != "icd" or trainer.config.kl_weight == 0:
            remedies.append("train with the KL term (loss icd)")
        if trainer.config.energy_reg_weight == 0:
            remedies.append("add an energy penalty")
        if not trainer.config.noise_first:
            try:
                v = data_scale(trainer.x)
            except ValueError:  # points that coincide have no scale
                v = math.inf
            if noise**2 > v:
                scale = f"noise of variance {noise**2:.3g} a step, the tightest data scale {v:.3g}"
                return f"step {step:.3g} adds {scale}; {' or '.join(remedies)}"
        remedies[0] = "more k_steps, a lower lr"
        return f"the chains fall behind the energy; {' or '.join(remedies)}"

    def _mark(self) -> None:
        sampler = self._trainer.sampler
        self._since = time.perf_counter(), self._trainer.iteration, sampler.seconds

    def _rates(self) -> tuple[float, float]:
        """Iterations a second, and the sampler's share of the time, since the last mark."""
        start, iteration, sampled = self._since
        seconds = max(time.perf_counter() - start, 1e-9)
        steps = self._trainer.iteration - iteration
        return steps / seconds, (self._trainer.sampler.seconds - sampled) / seconds


def line(step: int, values: dict[str, float], rate: float, share: float | None) -> str:
    """One line about a logging point.

    E of data and of chains with their spread over the batch, the gap between them, the energy part
    of the KL term and the entropy (before their weights), gradient norms in the parameters and at
    the chains, share of the chains' elements at the clamp, effective temperature, median number of
    times that a stored chain has been drawn, iterations a second, the sampler's share of the time
    (a CPU's only: a GPU works while the host goes on). Of a Helmholtz machine the bound on log p,
    and the two terms of wake-sleep.
    """

    def number(name: str) -> str:
        return f"{values[name]:.3g}"

    parts = [f"{step:6d}"]
    if "bound" in values:
        parts.append(f"bound {number('bound')}")
        parts.append(f"wake {number('loss_wake')} sleep {number('loss_sleep')}")
    else:
        parts += [
            f"E+ {number('energy_pos')}±{number('energy_pos_std')}",
            f"E- {number('energy_neg')}±{number('energy_neg_std')}",
            f"gap {values['energy_gap']:+.3g}",
        ]
    if "kl_energy" in values:
        parts.append(f"KL {number('kl_energy')} H {number('entropy')}")
    slope = f" |dE/dx| {number('grad_norm')}" if "grad_norm" in values else ""
    parts.append(f"|dE/dθ| {number('param_grad_norm')}{slope}")
    if "clamp_share" in values:
        parts.append(f"clamp {values['clamp_share']:.0%} T {number('effective_temperature')}")
    if "acceptance" in values:
        parts.append(f"step {number('step_size')} accepted {values['acceptance']:.0%}")
    if "jump_acceptance" in values:
        parts.append(f"jumps {values['jump_acceptance']:.0%}")
    if "kl_step" in values:
        parts.append(f"update {number('kl_step')} nats")
    if "buffer_age" in values:
        parts.append(f"age {values['buffer_age']:g}")
    parts.append(f"{rate:.3g} it/s")
    if share is not None:
        parts.append(f"sampler {share:.0%}")
    return "  ".join(parts)
