"""Traces and ranks of chains: what is drawn is what was given."""

import math
import re

import matplotlib
import numpy as np
import pytest
import torch

from fastebm.diagnostics import rank_plot, summary, trace_plot
from fastebm.diagnostics.inputs import column_of, position


def titles(figure):
    return [t for axis in figure.axes if (t := axis.get_title(loc="left"))]


def test_traces_are_the_chains():
    x = torch.randn(10, 50, 3)
    x[1, 20:30, 2] = math.nan
    figure = trace_plot(x, [2, (0,)], names=["a", "b", "$c"], n_chains=3)
    assert titles(figure) == ["$c", "a"] and len(figure.axes) == 4
    for axis, column in zip(figure.axes[::2], (2, 0), strict=True):
        drawn = np.array([line.get_ydata() for line in axis.lines])
        np.testing.assert_array_equal(drawn, x[:3, :, column])
        (band,) = axis.collections
        (outline,) = band.get_paths()
        at_25 = outline.vertices[outline.vertices[:, 0] == 25, 1]  # of those that are finite
        expected = np.nanpercentile(x[:, 25, column].double(), (5, 95))
        assert (at_25.min(), at_25.max()) == pytest.approx(tuple(expected))
    assert "3 of 10 chains" in figure.axes[2].get_xlabel()


def test_ranks_are_counted_and_levels_are_those_of_equal_chains():
    x = torch.randn(5, 200, 2)
    x[0, :, 1] += 100
    figure = rank_plot(x, n_chains=2)
    for column, axis in enumerate(figure.axes):
        levels = [line.get_ydata()[0] for line in axis.lines]  # of the rows 1 and 0
        bars = [p for p in axis.patches if p.get_y() in (0, 1) and p.get_width() < 0.1]
        assert len(bars) == 40 and len(levels) == 2
        unit = levels[0] - 1
        heights = np.array([bar.get_height() for bar in bars]).reshape(2, 20)
        counts = heights / unit * 10  # ten of 200 draws in each of 20 bins
        ranks = x[..., column].flatten().argsort().argsort().view(5, 200)
        for chain in range(2):
            expected = torch.bincount(ranks[chain] // 50, minlength=20)
            np.testing.assert_allclose(counts[chain], expected, atol=1e-9)
        if column == 1:
            np.testing.assert_allclose(counts[0], [0] * 16 + [50] * 4, atol=1e-9)
        assert heights.max() <= 0.9 + 1e-9 and bars[0].get_y() == 1  # chain 0 on top


def test_elements_are_those_of_largest_spread_or_the_worst():
    x = torch.randn(4, 30, 1, 4, 4)
    x[..., 2, 1] *= 9
    x[..., 0, 3] *= 8
    x[:, :, 0, 3, 3] *= 7
    x[0, 0, 0, 1, 1] = math.inf
    expected = ["x[0, 0, 3]", "x[0, 1, 1]", "x[0, 2, 1]", "x[0, 3, 3]"]
    assert titles(trace_plot(x)) == titles(rank_plot(x)) == expected
    x[0, :, 0, 3, 0] += 5
    assert titles(rank_plot(x, summary(x).worst(2))) == ["x[0, 1, 1]", "x[0, 3, 0]"]
    assert titles(trace_plot(x[:, :, 0, 0, 0])) == ["x"] and titles(
        trace_plot(x[..., 0], [(0, -1)])
    )
    assert [column_of(position(i, (2, 3, 4)), (2, 3, 4)) for i in range(24)] == [*range(24)]
    assert position(23, (2, 3, 4)) == (1, 2, 3)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_chains_with_nothing_to_see_are_drawn(tmp_path, value):
    for plot in (trace_plot, rank_plot):
        figure = plot(torch.full((3, 2, 5), value).bfloat16())
        figure.savefig(tmp_path / "x.png")
        assert len(titles(figure)) == 4
    trace_plot(torch.randn(1, 5)).savefig(tmp_path / "x.png")
    assert matplotlib.rcParams["backend"].lower() == "agg"


def test_bad_arguments():
    x = torch.randn(3, 8, 2, 2)
    for elements in ([4], [(0, 2)], [(0,)], [(0, 0, 0)], ["x"], [(0.0, 1)]):
        message = f"elements must be indices of an event of shape (2, 2), got {elements[0]!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            trace_plot(x, elements)
    with pytest.raises(ValueError, match="elements must be one index at least"):
        rank_plot(x, [])
    with pytest.raises(ValueError, match="at least 2 chains for ranks, got 1"):
        rank_plot(x[:1])
    for plot in (trace_plot, rank_plot):
        with pytest.raises(ValueError, match="n_chains must be an integer >= 1, got 0"):
            plot(x, n_chains=0)
        with pytest.raises(ValueError, match="n_kept >= 2"):
            plot(x[:, :1])
        with pytest.raises(ValueError, match="names must be 4"):
            plot(x, names=["a"])
