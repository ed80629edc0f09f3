"""The batch rule: when the batch doubles and halves, and how its halves' gradients are compared."""

import json
import math

import pytest
import torch
from torch import nn

from fastebm.app.batch_rule import BatchRule, agreement
from fastebm.energies import MLPEnergy


def test_it_looks_at_every_tenth_step():
    assert [i for i in range(35) if BatchRule().due(i)] == [0, 10, 20, 30]


def test_it_doubles_below_a_half_up_to_the_largest():
    rule, seen = BatchRule(4), []
    for _ in range(9):
        rule.update(0.0)
        seen.append((rule.multiple, round(rule.average, 12)))
    # 1, .8, .64, .512, .4096; .7, .56, .448; .7, .56, .448, and at the largest on down
    expected = [(1, 0.8), (1, 0.64), (1, 0.512), (2, 0.7), (2, 0.56), (4, 0.7), (4, 0.56)]
    assert seen == [*expected, (4, 0.448), (4, 0.3584)]


def test_it_halves_above_nine_tenths_down_to_one():
    rule, seen = BatchRule(), []
    rule.load_state_dict({"multiple": 4, "average": 0.7})
    for _ in range(11):
        rule.update(1.0)
        seen.append((rule.multiple, round(rule.average, 12)))
    # .7, .76, .808, .8464, .87712, .901696
    steps = [0.76, 0.808, 0.8464, 0.87712]
    expected = [*((4, a) for a in steps), (2, 0.7), *((2, a) for a in steps), (1, 0.7), (1, 0.76)]
    assert seen == expected


def test_between_the_limits_nothing_changes():
    rule = BatchRule()
    rule.load_state_dict({"multiple": 2, "average": 0.7})
    for cosine, average in ((0.7, 0.7), (-0.25, 0.51), (math.nan, 0.51), (0.5, 0.508)):
        rule.update(cosine)
        assert rule.multiple == 2 and rule.average == pytest.approx(average, abs=1e-15)
    rule.load_state_dict({"multiple": 2, "average": 0.87})
    rule.update(0.97)  # .89
    assert rule.multiple == 2
    rule.load_state_dict({"multiple": 1, "average": 1})
    rule.update(1.0)
    assert (rule.multiple, rule.average) == (1, 1.0)


def test_its_state_goes_through_json_and_is_checked():
    rule, other = BatchRule(), BatchRule()
    for _ in range(5):
        rule.update(-0.3)
    other.load_state_dict(json.loads(json.dumps(rule.state_dict())))
    assert other.state_dict() == rule.state_dict() and rule.multiple > 1
    good = {"multiple": 2, "average": 0.6}
    small, before = BatchRule(4), BatchRule(4).state_dict()
    for change, match in (
        ({"multiple": 8}, r"multiple must be one of \[1, 2, 4\], got 8"),
        ({"multiple": 3}, "got 3"),
        ({"multiple": 2.0}, "got 2.0"),
        ({"average": math.nan}, "average must be a cosine, got nan"),
        ({"average": 1.5}, "average must be a cosine, got 1.5"),
        ({"average": "1"}, "average must be a cosine, got '1'"),
        ({"more": 1}, "state must hold multiple and average"),
    ):
        with pytest.raises(ValueError, match=match):
            small.load_state_dict({**good, **change})
        assert small.state_dict() == before
    for largest in (0, 3, 6, -8, 8.0, True):
        with pytest.raises(ValueError, match="largest must be a power of two >= 1"):
            BatchRule(largest)


class Plane(nn.Module):
    """E = w x, whose gradient is a difference of means; with dropout, which chains do not see."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.unused = nn.Parameter(torch.zeros(3))
        self.dropout = nn.Dropout()

    def forward(self, x):
        return self.dropout(x) @ self.w


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("group", [4, 5])
def test_the_halves_are_of_chains_not_of_times(weight, group):
    g = torch.Generator().manual_seed(0)
    x, x_neg = torch.randn((2, 3 * group, 2), generator=g, dtype=torch.float64)
    model = Plane()
    rows = {4: ([0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11])}
    rows[5] = ([0, 1, 5, 6, 10, 11], [2, 3, 4, 7, 8, 9, 12, 13, 14])

    def gradient(rows):
        """d E / d w = x, and d E^2 / d w = 2 E x."""
        w = model.w.detach()
        pos, neg = x[rows], x_neg[rows]
        square = sum((2 * (v @ w)[:, None] * v).mean(0) for v in (pos, neg))
        return pos.mean(0) - neg.mean(0) + weight * square

    found = agreement(model, x, x_neg, weight, group)
    assert found == pytest.approx(cosine(*map(gradient, rows[group])), abs=1e-12)


def test_it_leaves_gradients_and_modes_and_noise_alone():
    model, x, x_neg = Plane(), torch.randn(8, 2).double(), torch.randn(8, 2).double()
    model.w.grad = torch.ones(2, dtype=torch.float64)
    state = torch.get_rng_state()
    with torch.no_grad():
        agreement(model, x, x_neg, 0.1, 4)
    assert model.w.grad.tolist() == [1, 1] and model.unused.grad is None
    assert model.training and model.dropout.training and model.w.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_halves_agree_opposite_ones_disagree_and_none_is_zero():
    model, x_neg = MLPEnergy(2, (8,)), torch.zeros(8, 2)
    half = torch.randn(4, 2)
    assert agreement(model, torch.cat([half, half]), x_neg, 0.0, 8) == pytest.approx(1, abs=1e-6)
    x = torch.cat([half, torch.zeros(4, 2)])
    swapped = torch.cat([torch.zeros(4, 2), half])
    assert agreement(model, x, swapped, 0.0, 8) == pytest.approx(-1, abs=1e-6)
    assert agreement(model, x_neg, x_neg, 0.0, 8) == 0
    assert math.isnan(agreement(model, x / 0, x_neg, 0.0, 8))


def test_gradients_whose_squares_overflow_have_a_cosine():
    x, x_neg = torch.randn(2, 8, 2, dtype=torch.float64)
    expected = agreement(Plane(), x, x_neg, 0.0, 4)
    found = agreement(Plane().float(), 1e25 * x.float(), 1e25 * x_neg.float(), 0.0, 4)
    assert found == pytest.approx(expected, abs=1e-5)


def test_scales_count_by_their_mean():
    class Scales(Plane):
        def forward(self, x):
            e = super().forward(x)
            return torch.stack([0.5 * e, 1.5 * e + 1], 1)

    x, x_neg = torch.randn(2, 6, 2, dtype=torch.float64)
    model = Scales()

    def gradient(rows):
        loss = 0
        for v, sign in ((x[rows], 1), (x_neg[rows], -1)):
            e = torch.stack([0.5 * v @ model.w, 1.5 * v @ model.w + 1])
            loss = loss + sign * e.mean() + 0.2 * (e * e).mean()
        return torch.autograd.grad(loss, model.w)[0]

    expected = cosine(gradient([0, 1, 2]), gradient([3, 4, 5]))
    assert agreement(model, x, x_neg, 0.2, 6) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n, n_neg, group", [(8, 4, 4), (8, 8, 3), (8, 8, 1), (0, 0, 4), (4, 4, 8)])
def test_rows_that_are_no_blocks_are_refused(n, n_neg, group):
    with pytest.raises(ValueError, match=f"blocks of group={group} >= 2 rows, got {n} and {n_neg}"):
        agreement(Plane(), torch.zeros(n, 2).double(), torch.zeros(n_neg, 2).double(), 0.0, group)
