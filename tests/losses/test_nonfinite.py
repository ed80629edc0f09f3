"""What the losses do about samples whose energy or state is not finite."""

import math

import pytest
import torch
from loss_reference import EPS, K, gradients, langevin, mlp, naive_row

from fastebm.energies import GivenEnergy
from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.improved import ImprovedContrastiveDivergence
from fastebm.losses.nonfinite import NonFiniteError
from fastebm.losses.persistent import PersistentContrastiveDivergence
from fastebm.replay.buffer import ReplayBuffer


def rotten(model):
    """The model, with an energy that is NaN where |x_0| > 2."""

    def f(x):
        return torch.where(x[:, :1].abs() > 2, math.nan, 1.0) * model(x)

    return f


def losses_of(model, sampler, buffer, mode):
    return [
        ContrastiveDivergence(model, sampler, K, on_nonfinite=mode),
        PersistentContrastiveDivergence(model, sampler, buffer, K, on_nonfinite=mode),
        ImprovedContrastiveDivergence(
            model, sampler, buffer, K, entropy_eps=EPS, energy_reg_weight=0.1, on_nonfinite=mode
        ),
    ]


@pytest.mark.parametrize("which", range(3))
def test_nonfinite_raises_and_leaves_the_buffer_alone(which):
    model = rotten(mlp())
    buffer = ReplayBuffer(12, (2,), seed=0)
    loss = losses_of(model, langevin(model), buffer, "raise")[which]
    x = torch.zeros(5, 2, dtype=torch.float64)
    loss(x)
    stored = buffer.all().clone()
    x[3, 0] = 9.0
    chains = 1 if which == 0 else 0
    with pytest.raises(NonFiniteError, match=rf"call 2 .* 1 of 5 energies .* {chains} of 5 chains"):
        loss(x)
    assert torch.equal(buffer.all(), stored)


@pytest.mark.parametrize("which", range(3))
def test_nonfinite_warns_and_stays_out_of_the_buffer(which):
    model = rotten(mlp())
    buffer = ReplayBuffer(12, (2,), 0.0, seed=0)
    buffer.data[:6] = 9.0
    loss = losses_of(model, langevin(model, clamp=None), buffer, "warn")[which]
    x = torch.zeros(12, 2, dtype=torch.float64)
    x[:6] = 9.0
    with pytest.warns(UserWarning, match="6 of 12 chains"):
        out = loss(x)
    assert out.loss.isnan() and buffer.all().isfinite().all()
    assert (buffer.data[:6] == 9).all()
    assert out.metrics["n_nonfinite"] == (12 if which == 0 else 6 + 6)


@pytest.mark.parametrize("which", range(3))
def test_nonfinite_samples_are_skipped_as_if_they_had_not_been(which):
    good = mlp()
    model = rotten(good)
    x = torch.randn(6, 2, dtype=torch.float64).clamp(-1, 1)
    start = torch.randn(12, 2).clamp(-1, 1)
    start[5] = 9.0
    buffers = [ReplayBuffer(12, (2,), 0.0, init=lambda n: start[:n], seed=0) for _ in range(2)]
    sampler = langevin(model, clamp=None)
    loss = losses_of(model, sampler, buffers[0], "skip")[which]
    x[2, 0] = 9.0
    keep_pos = torch.arange(6) != 2
    if which == 0:
        chain_start, keep_neg = x, keep_pos
    else:
        chain_start, idx = buffers[1].sample(6)
        while 5 not in idx:  # until the bad slot is among the chains
            buffers[0].sample(6)
            chain_start, idx = buffers[1].sample(6)
        chain_start, keep_neg = chain_start.double(), idx != 5
    with pytest.warns(UserWarning, match="1 of 6 energies of the data and 1 of 6 chains"):
        out = loss(x, seed=4)
    assert out.metrics["n_nonfinite"] == 2 and out.x_neg.shape == x.shape

    # The same by hand: the chains on the good model, then only the good rows.
    refs, skip = None, None
    if which == 2:
        stored, own, _ = buffers[1].references(idx)
        refs, skip = stored.double(), own.tolist()
    good_sampler = langevin(good, clamp=None)
    rows = keep_neg.nonzero()[:, 0]
    weights = (1.0, 0.3, 0.1) if which == 2 else (0.0, 0.0, 0.0)
    terms = [  # one chain at a time, each with its noise
        naive_row(good, good_sampler, chain_start, i, 4, weights, refs, skip) for i in rows.tolist()
    ]
    e_pos = good(x[keep_pos])
    expected = e_pos.mean() + weights[2] * (e_pos**2).mean() + torch.stack(terms).mean()
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=1e-12)
    for a, b in zip(gradients(out.loss, good), gradients(expected, good), strict=True):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-9, atol=1e-11)
    if which:
        stored = buffers[0].all()
        assert (stored[5] == 9).all() and stored.isfinite().all()


def test_skip_raises_when_nothing_is_left():
    model = rotten(mlp())
    loss = ContrastiveDivergence(model, langevin(model), K, on_nonfinite="skip")
    with pytest.raises(NonFiniteError, match="3 of 3 chains"):
        loss(torch.full((3, 2), 9.0, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["slot", "fifo", "reservoir"])
@pytest.mark.parametrize("which", range(3))
def test_nonfinite_samples_are_only_counted(which, mode, recwarn):
    model = rotten(mlp())
    buffer = ReplayBuffer(12, (2,), 0.0, mode, seed=0)
    buffer.push(torch.full((12, 2), 0.5), torch.arange(12))
    buffer.data[:6] = 9.0
    loss = losses_of(model, langevin(model, clamp=None), buffer, "count")[which]
    x = torch.zeros(12, 2, dtype=torch.float64)
    x[:6] = 9.0
    out = loss(x)
    assert out.loss.isnan() and isinstance(out.metrics["n_nonfinite"], torch.Tensor)
    assert out.metrics["n_nonfinite"] == 12
    assert buffer.all().isfinite().all()
    if mode == "slot":  # each where it was; the other modes choose places
        assert (buffer.data[:6] == 9).all() and (buffer.data[6:] != 9).all()
    buffer.data.fill_(0.5)
    assert loss(torch.zeros_like(x)).metrics["n_nonfinite"] == 0
    assert not recwarn


def test_sums_that_overflow_are_not_taken_for_samples_that_do():
    def model(x):
        return 1e38 * (2 + 0 * x.sum(1))  # eight of them are more than a float32 holds

    loss = ContrastiveDivergence(model, langevin(model), 1)
    assert loss(torch.zeros(8, 2)).metrics["n_nonfinite"] == 0


def test_what_given_fixed_cannot_be_left_out_with_skip():
    w = torch.rand(5)
    calls = []

    def weighted(x, w):
        calls.append(1)
        return w * x.square().sum(1)

    x = torch.zeros(5, 2)
    x[3] = math.nan
    given = GivenEnergy(weighted, w=w) + GivenEnergy(lambda x: x.square().sum(1))
    loss = ContrastiveDivergence(given, langevin(given), K, on_nonfinite="skip")
    with pytest.raises(ValueError, match="cannot leave out rows of 'w', which given.*model_kwargs"):
        loss(x)
    assert not calls
    loss = ContrastiveDivergence(weighted, langevin(weighted), K, on_nonfinite="skip")
    kept = [0, 1, 2, 4]
    right = ContrastiveDivergence(weighted, langevin(weighted, noise_std=0.0), K)
    loss.sampler.noise_std = 0.0
    with pytest.warns(UserWarning, match="1 of 5 chains"):
        found = loss(x, model_kwargs={"w": w})  # which is cut
    assert found.metrics["n_nonfinite"] == 2
    torch.testing.assert_close(found.loss, right(x[kept], model_kwargs={"w": w[kept]}).loss)


def test_the_warning_points_at_the_caller():
    model = rotten(mlp())
    loss = ContrastiveDivergence(model, langevin(model), K, on_nonfinite="warn")
    with pytest.warns(UserWarning, match="3 of 3 chains") as caught:
        torch.nn.Sequential(loss)(torch.full((3, 2), 9.0, dtype=torch.float64))
    assert caught[0].filename == __file__
