"""Exact and long-run maximum likelihood, and how far CD-k and PCD are from it."""

import itertools
import math

import pytest
import torch

from fastebm import (
    ContrastiveDivergence,
    GibbsSampler,
    LangevinDynamics,
    NonFiniteError,
    PersistentContrastiveDivergence,
    ReplayBuffer,
)
from fastebm.energies import RBM, MLPEnergy
from fastebm.losses.maximum_likelihood import ExactMaximumLikelihood, MaximumLikelihood

V, H = 4, 3
N = 100_000
# Of a gradient from N chains: its elements lie in [0, 1], so deviate by at most 1/2 each, and their
# norm is below 2.5 times its root mean square but once in 10^9.
NOISE = 2.5 * 0.5 * math.sqrt((V * H + V + H) / N)


def machine(scale=2.5, seed=2):
    rbm = RBM(V, H).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in rbm.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return rbm


def all_bits(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def data(n):
    """Rows of two patterns, n in all."""
    return torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.float64).repeat(n // 2, 1)


def gradient(loss, rbm):
    """All parameters' gradients as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(rbm.parameters()))])


def kernel(rbm):
    """(2^V, 2^V), the law of v after a Gibbs step, for each v before: by enumeration."""
    v, h = all_bits(V), all_bits(H)
    to_h, to_v = rbm.hidden_logits(v).sigmoid(), rbm.visible_logits(h).sigmoid()

    def law(p, states):
        return torch.stack([(p * s + (1 - p) * (1 - s)).prod(1) for s in states], 1)

    return law(to_h, h) @ law(to_v, v)


def expected_gradient(rbm, start, k):
    """Of CD-k from chains whose law at the start is ``start`` (2^V,)."""
    law = start @ torch.linalg.matrix_power(kernel(rbm).detach(), k)
    return gradient(rbm(data(2)).mean() - (law * rbm(all_bits(V))).sum(), rbm)


def law_of_data():
    places = (data(2) @ (2.0 ** torch.arange(V - 1, -1, -1, dtype=torch.float64))).long()
    return torch.bincount(places, minlength=2**V).double() / 2


def exact_gradient(rbm):
    return gradient(ExactMaximumLikelihood(rbm)(data(2)).loss, rbm)


def test_exact_maximum_likelihood_is_the_likelihood_by_brute_force():
    rbm, x = machine(), data(6)
    out = ExactMaximumLikelihood(rbm)(x)
    log_z = torch.logsumexp(-rbm(all_bits(V)), 0)
    expected = rbm(x).mean() + log_z
    torch.testing.assert_close(out.loss, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient(out.loss, rbm), gradient(expected, rbm))
    assert out.metrics["log_likelihood"].item() == pytest.approx(-expected.item(), rel=1e-13)
    assert out.metrics["log_z"].item() == pytest.approx(log_z.item(), rel=1e-13)
    assert out.x_neg.shape == (0, V) and out.metrics["n_nonfinite"] == 0


def test_exact_maximum_likelihood_of_any_binary_energy():
    model, x = MLPEnergy(V, (5,)).double(), data(2)
    expected = model(x).mean() + torch.logsumexp(-model(all_bits(V)), 0)
    loss = ExactMaximumLikelihood(model, V)(x).loss
    torch.testing.assert_close(loss, expected)
    weight = model.net[0].weight
    torch.testing.assert_close(
        torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight)
    )


@pytest.mark.parametrize("k", [1, 3])
def test_cd_has_the_expected_gradient_of_its_chains(k):
    rbm = machine()
    loss = ContrastiveDivergence(rbm, GibbsSampler(rbm), k)(data(N), seed=k).loss
    error = (gradient(loss, rbm) - expected_gradient(rbm, law_of_data(), k)).norm()
    assert error < NOISE


def test_bias_of_cd_falls_with_k():
    rbm = machine()
    exact = exact_gradient(rbm)
    biases = []
    for k in (1, 2, 4, 8, 16):
        bias = (expected_gradient(rbm, law_of_data(), k) - exact).norm().item()
        loss = ContrastiveDivergence(rbm, GibbsSampler(rbm), k)(data(N), seed=k).loss
        measured = (gradient(loss, rbm) - exact).norm().item()
        assert abs(measured - bias) < NOISE
        biases.append(bias)
    assert biases == sorted(biases, reverse=True)
    assert biases[0] > 20 * NOISE and biases[-1] < 0.1 * NOISE


def test_bias_of_pcd_goes_away_while_the_machine_stands_still():
    rbm = machine()
    exact = exact_gradient(rbm)
    buffer = ReplayBuffer(N, (V,), reinit_prob=0.0, init="uniform", dtype=torch.float32, seed=0)
    loss = PersistentContrastiveDivergence(rbm, GibbsSampler(rbm), buffer, k_steps=1)
    errors = [(gradient(loss(data(N), seed=i).loss, rbm) - exact).norm().item() for i in range(25)]
    assert errors[0] > 10 * NOISE and max(errors[-3:]) < NOISE


def test_bias_of_pcd_grows_with_the_learning_rate():
    # The machine moves while its chains follow: on a line of parameters, w(t) = t rate.
    biases = []
    for rate in (0.4, 0.02):
        rbm, law = machine(0.0), torch.full((2**V,), 2.0**-V, dtype=torch.float64)
        direction = [torch.randn_like(p) for p in rbm.parameters()]
        for _ in range(round(2 / rate)):
            with torch.no_grad():
                for p, d in zip(rbm.parameters(), direction, strict=True):
                    p += rate * d
            law = law @ kernel(rbm).detach()
        negative = gradient(rbm(data(2)).mean() - (law * rbm(all_bits(V))).sum(), rbm)
        biases.append((negative - exact_gradient(rbm)).norm().item())
        torch.manual_seed(0)
    assert biases[0] > 2 * biases[1] > 0


def test_long_chains_from_noise_reach_the_exact_gradient():
    rbm = machine()
    exact = exact_gradient(rbm)
    errors = []
    for k in (1, 4, 25):
        loss = MaximumLikelihood(rbm, GibbsSampler(rbm), k)(data(N), seed=k).loss
        errors.append((gradient(loss, rbm) - exact).norm().item())
    assert errors[0] > 4 * errors[1] and errors[0] > 10 * NOISE > 10 * errors[2]


def test_long_langevin_chains_from_noise():
    # E = (x - a)^2 / 2: d loss / da = -mean x + mean of the chains, whose law is N(a, 1).
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def model(x):
        return (x[:, 0] - a).square() / 2

    n = 40_000
    x = torch.full((n, 1), 2.0, dtype=torch.float64)
    loss = MaximumLikelihood(model, LangevinDynamics(model, 0.1), 120, init="normal")
    out = loss(x, seed=1)
    (grad,) = torch.autograd.grad(out.loss, a)
    assert abs(grad - (0.5 - 2.0)) < 4.5 * 1.1 / math.sqrt(n)
    start, slots = loss._start(x, _stream())
    assert slots is None and abs(start.mean()) < 4.5 / math.sqrt(n)
    assert abs(start.std() - 1) < 4.5 / math.sqrt(2 * n)
    boxed = MaximumLikelihood(model, LangevinDynamics(model, 0.1), 1, value_range=(-3, 1))
    start, _ = boxed._start(x, _stream())
    assert start.min() > -3 and start.max() < 1
    assert abs(start.mean() + 1) < 4.5 * 4 / math.sqrt(12 * n)


def _stream():
    from fastebm.rng import ChainRNG

    return ChainRNG(3)


def test_rules_learn_a_small_set_and_exact_likelihood_ranks_them():
    # Bars and a little noise, 6 units; entropy of the set is the best likelihood there is.
    x = torch.tensor(
        [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]],
        dtype=torch.float64,
    ).repeat(16, 1)
    reached = {}
    for name in ("exact", "cd", "mle"):
        torch.manual_seed(1)
        rbm = RBM(6, 5).double()
        sampler = GibbsSampler(rbm)
        exact = ExactMaximumLikelihood(rbm)
        loss = {
            "exact": exact,
            "cd": ContrastiveDivergence(rbm, sampler, 1),
            "mle": MaximumLikelihood(rbm, sampler, 20),
        }[name]
        optimizer = torch.optim.Adam(rbm.parameters(), 0.05)
        for i in range(200):
            optimizer.zero_grad()
            loss(x, seed=i).loss.backward()
            optimizer.step()
        reached[name] = exact(x).metrics["log_likelihood"].item()
    independent = -6 * math.log(2)
    assert -1.6 < reached["exact"] < -math.log(4)
    assert reached["exact"] > reached["cd"] > -2.5
    assert reached["exact"] > reached["mle"] > independent + 1


def test_errors_come_before_work():
    with pytest.raises(ValueError, match="at most 25 units.*has 30"):
        ExactMaximumLikelihood(RBM(40, 30))
    rbm = machine()
    with pytest.raises(ValueError, match="init must be one of uniform, normal, got 'data'"):
        MaximumLikelihood(rbm, GibbsSampler(rbm), init="data")
    for value_range in ((1.0, 0.0), (0.0, float("inf")), (0.0,), "ab", None):
        with pytest.raises(ValueError, match="value_range must be"):
            MaximumLikelihood(rbm, GibbsSampler(rbm), value_range=value_range)
    exact = ExactMaximumLikelihood(rbm)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        exact(data(2) * 2)
    with pytest.raises(ValueError, match=r"must be \(B, 4\), got \(2, 3\)"):
        exact(data(2)[:, :3])
    with pytest.raises(ValueError, match=r"floating-point tensor"):
        exact(data(2).long())
    loss = ExactMaximumLikelihood(lambda x: x.sum(1) / 0, 4)
    with pytest.raises(NonFiniteError, match="2 of 2 energies"):
        loss(data(2))


def test_autocast_changes_no_likelihood():
    rbm, v = RBM(6, 4), torch.rand(8, 6).round()
    expected = ExactMaximumLikelihood(rbm)(v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ExactMaximumLikelihood(rbm)(v)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(out.metrics["log_likelihood"], expected.metrics["log_likelihood"])
