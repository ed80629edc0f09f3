"""Figures of RBMs and Helmholtz machines, as those of `plotting`: arrays in, a Figure out."""

from __future__ import annotations

import numpy as np

from fastebm.app.data import need
from fastebm.app.plotting import mosaic

MAX_FILTERS = 100


def filters(weights, shape: tuple[int, int, int]):
    """What each hidden unit looks for: its weights as a picture, red above 0 and blue below.

    Args:
        weights: (H, V); the 100 rows of largest norm are shown, the largest first, in one scale.
        shape: (C, H, W) of a sample; the mean over its channels is shown.
    """
    weights = np.asarray(weights, dtype=float)
    order = np.argsort(-np.linalg.norm(weights, axis=1))[:MAX_FILTERS]
    pictures = weights[order].reshape(-1, *shape).mean(1)
    size = np.quantile(np.abs(pictures), 0.995) or 1.0
    colours = need("matplotlib").colormaps["RdBu_r"](pictures / (2 * size) + 0.5)[..., :3]
    title = f"weights of {len(order)} of {len(weights)} hidden units, largest first"
    return _sheet(mosaic(colours.transpose(0, 3, 1, 2), 10), f"{title}; full colour: {size:.2g}")


def chains(path, steps: list[int], box: tuple[float, float]):
    """Chains over time: one a row.

    Args:
        path: (B, n, C, H, W), each chain at n times. steps: the n times.
        box: (lo, hi), from black to white.
    """
    path = (np.asarray(path, dtype=float) - box[0]) / (box[1] - box[0])
    title = f"chains after {', '.join(map(str, steps))} Gibbs steps from noise"
    return _sheet(mosaic(path.reshape(-1, *path.shape[2:]), len(steps)), title)


def _sheet(picture: np.ndarray, title: str):
    height, width, _ = picture.shape
    figure = need("matplotlib.figure").Figure(
        (6.5, 6.5 * height / width + 0.4), layout="constrained", dpi=130
    )
    axis = figure.subplots()
    axis.imshow(picture, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.axis("off")
    return figure
