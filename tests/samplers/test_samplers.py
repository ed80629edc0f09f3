"""Langevin chains: their exact law, conventions, schedules, streams, diagnostics and errors."""

import math

import pytest
import torch
from torch import nn

from fastebm import Augmentation
from fastebm.ops import reference
from fastebm.rng import INIT, ChainRNG
from fastebm.samplers.langevin import LangevinDynamics

NOISE_TOL = {"rtol": 1e-5, "atol": 1e-5}  # normals are float32, the oracle's float64


def bowl(x):
    return x.unsqueeze(-1).flatten(1).square().sum(1) / 2


def mlp():
    return nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Dropout(0.5), nn.Linear(8, 1)).double()


def plain_chain(model, x, n_steps, step, sigma, seed, t=0, noise_first=False, clamp=None):
    """The definition, in plain torch, with the noise of the oracle."""
    ids = torch.arange(len(x))
    for k in range(t, t + n_steps):
        n = reference.normals(seed, k, ids, x[0].numel()).reshape(x.shape)
        if noise_first:
            x = x + sigma * n
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(model(x).sum(), x)
        x = x - step * grad + (0 if noise_first else sigma * n)
        x = x if clamp is None else x.clamp(*clamp)
    return x.detach()


@pytest.mark.parametrize("n_steps", [1, 7])
def test_unadjusted_langevin_has_its_exact_law(n_steps):
    # E = k x^2 / 2, a = 1 - step k: mean a^n x0, variance sigma^2 (1 - a^2n) / (1 - a^2).
    k, step, x0, n = 1.5, 0.2, 3.0, 200_000
    sampler = LangevinDynamics(lambda x: k * bowl(x), step, temperature=0.7)
    sigma2 = 2 * step * 0.7
    a = 1 - step * k
    x = sampler.sample(torch.full((n, 1), x0, dtype=torch.float64), n_steps, seed=1)
    mean, var = a**n_steps * x0, sigma2 * (1 - a ** (2 * n_steps)) / (1 - a**2)
    assert abs(x.mean().item() - mean) < 4 * math.sqrt(var / n)
    assert abs(x.var().item() / var - 1) < 4 * math.sqrt(2 / n)  # var of a Gaussian's variance


@pytest.mark.parametrize(
    "settings, sigma",
    [
        ({}, math.sqrt(2 * 0.03)),
        ({"noise_scale": 0.5}, 0.5 * math.sqrt(2 * 0.03)),
        ({"temperature": 0.25}, math.sqrt(2 * 0.03 * 0.25)),
        ({"noise_scale": 3.0, "temperature": 4.0}, 3 * math.sqrt(2 * 0.03 * 4)),
        ({"noise_std": 0.01, "noise_scale": 9.0, "temperature": 9.0}, 0.01),
        ({"noise_std": 0.0}, 0.0),
    ],
)
def test_convention_of_the_noise(settings, sigma):
    sampler = LangevinDynamics(bowl, 0.03, **settings)
    assert sampler.effective_temperature == pytest.approx(sigma**2 / 0.06, rel=1e-12)
    x = torch.randn(5, 3, dtype=torch.float64)
    noise = reference.normals(7, 0, torch.arange(5), 3)
    torch.testing.assert_close(
        sampler.sample(x, 1, seed=7), x - 0.03 * x + sigma * noise, **NOISE_TOL
    )


@pytest.mark.parametrize("noise_first", [False, True])
@pytest.mark.parametrize("clamp", [None, (-0.5, 0.5)])
def test_chain_is_its_definition(noise_first, clamp):
    model, x = mlp().eval(), torch.randn(6, 2, dtype=torch.float64)
    sampler = LangevinDynamics(model, 0.1, noise_std=0.3, clamp=clamp, noise_first=noise_first)
    expected = plain_chain(model, x, 5, 0.1, 0.3, 3, noise_first=noise_first, clamp=clamp)
    torch.testing.assert_close(sampler.sample(x, 5, seed=3), expected, **NOISE_TOL)


def test_gradient_clips():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    by_element = LangevinDynamics(bowl, 1.0, noise_std=0.0, grad_clip=0.35).sample(x, 1)
    torch.testing.assert_close(x - by_element, x.clamp(max=0.35))
    by_norm = LangevinDynamics(bowl, 1.0, noise_std=0.0, grad_norm_clip=1.0).sample(x, 1)
    torch.testing.assert_close((x - by_norm).norm(dim=1), torch.tensor([1.0, 0.5]).double())


def test_schedules_and_values_per_chain():
    x = torch.ones(2, 1, dtype=torch.float64)
    seen = []
    sampler = LangevinDynamics(bowl, lambda k: seen.append(k) or 0.5 / (k + 1), noise_std=0.0)
    torch.testing.assert_close(sampler.sample(x, 3), x * 0.5 * 0.75 * (1 - 0.5 / 3))
    assert seen == [0, 1, 2]

    steps = torch.tensor([0.1, 0.4], dtype=torch.float64)
    sampler = LangevinDynamics(bowl, steps)
    noise = reference.normals(5, 0, torch.arange(2), 1)
    expected = x * (1 - steps[:, None]) + (2 * steps[:, None]).sqrt() * noise
    torch.testing.assert_close(sampler.sample(x, 1, seed=5), expected, **NOISE_TOL)
    torch.testing.assert_close(sampler.effective_temperature, torch.ones(2).double())

    annealed = LangevinDynamics(bowl, 0.1, temperature=lambda k: 0.0 if k else 2.0)
    noise = reference.normals(5, 0, torch.arange(2), 1)
    expected = (x * 0.9 + math.sqrt(0.4) * noise) * 0.9
    torch.testing.assert_close(annealed.sample(x, 2, seed=5), expected, **NOISE_TOL)


def test_noise_does_not_depend_on_the_batch_split():
    x = torch.randn(7, 3)
    sampler = LangevinDynamics(bowl, 0.1)
    whole = sampler.sample(x, 4, seed=2)
    parts = [
        sampler.sample(x[a:b], 4, seed=2, sample_ids=torch.arange(a, b))
        for a, b in ((0, 3), (3, 7))
    ]
    assert torch.equal(whole, torch.cat(parts))
    offset = sampler.sample(x[3:], 4, seed=ChainRNG(2, sample_offset=3))
    assert torch.equal(whole[3:], offset)


@pytest.mark.parametrize("noise_first", [False, True])
def test_augmentation_comes_before_every_round_and_leaves_the_noise_alone(noise_first):
    x = torch.rand(5, 3, 8, 8)
    augmentation = Augmentation(scale=(0.2, 1.0), hflip_p=0.5, brightness=0.3, contrast=0.3)
    sampler = LangevinDynamics(bowl, 0.1, noise_first=noise_first)
    end, states = x, []
    for k in range(7):  # the definition, step by step
        if k % 3 == 0:
            end = augmentation(end, seed=ChainRNG(4, k, 10))
        end = sampler.sample(end, 1, seed=ChainRNG(4, k, 10))
        states.append(end)
    options = {"augmentation": augmentation, "augment_every": 3}
    rng = ChainRNG(4, 0, 10)
    assert torch.equal(sampler.sample(x, 7, seed=rng, **options), end) and rng.t == 7
    kept = sampler.sample(
        *(x, 5), burn_in=2, thin=2, return_trajectory=True, seed=ChainRNG(4, 0, 10), **options
    )
    assert torch.equal(kept, torch.stack([states[3], states[5]], 1))
    nothing = sampler.sample(x, 7, seed=4, augmentation=Augmentation())
    assert torch.equal(nothing, sampler.sample(x, 7, seed=4))


def test_streams():
    x = torch.randn(4, 2)
    sampler = LangevinDynamics(bowl, 0.1)
    assert torch.equal(sampler.sample(x, 3, seed=1), sampler.sample(x, 3, seed=1))
    assert not torch.equal(sampler.sample(x, 3, seed=1), sampler.sample(x, 3, seed=2))
    # A ChainRNG goes on, and two parts are the whole.
    rng = ChainRNG(1)
    half = sampler.sample(x, 2, seed=rng)
    assert rng.t == 2
    state = rng.state_dict()
    end = sampler.sample(half, 3, seed=rng)
    assert torch.equal(end, sampler.sample(x, 5, seed=1))
    resumed = ChainRNG(0)
    resumed.load_state_dict(state)
    assert torch.equal(end, sampler.sample(half, 3, seed=resumed))
    # torch.manual_seed and generator= give new noise in each call, and the same again.
    torch.manual_seed(3)
    first, second = sampler.sample(x, 3), sampler.sample(x, 3)
    torch.manual_seed(3)
    assert torch.equal(first, sampler.sample(x, 3)) and not torch.equal(first, second)
    g = torch.Generator().manual_seed(3)
    assert torch.equal(first, sampler.sample(x, 3, generator=g))
    with pytest.raises(ValueError, match="not both"):
        sampler.sample(x, 3, seed=1, generator=g)


def test_start_from_the_stream():
    sampler = LangevinDynamics(bowl, 0.1, clamp=(-1, 1))
    x = sampler.sample(n_samples=5, dim=(2, 3), n_steps=0, seed=4)
    start = reference.normals(4, 0, torch.arange(5), 6, INIT).reshape(5, 2, 3)
    torch.testing.assert_close(x, start.clamp(-1, 1).float(), **NOISE_TOL)
    assert sampler.sample(n_samples=2, dim=3, n_steps=1).shape == (2, 3)
    assert LangevinDynamics(mlp(), 0.1).sample(n_samples=2, dim=2).dtype == torch.float64


def test_trajectory_burn_in_and_thin():
    x = torch.randn(3, 2, dtype=torch.float64)
    sampler = LangevinDynamics(bowl, 0.1)
    every = torch.stack([sampler.sample(x, k, seed=1) for k in range(1, 12)], 1)
    path = sampler.sample(x, 8, burn_in=3, thin=2, return_trajectory=True, seed=1)
    assert path.shape == (3, 4, 2)
    assert torch.equal(path, every[:, [4, 6, 8, 10]])
    assert sampler.sample(x, 0, return_trajectory=True).shape == (3, 0, 2)


def test_diagnostics():
    x = torch.randn(6, 2, dtype=torch.float64)
    sampler = LangevinDynamics(lambda x: torch.stack([bowl(x), 2 * bowl(x)], 1), 0.1, clamp=(0, 1))
    path, info = sampler.sample(
        x, 4, burn_in=1, thin=2, return_trajectory=True, return_diagnostics=True, seed=1
    )
    before = torch.stack([sampler.sample(x, k, seed=1) for k in (2, 4)])
    torch.testing.assert_close(info["mean"], path.mean(0))
    torch.testing.assert_close(info["var"], path.var(0, correction=0))
    torch.testing.assert_close(info["energy"], 1.5 * before.square().sum(2))
    torch.testing.assert_close(info["grad_norm"], 3 * before.norm(dim=2))
    last = path[:, -1]
    assert info["clamp_share"] == ((last == 0) | (last == 1)).double().mean().float()
    assert info["n_nonfinite"] == 0 and info["effective_temperature"] == pytest.approx(1)
    x[2, 0] = math.nan
    assert sampler.sample(x, 1, return_diagnostics=True)[1]["n_nonfinite"] == 1
    _, empty = sampler.sample(x, 0, return_diagnostics=True)
    assert empty["energy"].shape == (0, 6) and empty["mean"].shape == (0, 2)


def test_input_and_model_are_left_alone():
    model = mlp()
    model[0].bias.requires_grad_(False)
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    copy = x.detach().clone()
    for run in (LangevinDynamics(model, 0.1).sample, LangevinDynamics(model, 0.1).last_step):
        run(x, 2, seed=0)
        assert torch.equal(x, copy) and x.grad is None
        assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
        assert all(m.training for m in model.modules())
        assert all(p.grad is None for p in model.parameters())

    def broken(x):
        raise KeyError

    model.forward = broken
    with pytest.raises(KeyError):
        LangevinDynamics(model, 0.1).sample(x, 2)
    assert model.training and model[0].weight.requires_grad


@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_grad_modes_of_the_caller_do_not_matter(backend):
    model, x = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)), torch.randn(4, 2)
    sampler = LangevinDynamics(model, 0.1, backend=backend)
    expected = sampler.sample(x, 3, seed=0)
    with torch.no_grad():
        assert torch.equal(sampler.sample(x, 3, seed=0), expected)
    with torch.inference_mode():
        out = sampler.sample(x + 0, 3, seed=0)
        assert torch.equal(out, expected)
    assert not expected.requires_grad and not out.is_inference()


@pytest.mark.parametrize("noise_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_last_step_has_the_values_of_the_chain(noise_first, dtype):
    model, x = mlp().to(dtype), torch.randn(64, 2).to(dtype)
    step = lambda k: 0.2 / (k + 1)  # noqa: E731
    sampler = LangevinDynamics(model, step, clamp=(-2, 2), grad_clip=0.2, noise_first=noise_first)
    rng = ChainRNG(9)
    before = sampler.sample(x, 3, seed=rng)
    for create_graph in (False, True):
        rng = ChainRNG(9, t=3)
        after, grad = sampler.last_step(before, 3, seed=rng, create_graph=create_graph)
        assert rng.t == 4
        assert after.requires_grad == grad.requires_grad == create_graph
        # With a graph, torch composes some gradients (SiLU's) of other operations.
        tol = 8 * torch.finfo(dtype).eps if create_graph else 0
        torch.testing.assert_close(after.detach(), sampler.sample(x, 4, seed=9), rtol=tol, atol=tol)


def test_last_step_is_differentiable_in_the_parameters_only_through_its_gradient():
    w = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    x = torch.randn(5, 3, dtype=torch.float64)
    out, _ = LangevinDynamics(lambda x: w * bowl(x), 0.1).last_step(x, seed=0)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), w)[0], -0.1 * x.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 2), (1, 1, 4, 4), (3,)])
def test_dtypes_and_shapes(dtype, shape):
    x = torch.zeros(shape, dtype=dtype)
    out = LangevinDynamics(bowl, 0.1).sample(x, 2)
    assert out.dtype == dtype and out.shape == shape


def test_non_contiguous_start_and_gradient():
    x = torch.randn(3, 4, dtype=torch.float64).T
    sampler = LangevinDynamics(lambda x: x.sum(1), 0.1, noise_std=0.0)  # its gradient has stride 0
    torch.testing.assert_close(sampler.sample(x, 2), x - 0.2)


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("step_size", 0.0, ValueError),
        ("step_size", -1.0, ValueError),
        ("step_size", math.nan, ValueError),
        ("step_size", "0.1", TypeError),
        ("step_size", torch.tensor([0.1, 0.0]), ValueError),
        ("step_size", torch.tensor([1, 2]), ValueError),
        ("noise_std", -0.1, ValueError),
        ("noise_scale", math.inf, ValueError),
        ("noise_scale", torch.ones(3, 1, 1), ValueError),
        ("temperature", -1, ValueError),
        ("grad_clip", 0, ValueError),
        ("grad_norm_clip", -1, ValueError),
        ("clamp", (1, 0), ValueError),
        ("clamp", 3, ValueError),
        ("clamp", (0, math.nan), ValueError),
    ],
)
def test_wrong_settings(name, value, error):
    with pytest.raises(error, match=f"^{name}"):
        LangevinDynamics(bowl, **{"step_size": 0.1, name: value})


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"n_steps": -1}, "n_steps must be"),
        ({"n_steps": 1.5}, "n_steps must be"),
        ({"burn_in": -1}, "burn_in must be"),
        ({"thin": 0}, "thin must be"),
        ({"x": torch.zeros(2, 2), "dim": 2}, "not both"),
        ({"n_samples": 2}, "n_samples and dim"),
        ({"n_samples": 2, "dim": 0}, "dim must be"),
        ({"augment_every": 0}, "augment_every must be"),
        ({"x": torch.zeros(2, 2), "augmentation": Augmentation(hflip_p=1)}, "hflip_p needs images"),
    ],
)
def test_wrong_arguments_of_sample(arguments, match):
    calls = []
    sampler = LangevinDynamics(lambda x: calls.append(1) or bowl(x), 0.1)
    with pytest.raises(ValueError, match=match):
        sampler.sample(**arguments)
    with pytest.raises(TypeError, match="x must be a floating-point tensor"):
        sampler.sample(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"step_size\(2\)"):
        schedule = LangevinDynamics(sampler.model, lambda k: 0.1 if k < 2 else -1.0)
        schedule.sample(torch.zeros(2, 2), 5)
    assert not calls
