"""Sheets of images, and the images that RBMs and Helmholtz machines hold."""

from __future__ import annotations

import math

import numpy as np

from fastebm.app.data import need
from fastebm.app.plotting.figure import figure_of

MAX_FILTERS = 100


def mosaic(images, columns: int = 16, pad: int = 1) -> np.ndarray:
    """(N, C, H, W) in [0, 1] -> one picture (rows*(H+pad), columns*(W+pad), 3)."""
    images = np.clip(np.asarray(images, dtype=float), 0, 1)
    n, _, h, w = images.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    sheet = np.ones((rows * (h + pad) + pad, columns * (w + pad) + pad, 3))
    for i, picture in enumerate(images):
        r, c = divmod(i, columns)
        y, x = pad + r * (h + pad), pad + c * (w + pad)
        colour = picture if len(picture) == 3 else picture[:1].repeat(3, 0)
        sheet[y : y + h, x : x + w] = colour.transpose(1, 2, 0)
    return sheet


def image_panels(panels: dict, columns: int = 16, wide: int = 2):
    """Labelled sheets of pictures beside each other.

    Args:
        panels: title -> (N, C, H, W) pictures in [0, 1].
        columns: pictures a row of a sheet. wide: sheets a row of the figure.
    """
    wide = min(wide, len(panels))
    rows = math.ceil(len(panels) / wide)
    sheets = {title: mosaic(x, columns) for title, x in panels.items()}
    tall = max(s.shape[0] / s.shape[1] for s in sheets.values())
    width = min(4.4, 13 / wide)
    figure = figure_of(width * wide, (width * tall + 0.35) * rows)
    axes = figure.subplots(rows, wide, squeeze=False)
    for axis, (title, sheet) in zip(axes.flat, sheets.items(), strict=False):
        axis.imshow(sheet, interpolation="nearest")
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.axis("off")
    return figure


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
    figure = figure_of(6.5, 6.5 * height / width + 0.4)
    axis = figure.subplots()
    axis.imshow(picture, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.axis("off")
    return figure
