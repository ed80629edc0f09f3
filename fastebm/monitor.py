"""What a run says while it trains: a line now and then, or records as JSON."""

from __future__ import annotations

import json
import math
import time

from fastebm.training import Trainer

LINES = 20  # of a run, unless it is logged less often
MODES = ("lines", "json", "quiet")


class Monitor:
    """Prints the state of a run at logging points.

    Args:
        trainer: what is watched.
        console: rich console to print to.
        mode: "lines", some 20 a run; "json", one object at every logging point; "quiet".
    """

    def __init__(self, trainer: Trainer, console, mode: str = "lines"):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self._trainer, self._console, self._mode = trainer, console, mode
        self._every = max(1, trainer.config.steps // LINES)
        self._next = trainer.iteration + min(self._every, 10)
        self._mark()

    def show(self, values: dict[str, float]) -> None:
        """Say something about the numbers of `Trainer.probe`, if it is time to."""
        step = self._trainer.iteration
        if self._mode == "quiet" or (
            self._mode == "lines" and step < self._next and step < self._trainer.config.steps
        ):
            return
        rate, share = self._rates()
        if self._mode == "json":
            timed = {**values, "it_per_s": rate, "sampler_share": share}
            clean = {k: v if math.isfinite(v) else None for k, v in timed.items()}
            text = json.dumps({"step": step, **clean})
        else:
            text = line(step, values, rate, share if self._trainer.device.type == "cpu" else None)
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._next = (step // self._every + 1) * self._every
        self._mark()

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
    (a CPU's only: a GPU works while the host goes on).
    """

    def number(name: str) -> str:
        return f"{values[name]:.3g}"

    parts = [
        f"{step:6d}",
        f"E+ {number('energy_pos')}±{number('energy_pos_std')}",
        f"E- {number('energy_neg')}±{number('energy_neg_std')}",
        f"gap {values['energy_gap']:+.3g}",
    ]
    if "kl_energy" in values:
        parts.append(f"KL {number('kl_energy')} H {number('entropy')}")
    parts += [
        f"|dE/dθ| {number('param_grad_norm')} |dE/dx| {number('grad_norm')}",
        f"clamp {values['clamp_share']:.0%} T {number('effective_temperature')}",
    ]
    if "buffer_age" in values:
        parts.append(f"age {values['buffer_age']:g}")
    parts.append(f"{rate:.3g} it/s")
    if share is not None:
        parts.append(f"sampler {share:.0%}")
    return "  ".join(parts)
