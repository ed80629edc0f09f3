"""The losses and their gradients against definitions written out naively in float64."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
from loss_reference import EPS, K, assert_same, gradients, langevin, mlp, naive
from torch import nn

from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.improved import ImprovedContrastiveDivergence
from fastebm.losses.output import LossOutput
from fastebm.losses.persistent import PersistentContrastiveDivergence
from fastebm.replay.buffer import ReplayBuffer
from fastebm.rng import ChainRNG
from fastebm.samplers.langevin import LangevinDynamics
from fastebm.samplers.scale import StepSizeWarning

COMMON = {"energy_pos", "energy_neg", "energy_pos_std", "energy_neg_std", "energy_gap", "loss_cd"}
COMMON |= {"energy_reg", "grad_norm", "clamp_share", "n_nonfinite"}


@pytest.mark.parametrize("scales", [1, 3])
@pytest.mark.parametrize("reg", [0.0, 0.7])
def test_cd(scales, reg):
    model, x = mlp(scales), torch.randn(9, 2, dtype=torch.float64)
    sampler = langevin(model)
    out = ContrastiveDivergence(model, sampler, K, energy_reg_weight=reg)(x, seed=5)
    assert isinstance(out, LossOutput) and not out.x_neg.requires_grad
    assert_same(out, naive(model, sampler, x, x, 5, K, 0.0, 0.0, reg), model)
    assert set(out.metrics) == COMMON


@pytest.mark.parametrize("scales", [1, 3])
@pytest.mark.parametrize("kl, ent, reg", [(1.0, 0.3, 0.0), (-1.0, 0.0, 0.0), (0.5, -1.0, 0.7)])
@pytest.mark.parametrize("k_steps", [1, K])
def test_icd_from_data(scales, kl, ent, reg, k_steps):
    model, x = mlp(scales), torch.randn(9, 2, dtype=torch.float64)
    sampler = langevin(model)
    loss = ImprovedContrastiveDivergence(
        *(model, sampler),
        k_steps=k_steps,
        kl_weight=kl,
        entropy_weight=ent,
        entropy_eps=EPS,
        energy_reg_weight=reg,
    )
    out = loss(x, seed=5)
    refs = out.x_neg if ent else None  # the other chains
    assert_same(out, naive(model, sampler, x, x, 5, k_steps, kl, ent, reg, refs, range(9)), model)
    assert set(out.metrics) == COMMON | {"kl_energy", "entropy"}


def pair_of_buffers(mode, fill=None, **options):
    buffers = [ReplayBuffer(12, (2,), 0.3, mode, "normal", seed=3, **options) for _ in range(2)]
    if fill is not None and mode != "slot":
        for b in buffers:
            b.push(fill)
    return buffers


@pytest.mark.parametrize("mode", ["slot", "fifo", "reservoir"])
def test_pcd(mode):
    model, x = mlp(), torch.randn(9, 2, dtype=torch.float64)
    sampler = langevin(model)
    mine, theirs = pair_of_buffers(mode)
    loss = PersistentContrastiveDivergence(model, sampler, mine, K, energy_reg_weight=0.1)
    for seed in range(3):
        start, idx = theirs.sample(9)
        expected = naive(model, sampler, x, start.double(), seed, K, 0.0, 0.0, 0.1)
        theirs.push(expected[1], idx)
        assert_same(loss(x, seed=seed), expected, model)
        torch.testing.assert_close(mine.all(), theirs.all())


@pytest.mark.parametrize("mode", ["slot", "fifo", "reservoir"])
@pytest.mark.parametrize("n_refs", [None, 7])
def test_icd_takes_references_before_the_push_and_not_its_own_slot(mode, n_refs):
    model, x = mlp(), torch.randn(9, 2, dtype=torch.float64)
    sampler = langevin(model)
    mine, theirs = pair_of_buffers(mode, fill=torch.randn(10, 2))
    loss = ImprovedContrastiveDivergence(
        *(model, sampler, mine, K), entropy_eps=EPS, n_entropy_refs=n_refs
    )
    for seed in range(3):
        start, idx = theirs.sample(9)
        refs, own, _ = theirs.references(idx, n_refs)
        refs, skip = refs.clone(), own.tolist()
        expected = naive(
            *(model, sampler, x, start.double(), seed, K, 1.0, 0.3, 0.0, refs.double(), skip)
        )
        theirs.push(expected[1], idx)
        assert_same(loss(x, seed=seed), expected, model)
        torch.testing.assert_close(mine.all(), theirs.all())


def test_entropy_is_zero_until_there_are_two_references():
    model, x = mlp(), torch.randn(1, 2, dtype=torch.float64)
    buffer = ReplayBuffer(5, (2,), mode="fifo", seed=0)
    loss = ImprovedContrastiveDivergence(model, langevin(model), buffer, K)
    values = [loss(x, seed=i).metrics["entropy"].item() for i in range(3)]
    assert values[:2] == [0, 0] and values[2] != 0
    alone = ImprovedContrastiveDivergence(model, langevin(model), k_steps=K)
    assert alone(x).metrics["entropy"] == 0


@pytest.mark.parametrize("kl", [1.0, -1.0])
def test_sign_of_the_kl_term_by_enumeration_of_a_finite_space(kl):
    # Data: n equally likely states; with the noise of a seed given, one step maps each to a state
    # of its own, so q has n equally likely states too, whose entropy log n does not move with the
    # parameters. KL(data || p) - KL(q || p) is then J = mean_data E - mean_q E exactly (log Z and
    # the entropies drop out), and KL(q || sg p) = mean_q E_sg + const. Differences in the
    # parameters give both derivatives: the loss's gradient must be dJ + (kl + 1) dKL, CD's being
    # dJ + dKL. So kl_weight = -1 is the true gradient, and +1 is 2 dKL away from it.
    model, x = mlp(), torch.randn(7, 2, dtype=torch.float64)
    sampler = langevin(model, clamp=None, grad_clip=None)
    loss = ImprovedContrastiveDivergence(
        *(model, sampler), k_steps=1, kl_weight=kl, entropy_weight=0.0
    )
    gradient = gradients(loss(x, seed=5).loss, model)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def derivative(f, parameter, i, h=1e-5):
        values = []
        for sign in (1, -1):
            parameter.view(-1)[i] += sign * h
            values.append(f())
            parameter.view(-1)[i] -= sign * h
        return (values[0] - values[1]) / (2 * h)

    def objective():
        return (model(x).mean() - model(sampler.sample(x, 1, seed=5)).mean()).item()

    def kl_to_frozen():
        q = sampler.sample(x, 1, seed=5)
        return torch.func.functional_call(model, frozen, (q,)).mean().item()

    largest = 0.0
    for parameter, g in zip(model.parameters(), gradient, strict=True):
        if g is None:
            continue
        for i in range(0, parameter.numel(), 3):
            d_kl = derivative(kl_to_frozen, parameter, i)
            expected = derivative(objective, parameter, i) + (kl + 1) * d_kl
            assert g.view(-1)[i].item() == pytest.approx(expected, abs=1e-8)
            largest = max(largest, abs(d_kl))
    assert largest > 1e-4  # or the test could not tell the signs apart


@pytest.mark.parametrize("weight, exact", [(-1.0, True), (1.0, False)])
def test_sign_of_both_terms_for_a_markov_chain_on_a_finite_space(weight, exact):
    # The algebra behind the docstring, with a chain that branches: states on a line, energies
    # theta, a step that prefers low energies, q = data T^2. The CD gradient plus weight times the
    # gradient of KL(q || sg p) = E_q[E_sg] - H(q) is that of KL(data||p) - KL(q||p) for -1 only.
    n = 6
    data = torch.softmax(torch.randn(n, dtype=torch.float64), 0)
    theta = torch.randn(n, dtype=torch.float64, requires_grad=True)
    near = (torch.arange(n)[:, None] - torch.arange(n)).abs() <= 1

    def chain(e):
        step = torch.softmax(torch.where(near, -e[None] / 2, -math.inf), 1)
        return data @ step @ step

    def kl(a, b):
        return (a * (a / b).log()).sum()

    p, q = torch.softmax(-theta, 0), chain(theta)
    (true,) = torch.autograd.grad(kl(data, p) - kl(q, p), theta, retain_graph=True)
    e = theta.detach()
    h = -(q * q.log()).sum()
    paper = (data * theta).sum() - (q.detach() * theta).sum() + weight * ((q * e).sum() - h)
    (assembled,) = torch.autograd.grad(paper, theta)
    assert torch.allclose(assembled, true, rtol=0, atol=1e-14) == exact


def test_values_of_the_metrics():
    model = mlp(2)
    x = torch.randn(9, 2, dtype=torch.float64)
    sampler = langevin(model, clamp=(-0.5, 0.5))
    loss = ImprovedContrastiveDivergence(model, sampler, k_steps=K, energy_reg_weight=0.2)
    out = loss(x, seed=1)
    m = out.metrics
    assert all(not isinstance(v, torch.Tensor) or not v.requires_grad for v in m.values())
    pos, neg = model(x).detach().mean(1), model(out.x_neg).detach().mean(1)
    for name, e in (("pos", pos), ("neg", neg)):
        torch.testing.assert_close(m[f"energy_{name}"], e.mean())
        torch.testing.assert_close(m[f"energy_{name}_std"], e.std(correction=0))
    torch.testing.assert_close(m["loss_cd"], pos.mean() - neg.mean())
    torch.testing.assert_close(m["energy_gap"], m["loss_cd"])
    torch.testing.assert_close(m["kl_energy"], neg.mean())
    torch.testing.assert_close(m["clamp_share"].double(), (out.x_neg.abs() == 0.5).double().mean())
    total = m["loss_cd"] + m["kl_energy"] - 0.3 * m["entropy"] + 0.2 * m["energy_reg"]
    torch.testing.assert_close(out.loss.detach(), total)
    assert m["n_nonfinite"] == 0 and loss.calls == 1


def test_model_is_left_as_it_was_and_not_registered():
    model = mlp()
    model[0].weight.requires_grad_(False)
    buffer = ReplayBuffer(12, (2,), seed=0)
    loss = ImprovedContrastiveDivergence(model, langevin(model), buffer, K)
    loss(torch.randn(4, 2, dtype=torch.float64)).loss.backward()
    assert model.training and all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert model[0].weight.grad is None and model[2].weight.grad is not None
    assert list(loss.parameters()) == []
    assert set(loss.state_dict()) == {
        "buffer.data",
        "buffer.stream",
        "buffer.visits",
        "buffer._extra_state",
    }


def test_conditional_energy_and_no_grad():
    w = nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.float64))

    def model(x, y):
        return w[y] * x.square().sum(1)

    x, y = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    loss = ImprovedContrastiveDivergence(model, langevin(model), k_steps=K)
    out = loss(x, {"y": y}, seed=1)
    (grad,) = torch.autograd.grad(out.loss, w)
    assert (grad != 0).all()
    with torch.no_grad():
        quiet = loss(x, {"y": y}, seed=1)
    assert torch.equal(quiet.loss, out.loss.detach()) and not quiet.loss.requires_grad


@pytest.mark.parametrize("kind", ["cd", "pcd", "icd"])
def test_resume_is_bitwise(kind):
    def setup():
        torch.manual_seed(1)
        model = mlp().float()
        sampler = langevin(model)
        buffer = ReplayBuffer(20, (2,), 0.2, seed=5)
        loss = {
            "cd": lambda: ContrastiveDivergence(model, sampler, K),
            "pcd": lambda: PersistentContrastiveDivergence(model, sampler, buffer, K),
            "icd": lambda: ImprovedContrastiveDivergence(
                model, sampler, buffer, K, n_entropy_refs=6
            ),
        }[kind]()
        return model, loss, torch.optim.Adam(model.parameters(), 0.01), ChainRNG(3)

    def train(state, steps):
        model, loss, optimizer, rng = state
        for i in steps:
            x = torch.randn(8, 2, generator=torch.Generator().manual_seed(i))
            optimizer.zero_grad()
            loss(x, seed=rng).loss.backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole = setup()
    train(whole, range(3))
    saved = [part.state_dict() for part in whole]
    saved = torch.load(_saved(saved), weights_only=True)
    resumed = setup()
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    assert resumed[3].t == 3 * K
    assert torch.equal(train(whole, range(3, 6)), train(resumed, range(3, 6)))


def _saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_errors():
    model = mlp()
    sampler, buffer = langevin(model), ReplayBuffer(12, (2,))
    for make, match in [
        (lambda: ContrastiveDivergence(model, sampler, 0), "k_steps must be"),
        (lambda: ContrastiveDivergence(model, sampler, on_nonfinite="stop"), "on_nonfinite must"),
        (lambda: ContrastiveDivergence(model, sampler, energy_reg_weight=math.nan), "energy_reg"),
        (lambda: ImprovedContrastiveDivergence(model, sampler, kl_weight=math.inf), "kl_weight"),
        (lambda: ImprovedContrastiveDivergence(model, sampler, entropy_eps=0.0), "entropy_eps"),
        (lambda: ImprovedContrastiveDivergence(model, sampler, n_entropy_refs=1), "n_entropy_refs"),
        (
            lambda: ContrastiveDivergence(
                *(model, LangevinDynamics(model, torch.ones(3))), on_nonfinite="skip"
            ),
            "skip",
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            make()
    for make, match in [
        (lambda: ContrastiveDivergence(3, sampler), "model must be callable"),
        (lambda: ContrastiveDivergence(model, model), "sampler must be"),
        (lambda: PersistentContrastiveDivergence(model, sampler, None), "buffer must be"),
    ]:
        with pytest.raises(TypeError, match=match):
            make()
    loss = PersistentContrastiveDivergence(model, sampler, buffer)
    for x in (torch.zeros(0, 2), torch.zeros(3, 2).long(), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="x must be a floating-point"):
            loss(x)
    with pytest.raises(ValueError, match=r"buffer's shape \(2,\), got \(3,\)"):
        loss(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="of the ReplayBuffer .*, 12, got a batch of 13"):
        loss(torch.zeros(13, 2, dtype=torch.float64))


def test_the_first_batch_is_checked_for_the_step_size():
    model = mlp().float()
    data = 0.01 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    def warnings_of(sampler, *batches):
        loss = ContrastiveDivergence(model, sampler, 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for x in batches:
                loss(x)
        assert all(w.filename == __file__ for w in caught)  # in the name of who called
        return [w.category for w in caught]

    assert warnings_of(LangevinDynamics(model, 0.02), data, data) == [StepSizeWarning]
    assert warnings_of(LangevinDynamics(model, 0.02), data[:31]) == []
    assert warnings_of(LangevinDynamics(model, 0.02), torch.zeros(64, 2)) == []
    assert warnings_of(LangevinDynamics(model, 1e-6), data) == []


def test_integers_of_numpy_are_integers():
    model, x = mlp(), torch.randn(9, 2, dtype=torch.float64)
    options = {"k_steps": 3, "n_entropy_refs": 2}
    of_numpy = {name: np.int64(value) for name, value in options.items()}
    losses = [
        ImprovedContrastiveDivergence(model, langevin(model), ReplayBuffer(12, (2,), seed=1), **o)
        for o in (options, of_numpy)
    ]
    assert losses[0](x, seed=1).loss == losses[1](x, seed=1).loss
    assert type(losses[1].k_steps) is type(losses[1].n_entropy_refs) is int


@pytest.mark.parametrize("seed", [0, 7])
def test_a_stream_with_too_few_steps_is_refused_before_any_is_taken(seed):
    calls, x = [], torch.randn(4, 2)

    def model(x):
        calls.append(1)
        return x.square().sum(1)

    buffer = ReplayBuffer(12, (2,), seed=seed)
    before = buffer.state_dict()
    before = {name: value.clone() for name, value in before.items() if torch.is_tensor(value)}
    loss = PersistentContrastiveDivergence(model, LangevinDynamics(model, 0.1), buffer, k_steps=5)
    rng = ChainRNG(seed, t=2**32 - 5)
    with pytest.raises(ValueError, match="t must be in"):
        loss(x, seed=rng)
    assert not calls and rng.t == 2**32 - 5 and loss.calls == 0
    for name, value in before.items():
        assert torch.equal(buffer.state_dict()[name], value)
    rng = ChainRNG(seed, t=2**32 - 6)
    loss(x, seed=rng)
    assert rng.t == 2**32 - 1
