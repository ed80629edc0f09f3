"""An empty figure, and the colours of all."""

from __future__ import annotations

from fastebm.app.data import need

INK, FAINT = "#222222", "#b8b8b8"
COLOURS = ("#c23b22", "#e39b3d", "#8a5fa8", "#1f6fb2", "#2a8c57", "#555555")


def figure_of(width: float, height: float):
    return need("matplotlib.figure").Figure((width, height), layout="constrained", dpi=130)


def without_ticks(axis) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
