"""Helmholtz machine and wake-sleep, against enumeration of all states."""

import itertools
import math

import pytest
import torch

from fastebm.energies.helmholtz import HelmholtzMachine
from fastebm.losses.nonfinite import NonFiniteError
from fastebm.losses.wake_sleep import WakeSleep
from fastebm.rng import ChainRNG

V, HIDDEN = 3, (2, 2)


def machine(n_visible=V, n_hidden=HIDDEN, scale=1.0):
    net = HelmholtzMachine(n_visible, n_hidden).double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, scale)
    return net


def bits(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def all_states(net):
    """Every state, as the list of its layers, each (2^units, width)."""
    return list(bits(sum(net.widths)).split(net.widths, 1))


def place(layers):
    """Which row of ``bits`` each row is."""
    joined = torch.cat(list(layers), 1)
    powers = 2.0 ** torch.arange(joined.shape[1] - 1, -1, -1, dtype=joined.dtype)
    return (joined @ powers).long()


def log_visible(net, v):
    """log p(v) by summing over all hidden states."""
    h = bits(sum(net.widths[1:]))
    state = [v.repeat_interleave(len(h), 0), *h.repeat(len(v), 1).split(net.widths[1:], 1)]
    return torch.logsumexp(net.log_joint(state).view(len(v), len(h)), 1)


def test_both_models_are_normalised():
    net = machine()
    state = all_states(net)
    assert torch.logsumexp(net.log_joint(state), 0).item() == pytest.approx(0, abs=1e-12)
    given_v = net.log_recognition(state).view(2**V, -1)
    torch.testing.assert_close(
        torch.logsumexp(given_v, 1), torch.zeros(2**V, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_log_probabilities_of_a_machine_by_hand():
    net = HelmholtzMachine(1, [1]).double()
    with torch.no_grad():
        net.top.fill_(0.3)
        net.generative[0].weight.fill_(2.0)
        net.generative[0].bias.fill_(-1.0)
    sigmoid = lambda a: 1 / (1 + math.exp(-a))  # noqa: E731
    one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    assert net.log_joint([one, one]).exp().item() == pytest.approx(sigmoid(0.3) * sigmoid(1.0))
    expected = (1 - sigmoid(0.3)) * sigmoid(-1.0)
    assert net.log_joint([one, zero]).exp().item() == pytest.approx(expected)


def test_dreams_and_recognitions_have_their_laws():
    net, n = machine(), 200_000
    counts = torch.bincount(place(net.dream(n, 1)), minlength=2**7)
    law = net.log_joint(all_states(net)).exp()
    assert bool(((counts - n * law).abs() < 5 * (n * law).sqrt() + 1).all())
    v = bits(V)[[5]]
    found = net.recognise(v.expand(n, -1), 2)
    assert torch.equal(found[0], v.expand(n, -1))
    counts = torch.bincount(place(found[1:]), minlength=2**4)
    law = net.log_recognition(all_states(net)).exp().view(2**V, -1)[5]
    assert bool(((counts - n * law).abs() < 5 * (n * law).sqrt() + 1).all())


def test_a_seed_decides_the_bits_and_a_stream_goes_on():
    net = machine()
    a, b = net.dream(50, 3)[0], net.dream(50, 4)[0]
    assert torch.equal(a, net.dream(50, 3)[0]) and not torch.equal(a, b)
    rng = ChainRNG(3)
    assert torch.equal(net.dream(50, rng)[0], a) and not torch.equal(net.dream(50, rng)[0], a)


def test_wake_phase_is_the_exact_gradient_of_the_joint():
    # The delta rule: (what is there - what was predicted) x what it was predicted from.
    net, x = machine(), torch.rand(40, V, dtype=torch.float64).round()
    WakeSleep(net)(x, seed=7).loss.backward()
    v, h1, h2 = net.recognise(x, 7)
    for layer, below, above in ((net.generative[0], v, h1), (net.generative[1], h1, h2)):
        error = below - layer(above).sigmoid()
        torch.testing.assert_close(layer.weight.grad, -error.T @ above / 40)
        torch.testing.assert_close(layer.bias.grad, -error.mean(0))
    torch.testing.assert_close(net.top.grad, -(h2 - net.top.sigmoid()).mean(0))


def test_wake_phase_with_the_posterior_is_the_gradient_of_the_likelihood():
    # One hidden unit: the posterior is a sigmoid of v, so q can be exact.
    net = machine(V, [1])
    with torch.no_grad():
        weight, bias = net.generative[0].weight[:, 0], net.generative[0].bias
        net.recognition[0].weight.copy_(weight[None])
        softplus = torch.nn.functional.softplus
        net.recognition[0].bias.copy_(net.top + (softplus(bias) - softplus(bias + weight)).sum())
    v, n = bits(V), 100_000
    exact = log_visible(net, v)
    for n_samples in (1, 3):
        torch.testing.assert_close(net.log_likelihood_bound(v, n_samples, 1), exact)
        torch.testing.assert_close(net.log_likelihood(v, n_samples, 1), exact)
    x = v[[1, 6]].repeat(n // 2, 1)
    WakeSleep(net)(x, seed=1).loss.backward()
    for p in (net.generative[0].weight, net.generative[0].bias, net.top):
        (expected,) = torch.autograd.grad(-log_visible(net, v[[1, 6]]).mean(), p)
        torch.testing.assert_close(p.grad, expected, rtol=0, atol=4.5 * 0.5 / math.sqrt(n))


def test_sleep_phase_in_expectation():
    net, n = machine(), 200_000
    WakeSleep(net)(torch.zeros(n, V, dtype=torch.float64), seed=3).loss.backward()
    state = all_states(net)
    law = net.log_joint(state).detach().exp()
    expected = -(law * net.log_recognition(state)).sum()
    for p in net.recognition.parameters():
        (exact,) = torch.autograd.grad(expected, p, retain_graph=True)
        torch.testing.assert_close(p.grad, exact, rtol=0, atol=4.5 / math.sqrt(n))


def test_likelihood_is_bounded_and_estimated_from_below():
    net, v, runs = machine(scale=1.5), bits(V), 4000
    exact = log_visible(net, v)
    copies = v.repeat(runs, 1)
    estimates = []
    for name, k in (("log_likelihood_bound", 5), ("log_likelihood", 5), ("log_likelihood", 50)):
        values = getattr(net, name)(copies, k, 1).view(runs, len(v))
        estimates.append(values.mean(0))
        assert bool((values.mean(0) < exact + 4.5 * values.std(0) / math.sqrt(runs)).all())
    bound, few, many = (e.mean() for e in estimates)
    assert bound < few < many < exact.mean() + 0.01
    assert exact.mean() - many < 0.2 * (exact.mean() - bound)
    weights = net.log_likelihood(copies, 5, 2).view(runs, len(v)).exp()
    spread = weights.std(0) / math.sqrt(runs)
    assert bool(((weights.mean(0) - exact.exp()).abs() < 5 * spread).all())  # unbiased for p(v)


def test_as_an_energy_it_is_the_bound():
    net, v = machine(), bits(V)
    torch.testing.assert_close(net(v), -net.log_likelihood_bound(v, 1, 0))
    assert torch.equal(net(v), net(v))


def test_wake_sleep_learns():
    # Two patterns with their bits flipped at 5 %: 0.693 + 6 x 0.199 = 1.88 nats is the best.
    g = torch.Generator().manual_seed(0)
    pattern = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=torch.float64)
    x = pattern.repeat(200, 1)
    x = (x - (torch.rand(x.shape, generator=g) < 0.05).double()).abs()
    torch.manual_seed(0)
    net = HelmholtzMachine(6, [3]).double()
    loss, optimizer = WakeSleep(net), torch.optim.Adam(net.parameters(), 0.05)
    before = log_visible(net, x).mean()
    for i in range(300):
        optimizer.zero_grad()
        out = loss(x, seed=i)
        out.loss.backward()
        optimizer.step()
    after = log_visible(net, x).mean()
    assert before < -4 and -2.3 < after < -1.7
    assert out.metrics["bound"] < after
    assert abs(out.metrics["bound"] - net.log_likelihood_bound(x, 20, 1).mean()) < 0.2
    assert out.x_neg.shape == x.shape and set(out.x_neg.unique().tolist()) == {0.0, 1.0}


def test_errors_come_before_work():
    with pytest.raises(ValueError, match="n_hidden must be the width of at least one layer"):
        HelmholtzMachine(3, [])
    with pytest.raises(ValueError, match="n_hidden must be an integer >= 1, got 0"):
        HelmholtzMachine(3, [2, 0])
    with pytest.raises(TypeError, match="must be a HelmholtzMachine, got Linear"):
        WakeSleep(torch.nn.Linear(2, 1))
    net = machine()
    loss = WakeSleep(net)
    with pytest.raises(ValueError, match=r"in \[0, 1\]; 2 of 6 are outside, or NaN"):
        loss(torch.tensor([[0, 1, 2], [math.nan, 0, 1]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"must be \(B, 3\), got \(2, 4\)"):
        loss(torch.zeros(2, 4).double())
    with pytest.raises(ValueError, match="floating-point tensor"):
        loss(torch.zeros(2, 3, dtype=torch.long))
    rng = ChainRNG(0, t=2**32 - 2)
    with pytest.raises(ValueError, match="t must be in"):
        loss(torch.zeros(2, 3).double(), seed=rng)
    assert rng.t == 2**32 - 2
    with pytest.raises(ValueError, match="n_samples must be an integer >= 1, got 0"):
        net.log_likelihood(torch.zeros(2, 3).double(), 0)
    with torch.no_grad():
        net.top[0] = math.inf
    with pytest.raises(NonFiniteError, match="5 of 5"):
        loss(torch.zeros(5, 3).double())
