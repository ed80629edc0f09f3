"""Losses of adjusted chains: at points, by formulas and by graphs, with jumps, at several times."""

import copy

import pytest
import torch
from torch import nn

from fastebm import (
    ChainRNG,
    ContrastiveDivergence,
    ImprovedContrastiveDivergence,
    LangevinDynamics,
    MaximumLikelihood,
    NonFiniteError,
    PersistentContrastiveDivergence,
    ReplayBuffer,
    Standardized,
)

BOX = (-4.0, 4.0)


def net(dim=2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(dim, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
    )


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pcd(model, capacity=120, backend="auto", on_nonfinite="raise", **options):
    sampler = LangevinDynamics(model, 0.2, adjusted=True, clamp=BOX, backend=backend)
    buffer = ReplayBuffer(capacity, 2, reinit_prob=0.1, value_range=(-2.5, 2.5), seed=3)
    settings = {"k_steps": 10, "jumps": 2, "energy_reg_weight": 0.01} | options
    return PersistentContrastiveDivergence(
        model, sampler, buffer, on_nonfinite=on_nonfinite, **settings
    )


def gradients(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("n_chains", [None, 20])
def test_value_and_gradient_are_those_of_the_definition(units, n_chains):
    data = normal(80, 2)
    model = Standardized(net(), 2 * data) if units else net()
    criterion = pcd(model, n_chains=n_chains)
    out = criterion(data, seed=1)
    assert out.x_neg.shape == data.shape
    e_pos, e_neg = (model(x).flatten() for x in (data, out.x_neg))
    squares = e_pos.square().mean() + e_neg.square().mean()
    wanted = e_pos.mean() - e_neg.mean() + 0.01 * squares
    torch.testing.assert_close(out.loss, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        gradients(out.loss, model), gradients(wanted, model), rtol=1e-3, atol=1e-5
    )
    for name, value in {
        "energy_pos": e_pos.mean(),
        "energy_neg_std": e_neg.std(correction=0),
        "energy_gap": e_pos.mean() - e_neg.mean(),
        "energy_reg": squares,
    }.items():
        torch.testing.assert_close(out.metrics[name], value.detach(), rtol=1e-3, atol=1e-5)
    assert 0 < out.metrics["acceptance"] < 1 and 0 <= out.metrics["jump_acceptance"] <= 1


def test_formulas_and_graphs_agree():
    data, model = normal(60, 2), net()
    by_formulas, by_graph = (pcd(model, backend=way) for way in ("auto", "eager"))
    a, b = by_formulas(data, seed=1), by_graph(data, seed=1)
    alike = torch.isclose(a.x_neg, b.x_neg, rtol=1e-3, atol=1e-3).all(1).double().mean()
    assert alike > 0.95 and "MlpLoss" not in repr(b.loss.grad_fn)
    assert a.metrics.keys() == b.metrics.keys()


def test_chains_are_looked_at_in_the_second_half_of_their_steps():
    data, model = normal(80, 2), net()
    criterion = pcd(model, n_chains=20, k_steps=16, jumps=0)
    start = copy.deepcopy(criterion.buffer.state_dict())
    out = criterion(data, seed=1)
    criterion.buffer.load_state_dict(start)
    points, _ = criterion.buffer.sample(20)
    path = criterion.sampler.sample(points, 16, seed=1, return_trajectory=True)
    for i, k in enumerate((9, 11, 13, 15)):
        assert torch.equal(out.x_neg[20 * i : 20 * (i + 1)], path[:, k]), k


def test_the_ends_go_back_to_the_buffer_and_the_stream_goes_on():
    data, model = normal(60, 2), net()
    criterion, rng = pcd(model, capacity=30, n_chains=30), ChainRNG(1)
    out = criterion(data, seed=rng)
    assert rng.t == 10
    stored = criterion.buffer.all()
    assert (out.x_neg[-30:, None] == stored).all(2).any(1).all()


def test_jumps_go_by_the_buffer_as_it_was():
    data, model = normal(60, 2), net()
    criterion = pcd(model)
    before = copy.deepcopy(criterion.buffer.state_dict())
    population = criterion.buffer.all().clone()
    out = criterion(data, seed=1)
    criterion.buffer.load_state_dict(before)
    start, _ = criterion.buffer.sample(60)
    chains = criterion.sampler.sample(start, 10, seed=1, jumps=2, population=population)
    assert torch.equal(out.x_neg, chains)


def test_from_the_data_and_from_noise():
    data, model = normal(50, 2), net()
    sampler = LangevinDynamics(model, 0.2, adjusted=True)
    out = ContrastiveDivergence(model, sampler, k_steps=5)(data, seed=1)
    assert torch.equal(out.x_neg, sampler.sample(data, 5, seed=1))
    out = MaximumLikelihood(model, sampler, k_steps=5, value_range=(0.0, 1.0))(data, seed=1)
    assert out.metrics["acceptance"] > 0


class Holed(nn.Module):
    """NaN for some data."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return torch.where(x[:, 0] > 3, torch.nan, self.net(x).squeeze(1))


def test_samples_without_finite_energies_are_counted_or_left_out():
    data = normal(60, 2)
    data[7, 0] = 3.5
    model = Holed()
    with pytest.raises(NonFiniteError, match="1 of 60 energies of the data and 0 of 60 chains"):
        pcd(model)(data, seed=1)
    criterion = pcd(model, on_nonfinite="skip", n_chains=20)
    with pytest.warns(UserWarning, match="not finite are 1 of 60"):
        out = criterion(data, seed=1)
    rest = torch.cat([data[:7], data[8:]])
    e_pos, e_neg = model(rest), model(out.x_neg)
    wanted = e_pos.mean() - e_neg.mean() + 0.01 * (e_pos.square().mean() + e_neg.square().mean())
    torch.testing.assert_close(out.loss, wanted)
    assert out.metrics["n_nonfinite"] == 1 and out.metrics["energy_pos"].isfinite()
    assert out.metrics["acceptance"] > 0  # of the chains, all of them


def test_icd_goes_through_the_proposals_that_were_accepted():
    data, model = normal(40, 2).double(), net().double()
    sampler = LangevinDynamics(model, 0.3, adjusted=True, clamp=BOX)
    buffer = ReplayBuffer(90, 2, value_range=BOX, seed=3)
    criterion = ImprovedContrastiveDivergence(
        model, sampler, buffer, k_steps=6, jumps=2, entropy_weight=0.0
    )
    state, population = copy.deepcopy(buffer.state_dict()), buffer.all().clone()
    out = criterion(data, seed=1)
    buffer.load_state_dict(state)
    start, rng = buffer.sample(40)[0].double(), ChainRNG(1)
    before = sampler.sample(start, 5, seed=rng, jumps=2, population=population)
    x_kl, _ = sampler.last_step(before, 5, seed=rng)
    assert torch.equal(out.x_neg, x_kl.detach())
    frozen = net().double().requires_grad_(False)
    wanted = model(data).mean() - model(x_kl.detach()).mean() + frozen(x_kl).mean()
    torch.testing.assert_close(gradients(out.loss, model), gradients(wanted, model))


def test_unadjusted_losses_adapt_their_step_too():
    data, model = normal(64, 2), net()
    for loss, options in (
        (ContrastiveDivergence, {}),
        (ImprovedContrastiveDivergence, {"buffer": ReplayBuffer(90, 2, value_range=BOX, seed=3)}),
    ):
        for backend in ("auto", "eager"):
            sampler = LangevinDynamics(model, "auto", backend=backend)
            before = float(sampler.step_size)
            loss(model, sampler, k_steps=5, **options)(data, seed=1)
            assert float(sampler.step_size) > before, (loss, backend)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"jumps": -1}, "jumps must be an integer >= 0"),
        ({"n_chains": 0}, "n_chains must be an integer >= 1"),
        ({"jumps": 11}, r"jumps must be an integer in 0\.\.10, got 11"),
    ],
)
def test_wrong_settings(options, said):
    with pytest.raises(ValueError, match=said):
        pcd(net(), **options)(normal(60, 2), seed=1)


def test_fewer_chains_than_data_have_no_rows_of_their_own():
    data = normal(40, 2)
    criterion = pcd(lambda x, shift: (x - shift).square().sum(1), n_chains=20)
    before = copy.deepcopy(criterion.buffer.state_dict())
    with pytest.raises(ValueError, match="model_kwargs has 40 rows of 'shift'"):
        criterion(data, model_kwargs={"shift": torch.zeros(40, 2)}, seed=1)
    for name, value in criterion.buffer.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, before[name])
    assert criterion(data, model_kwargs={"shift": torch.zeros(2)}, seed=1).loss.isfinite()


def test_jumps_need_a_sampler_and_a_buffer_that_fit():
    model = net()
    plain, adjusted = (LangevinDynamics(model, 0.1, adjusted=a) for a in (False, True))
    with pytest.raises(ValueError, match="jumps=1 needs a LangevinDynamics with adjusted=True"):
        PersistentContrastiveDivergence(model, plain, ReplayBuffer(9, 2), jumps=1)
    with pytest.raises(ValueError, match="mode 'slot' and float32, got mode 'slot' of torch.uint8"):
        buffer = ReplayBuffer(9, 2, dtype=torch.uint8)
        PersistentContrastiveDivergence(model, adjusted, buffer, jumps=1)
    with pytest.raises(ValueError, match="got mode 'fifo'"):
        ImprovedContrastiveDivergence(model, adjusted, ReplayBuffer(9, 2, mode="fifo"), jumps=1)
