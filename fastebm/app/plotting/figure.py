"""An empty figure, and the colours of all."""

from __future__ import annotations

from fastebm.app.data import need
from fastebm.diagnostics.pictures import COLOURS, FAINT, INK

__all__ = ["COLOURS", "FAINT", "INK", "figure_of", "without_ticks"]


def figure_of(width: float, height: float):
    return need("matplotlib.figure").Figure((width, height), layout="constrained", dpi=130)


def without_ticks(axis) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
