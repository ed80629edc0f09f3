"""The trust region: the divergence of a step, steps cut and undone, and the learning rates."""

import copy
import math
import threading

import pytest
import torch
from torch import nn

from fastebm import NonFiniteError, TrustRegion, kl_step
from fastebm.energies import MLPEnergy

N = 100_000


class Gaussian(nn.Module):
    """E = x^2 / (2 s^2), the logarithm of s a parameter."""

    def __init__(self, s=1.5):
        super().__init__()
        self.log_s = nn.Parameter(torch.tensor(math.log(s), dtype=torch.float64))
        self.modes = []

    def forward(self, x):
        self.modes.append((self.training, self.log_s.requires_grad, torch.is_grad_enabled()))
        return (x[:, 0] / self.log_s.exp()).square() / 2

    def exact(self, n=N):
        g = torch.Generator().manual_seed(0)
        x = torch.randn((n, 1), generator=g, dtype=torch.float64)
        return self.log_s.exp().detach() * x


def stepped(model, way, lr=1.0, **options):
    """A trust region of plain gradient descent, whose next step is ``lr * way``."""
    model.log_s.grad = torch.tensor(-way, dtype=torch.float64)
    return TrustRegion(torch.optim.SGD([model.log_s], lr=lr), **options)


def rate(trust):
    (group,) = trust.optimizer.param_groups
    return float(group["lr"])


@pytest.mark.parametrize("way", [0.01, -0.02, 0.05])
def test_the_divergence_is_that_of_two_gaussians(way):
    model = Gaussian()
    trust = stepped(model, way)
    found = trust.step(model, model.exact()).item()
    # log(s'/s) = way: KL = way + (exp(-2 way) - 1) / 2 = way^2 - 2/3 way^3 + ..., and Var / 2 is
    # ((exp(-2 way) - 1) / 2)^2 = way^2 - 2 way^3 + ...: they differ by less than 2 |way|^3 here.
    # The variance of chi^2_1 over n samples errs by sqrt(14 / n), relative: 5 of these.
    exact = way + math.expm1(-2 * way) / 2
    assert abs(found - exact) < 2 * abs(way) ** 3 + 5 * math.sqrt(14 / N) * exact
    assert found == pytest.approx((math.expm1(-2 * way) / 2) ** 2, rel=5 * math.sqrt(14 / N))
    assert model.log_s.item() == math.log(1.5) + way


def test_energies_are_those_of_chains(alone):
    model = Gaussian().train()
    stepped(model, 0.1).step(model, model.exact(5))
    assert model.modes == [(False, False, False)] * 2
    assert model.training and model.log_s.requires_grad


def test_scales_are_summed_and_levels_do_not_count():
    before, after = torch.randn(50, 3), torch.randn(50, 3)
    expected = (after - before).double().sum(1).var() / 2
    torch.testing.assert_close(kl_step(before, after), expected, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(kl_step(before, after + 8), expected, rtol=1e-5, atol=0.0)
    assert kl_step(before[:, :1], before[:, :1] + 8) < 1e-12
    assert kl_step(before, after).dtype == torch.float64 and kl_step(before, after).dim() == 0


@pytest.mark.parametrize("way", [-1.5, -3.0])
@pytest.mark.parametrize("backtrack", [1.0, 4.0])
def test_a_step_too_far_is_cut(way, backtrack):
    model = Gaussian()
    trust, old = stepped(model, way, nats=0.1, backtrack=backtrack), model.log_s.item()
    kl = trust.step(model, model.exact(1000)).item()
    assert kl > backtrack * 0.1 and trust.n_backtracks == 1
    share = math.sqrt(0.1 / kl)
    assert model.log_s.item() == pytest.approx(old + share * way, rel=1e-14)
    assert rate(trust) == pytest.approx(math.exp(max(-2, math.log(0.1 / kl) / 2)), rel=1e-14)


def test_of_a_change_that_is_linear_exactly_the_aim_is_left():
    class Linear(nn.Linear):
        def forward(self, x):
            return super().forward(x)[:, 0]

    model = Linear(3, 1).double()
    x = torch.randn(200, 3, dtype=torch.float64)
    (model(x).sum()).backward()
    before = model(x).detach()
    trust = TrustRegion(torch.optim.SGD(model.parameters(), lr=10.0), nats=0.3)
    assert trust.step(model, x) > 4 * 0.3
    torch.testing.assert_close(kl_step(before, model(x).detach()).item(), 0.3, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "kl_over_nats, factor, backtrack",
    [
        (1e-9, math.exp(0.2), 4),
        (math.exp(-2) / 2, math.exp(0.2), 4),
        (0.5, math.exp(0.1 * math.log(2)), 4),
        (1.0, 1.0, 4),
        (3.9, math.exp(-0.1 * math.log(3.9)), 4),
        (50.0, math.exp(-0.2), 60),
        (1.6, 1 / math.sqrt(1.6), 1.5),
        (4.1, 1 / math.sqrt(4.1), 4),
        (50.0, 1 / math.sqrt(50), 4),
        (math.exp(5), math.exp(-2), 4),
    ],
)
def test_rates_follow_the_divergence(kl_over_nats, factor, backtrack):
    model = Gaussian()
    x, way = model.exact(100), -0.3
    twin = copy.deepcopy(model)
    kl = stepped(twin, way, nats=1e9).step(twin, x).item()
    trust = stepped(model, way, nats=kl / kl_over_nats, backtrack=backtrack)
    trust.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 7.0})
    assert trust.step(model, x).item() == kl
    one, two = (group["lr"] for group in trust.optimizer.param_groups)
    assert one == pytest.approx(factor, rel=1e-12) and two == pytest.approx(7 * factor, rel=1e-12)
    assert trust.n_backtracks == (kl_over_nats > backtrack)


def test_nats_may_be_set_and_a_step_that_changes_nothing_lets_rates_grow():
    model = Gaussian()
    trust = stepped(model, 0.0)
    assert trust.step(model, model.exact(10)) == 0
    assert rate(trust) == math.exp(0.2)
    model.log_s.grad.fill_(-0.3)
    trust.nats = 1e-4
    assert trust.step(model, model.exact(10)) > 4e-4 and trust.n_backtracks == 1


def test_no_rate_is_above_its_bound_before_or_after_a_step():
    model = Gaussian()
    trust, old = stepped(model, 0.01, lr=5.0, max_lr=2.0), model.log_s.item()
    trust.step(model, model.exact(10))
    assert model.log_s.item() == old + 2.0 * 0.01 and rate(trust) == 2.0
    model, held = Gaussian(), torch.tensor(5.0)
    trust = stepped(model, 0.01, lr=held, max_lr=2.0)
    trust.step(model, model.exact(10))
    assert rate(trust) == 2.0 and trust.optimizer.param_groups[0]["lr"] is held == 2.0
    trust.max_lr = None
    trust.step(model, model.exact(10))
    assert held == pytest.approx(2 * math.exp(0.2), rel=1e-6)


def test_a_rate_without_a_bound_stays_a_number_that_comes_down_again():
    model = Gaussian()
    trust = stepped(model, 0.0, lr=1e38)
    for _ in range(9):
        trust.step(model, model.exact(5))
    top = rate(trust)
    assert top == torch.finfo(torch.float32).max
    model.log_s.grad.fill_(1.0)
    trust.step(model, model.exact(5))
    assert rate(trust) == pytest.approx(top * math.exp(-2))


def trained(seed=0):
    torch.manual_seed(seed)
    model = MLPEnergy(2, (8, 8))
    return model, TrustRegion(torch.optim.Adam(model.parameters(), lr=0.01))


def one_step(model, trust, spoil=None):
    x, x_neg = torch.randn(16, 2), torch.randn(16, 2)
    trust.optimizer.zero_grad()
    (model(x).mean() - model(x_neg).mean()).backward()
    if spoil is not None:
        model.net[0].weight.grad[0, 0] = spoil
    return trust.step(model, x_neg)


@pytest.mark.parametrize("spoil", [math.nan, math.inf])
@pytest.mark.parametrize("n_good", [0, 2])
def test_a_step_that_is_not_finite_is_undone_and_forgotten(spoil, n_good):
    model, trust = trained()
    for _ in range(n_good):
        one_step(model, trust)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(trust.optimizer.state_dict())
    lr = rate(trust)
    assert not one_step(model, trust, spoil).isfinite()
    assert trust.n_backtracks == 1 and rate(trust) == pytest.approx(lr * math.exp(-2))
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    after = trust.optimizer.state_dict()["state"]
    assert len(after) == len(state["state"])
    for i, values in state["state"].items():
        assert all(torch.equal(v, after[i][k]) for k, v in values.items())
    assert one_step(model, trust) > 0 and trust.n_backtracks == 1  # its moments are no NaN


def test_other_steps_are_the_optimisers_own():
    model, trust = trained()
    twin, own = trained()
    for k in range(3):
        for group in own.optimizer.param_groups:
            group["lr"] = rate(trust)
        torch.manual_seed(k)
        one_step(model, trust)
        torch.manual_seed(k)
        own.step = lambda model, x_neg: own.optimizer.step()
        one_step(twin, own)
    assert trust.n_backtracks == 0
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_no_cast_of_a_weight_outlives_its_value():
    model, trust = trained()
    done = threading.Event()
    other = threading.Thread(target=done.wait)  # beside which parameters are not frozen
    other.start()
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert one_step(model, trust) > 0
    finally:
        done.set()
        other.join()


def test_energies_that_are_not_finite_before_the_step_stop_it():
    model = Gaussian()
    trust, x = stepped(model, 0.1), model.exact(10)
    x[3], x[7] = math.nan, math.inf
    with pytest.raises(NonFiniteError, match="2 of 10 energies of x_neg before the step"):
        trust.step(model, x)
    assert model.log_s.item() == math.log(1.5) and rate(trust) == 1 and trust.n_backtracks == 0


def test_bad_input_is_refused_before_anything_is_done():
    model, other = Gaussian(), Gaussian()
    trust = stepped(model, 0.1)
    for args, error, match in (
        ((model, model.exact(1)), ValueError, "x_neg must hold at least 2 chains, got 1"),
        ((model, model.exact(4).long()), TypeError, "x_neg must be .* got torch.int64 .4, 1."),
        ((model, [1.0, 2.0]), TypeError, "x_neg must be a floating-point tensor .* got list"),
        ((3, model.exact(4)), TypeError, "model must be callable, got int"),
        ((other, model.exact(4)), ValueError, "model must be what optimizer trains"),
        ((lambda x: x[:, :0], model.exact(4)), ValueError, "model must return energies of shape"),
    ):
        with pytest.raises(error, match=match):
            trust.step(*args)
    assert model.log_s.item() == math.log(1.5) and rate(trust) == 1 and trust.n_backtracks == 0
    trust.step(lambda x, scale: scale * model(x), model.exact(4), {"scale": 2.0})
    assert model.log_s.item() == math.log(1.5) + 0.1
    for shapes in (((4,), (5,)), ((1,), (1,)), ((4, 2, 2), (4, 2, 2)), ((4,), (4, 1))):
        with pytest.raises(ValueError, match="before and after must be energies"):
            kl_step(*map(torch.zeros, shapes))


@pytest.mark.parametrize(
    "name, value, match",
    [
        ("nats", 0.0, "nats must be finite and > 0, got 0.0"),
        ("nats", math.nan, "nats must be finite and > 0, got nan"),
        ("nats", None, "nats must be a number, got NoneType"),
        ("max_lr", 0.0, "max_lr must be finite and > 0, got 0.0"),
        ("max_lr", -1.0, "max_lr must be finite and > 0, got -1.0"),
        ("backtrack", 0.5, "backtrack must be >= 1, got 0.5"),
        ("backtrack", math.inf, "backtrack must be finite and >= 0, got inf"),
        ("optimizer", nn.Linear(1, 1), "optimizer must be a torch.optim.Optimizer, got Linear"),
    ],
)
def test_settings_are_checked_whenever_they_are_set(name, value, match):
    trust = stepped(Gaussian(), 0.1)
    with pytest.raises((ValueError, TypeError), match=match):
        setattr(trust, name, value)
    with pytest.raises((ValueError, TypeError), match=match):
        TrustRegion(**{"optimizer": trust.optimizer, name: value})


def test_its_state_is_the_count():
    model = Gaussian()
    trust = stepped(model, -9.0)
    trust.step(model, model.exact(10))
    state = trust.state_dict()
    assert state == {"n_backtracks": 1}
    other = stepped(Gaussian(), 0.1)
    other.load_state_dict(state)
    assert other.n_backtracks == 1
    for bad, match in (({}, "must hold n_backtracks"), ({"n_backtracks": -1}, "integer >= 0")):
        with pytest.raises(ValueError, match=match):
            other.load_state_dict(bad)
    assert other.n_backtracks == 1
