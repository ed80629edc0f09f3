"""Which energies take the fused way, that samplers and losses take it, and that results agree."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm

from fastebm import Augmentation, ChainRNG, LangevinDynamics
from fastebm.chains import mlp_chain as chains
from fastebm.chains.mlp_chain import MLPChain
from fastebm.chains.plain_mlp import plain_mlp
from fastebm.chains.waits import NoWaits, Reads
from fastebm.energies import ConvEnergy, MLPEnergy
from fastebm.ops.mlp.network import Network

X = torch.zeros(5, 3)


def mlp(*activations, dim=3, widths=(8, 6), bias=True):
    activations = activations or (nn.SiLU(), nn.SiLU())
    layers, sizes = [], (dim, *widths)
    for a, b, act in zip(sizes[:-1], sizes[1:], activations, strict=True):
        layers += [nn.Linear(a, b, bias=bias), act]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 1, bias=bias))


class Bent(MLPEnergy):
    def forward(self, x):
        return super().forward(x) + 1


class Restated(Bent):
    flat_net = MLPEnergy.flat_net
    forward = MLPEnergy.forward


class Named(nn.Sequential):
    pass


class OwnLinear(nn.Linear):
    pass


@pytest.mark.parametrize(
    "model, activation",
    [
        (mlp(), "silu"),
        (mlp(bias=False), "silu"),
        (mlp(nn.Tanh(), widths=(8,)), "tanh"),
        (mlp(nn.ReLU(inplace=True), nn.ReLU()), "relu"),
        (mlp(nn.Softplus(2, 5), nn.Softplus(2, 5)), "softplus"),
        (mlp(nn.GELU(), nn.GELU()), "gelu"),
        (mlp(nn.LeakyReLU(0.2), nn.LeakyReLU(0.2)), "leaky_relu"),
        (mlp(nn.ELU(0.5), nn.ELU(0.5)), "elu"),
        (mlp(nn.GELU("tanh"), nn.GELU("tanh")), "gelu_tanh"),
        (mlp(*[nn.Tanh()] * 4, widths=(256, 2, 1, 256)), "tanh"),
        (MLPEnergy(3, (8, 8), "softplus"), "softplus"),
        (MLPEnergy(3).eval().requires_grad_(False), "silu"),
        (Restated(3), "silu"),
    ],
)
def test_what_fits(model, activation):
    found = plain_mlp(model, X, {})
    assert isinstance(found, Network), found
    assert found.activation == activation
    assert list(map(id, found.weights)) == [id(p) for p in model.parameters() if p.dim() == 2]


def hooked(model, register):
    getattr(model[0], register)(lambda *_: None)
    return model


def replaced(model):
    model[1].forward = torch.sin
    return model


def old_spectral_norm(model):
    spectral_norm(model[0])
    return model


@pytest.mark.parametrize(
    "model, reason",
    [
        (lambda x: x.sum(1), "no plain nn.Sequential, but function"),
        (Named(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1)), "but Named"),
        (Bent(3), "but Bent"),
        (ConvEnergy((1, 8, 8)), "but ConvEnergy"),
        (torch.compile(mlp()), "but OptimizedModule"),
        (MLPEnergy(3, (8,), spectral_norm=True), "ParametrizedLinear is not nn.Linear"),
        (old_spectral_norm(mlp()), "hooks"),
        (hooked(mlp(), "register_forward_hook"), "hooks"),
        (hooked(mlp(), "register_forward_pre_hook"), "hooks"),
        (hooked(mlp(), "register_full_backward_hook"), "hooks"),
        (replaced(mlp()), "forward or __call__ was replaced"),
        (nn.Sequential(OwnLinear(3, 4), nn.SiLU(), nn.Linear(4, 1)), "OwnLinear is not nn.Linear"),
        (nn.Sequential(nn.Linear(3, 1)), "1..4 hidden"),
        (mlp(*[nn.Tanh()] * 5, widths=(2,) * 5), "1..4 hidden"),
        (nn.Sequential(*mlp(), nn.Tanh()), "not Linear, activation"),
        (nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2)), "1 output"),
        (mlp(widths=(8, 513)), "up to 512 outputs"),
        (mlp(dim=4), "where 3 inputs"),
        (mlp(nn.SiLU(), nn.Tanh()), "SiLU, Tanh, not of one kind"),
        (mlp(nn.Softplus(1), nn.Softplus(2)), "not of one kind"),
        (mlp(nn.ELU(), nn.ELU(2.0)), "ELU, ELU, not of one kind"),
        (mlp(nn.CELU(), nn.CELU()), "CELU, CELU, not of one kind"),
        (mlp(nn.Dropout(), nn.SiLU()), "Dropout, SiLU, not of one kind"),
        (mlp().double(), "a parameter is torch.float64"),
        (mlp().to("meta"), "on meta"),
    ],
)
def test_what_does_not_fit_and_why(model, reason):
    assert reason in plain_mlp(model, X, {})


def test_what_does_not_fit_in_this_call():
    model = mlp()
    assert "x is torch.float64" in plain_mlp(model, X.double(), {})
    assert "x must be (B, D)" in plain_mlp(model, torch.zeros(5, 1, 3), {})
    assert "x must be (B, *event)" in plain_mlp(MLPEnergy(1), torch.zeros(5), {})
    assert "called with y" in plain_mlp(model, X, {"y": 1})
    assert isinstance(plain_mlp(MLPEnergy(6), torch.zeros(5, 2, 3), {}), Network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in plain_mlp(model, X, {})
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "hooks" in plain_mlp(model, X, {})
    finally:
        handle.remove()
    assert isinstance(plain_mlp(model, X, {}), Network)


@pytest.fixture
def fused_calls(monkeypatch):
    """The steps of every chain that goes the fused way."""
    calls = []
    run = MLPChain.run

    def counted(chain, x, coefficients, *rest, **options):
        calls.append(len(coefficients))
        run(chain, x, coefficients, *rest, **options)

    monkeypatch.setattr(MLPChain, "run", counted)
    return calls


CALLS = {
    "plain": {},
    "trajectory": {"return_trajectory": True, "burn_in": 3, "thin": 4},
    "diagnostics": {"return_trajectory": True, "return_diagnostics": True, "thin": 2},
    "none kept": {"return_trajectory": True, "return_diagnostics": True, "thin": 40},
    "ids": {"sample_ids": torch.tensor([4, 2, 9, 7, 2**40])},
    "augmentation": {
        "augmentation": Augmentation(hflip_p=0.5, blur_p=0.5),
        "augment_every": 3,
        "return_trajectory": True,
        "return_diagnostics": True,
        "thin": 2,
    },
}
SETTINGS = {
    "constant": {"step_size": 0.1},
    "schedules": {"step_size": lambda k: 0.1 / (1 + k), "temperature": lambda k: 1 / (k + 1)},
    "by chain": {"step_size": torch.linspace(0.05, 0.1, 5), "noise_std": torch.full((5,), 0.2)},
    "by chain and step": {
        "step_size": torch.linspace(0.05, 0.1, 5),
        "noise_scale": lambda k: 0.5**k,
    },
    "options": {
        "step_size": 0.1,
        "clamp": (-1.0, 1.0),
        "grad_clip": 0.3,
        "grad_norm_clip": 0.5,
        "noise_first": True,
    },
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_way_does_not_show(call, settings, fused_calls):
    model, x = MLPEnergy(16, (12, 10), "tanh"), torch.randn(5, 1, 4, 4)
    results = {}
    for backend in ("eager", "fused", "auto"):
        sampler = LangevinDynamics(model, **settings, backend=backend)
        results[backend] = sampler.sample(x, 9, seed=3, **call)
    assert fused_calls == [9 + call.get("burn_in", 0)] * 2
    for backend in ("fused", "auto"):
        # 12 steps of 0.1 on curvatures below 3: rounding grows 30-fold at most
        torch.testing.assert_close(results[backend], results["eager"], rtol=1e-4, atol=1e-5)
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_start_and_stream_go_on(fused_calls):
    model = mlp()
    sampler = LangevinDynamics(model, 0.05)
    whole = sampler.sample(n_steps=10, n_samples=5, dim=3, seed=1)
    stream = ChainRNG(1)
    part = sampler.sample(n_steps=4, n_samples=5, dim=3, seed=stream)
    assert torch.equal(sampler.sample(part, 6, seed=stream), whole)
    x, _ = sampler.last_step(sampler.sample(part, 5, seed=ChainRNG(1, 4)), 5, seed=stream)
    assert fused_calls == [10, 4, 6, 5]
    assert x.requires_grad


@pytest.mark.parametrize(
    "where, name",
    [
        (nn.Linear, "forward"),
        (nn.SiLU, "forward"),
        (nn.Sequential, "forward"),
        (MLPEnergy, "forward"),
        (nn.Module, "__call__"),
        (nn.Module, "_call_impl"),
        (nn.functional, "linear"),
        (nn.functional, "silu"),
    ],
)
def test_calls_that_are_replaced_are_followed(fused_calls, monkeypatch, where, name):
    model, x = MLPEnergy(3, (8,)), torch.randn(5, 3)
    plain = LangevinDynamics(model, 0.1).sample(x, 3, seed=0)
    was = getattr(where, name)
    replaced = lambda *args, **kwargs: 2 * was(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(where, name, replaced)
    auto, eager = (
        LangevinDynamics(model, 0.1, backend=b).sample(x, 3, seed=0) for b in ("auto", "eager")
    )
    assert torch.equal(auto, eager) and not torch.allclose(auto, plain)
    assert fused_calls == [3]


def test_modes_of_torch_are_followed(fused_calls):
    class Doubled(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            return 2 * out if f is nn.functional.linear else out

    model, x = mlp(), torch.randn(5, 3)
    with torch.device("cpu"):  # a default device is a mode too, which changes no number
        plain = LangevinDynamics(model, 0.1).sample(x, 3, seed=0)
    with Doubled():
        auto = LangevinDynamics(model, 0.1).sample(x, 3, seed=0)
    assert fused_calls == [3]
    assert not torch.allclose(auto, plain)
    with NoWaits(x.device), Reads():  # these only watch what goes into a CUDA graph
        watched = LangevinDynamics(model, 0.1).sample(x, 3, seed=0)
    assert fused_calls == [3, 3]
    assert torch.equal(watched, plain)


@pytest.mark.parametrize("step_size", [0.1, lambda k: 0.1 / (k + 1), torch.full((5,), 0.1)])
def test_long_chains_are_calls_of_bounded_work_with_the_same_bits(monkeypatch, step_size):
    calls, operator = [], chains.mlp_chain_
    monkeypatch.setattr(
        chains, "mlp_chain_", lambda *a, **o: calls.append(a[2]) or operator(*a, **o)
    )
    sampler, x = LangevinDynamics(mlp(), step_size), torch.randn(5, 3)
    whole = sampler.sample(x, 11, seed=0, return_trajectory=True)
    of_a_step = 4096 + 5 * (3 * 8 + 8 * 6 + 6 + 10 * (3 + 8 + 8 + 6 + 6 + 1))
    monkeypatch.setattr(chains, "MAX_WORK", 3 * of_a_step)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    del calls[:]
    assert torch.equal(sampler.sample(x, 11, seed=0), whole[:, -1])
    assert calls == [3, 3, 3, 2]
    del calls[:]
    thinned = sampler.sample(x, 11, seed=0, thin=4, return_trajectory=True)
    assert torch.equal(thinned, whole[:, 3::4])
    assert calls == [3, 1, 2, 2, 1, 2]
    monkeypatch.setattr(chains, "MAX_WORK", 1)  # less than a step
    assert torch.equal(sampler.sample(x, 2, seed=0), whole[:, 1])


def test_backend_is_forced_or_refused(fused_calls):
    model, x = mlp(), torch.randn(5, 3)
    LangevinDynamics(model, 0.1, backend="eager").sample(x, 2)
    LangevinDynamics(model, 0.1).sample(x.double().float(), 2)
    LangevinDynamics(model.double(), 0.1).sample(x.double(), 2)
    assert fused_calls == [2]
    with pytest.raises(ValueError, match="'fused' takes small perceptrons only: x is"):
        LangevinDynamics(model, 0.1, backend="fused").sample(x.double(), 2)
    with pytest.raises(ValueError, match="nothing to compile or to capture"):
        LangevinDynamics(model, 0.1, backend="fused", compile=True)
    with pytest.raises(ValueError, match="backend must be one of auto, eager, fused, got 'cuda'"):
        LangevinDynamics(model, 0.1, backend="cuda")


def test_precision_is_of_fused_chains_on_a_device():
    model = mlp()
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'fp16'"):
        LangevinDynamics(model, 0.1, precision="fp16")
    with pytest.raises(ValueError, match="precision='bf16' needs backend='fused', got 'auto'"):
        LangevinDynamics(model, 0.1, precision="bf16")
    sampler = LangevinDynamics(model, 0.1, backend="fused", precision="bf16")
    with pytest.raises(ValueError, match="needs chains on a CUDA device, got cpu"):
        sampler.sample(torch.zeros(3, 3), 2)


def test_long_chains_have_the_same_law():
    # Two modes on the line through a: it bends down at 0 and its slope outside is 2 |a|.
    torch.manual_seed(4)
    a = torch.tensor([[1.0, 0.3]])
    model = mlp(nn.Softplus(), dim=2, widths=(6,))
    with torch.no_grad():
        model[0].weight.copy_(torch.cat([a, -a, a, -a, torch.eye(2)]) * 2)
        model[0].bias.copy_(torch.tensor([-2.0, -2, 1, 1, 0, 0]))
        model[2].weight.copy_(torch.tensor([[3.0, 3, -2, -2, 0.0, 0.0]]))
    x = torch.randn(4000, 2)
    stats = {}
    for backend, seed in (("eager", 1), ("fused", 2)):
        y = LangevinDynamics(model, 0.05, clamp=(-4.0, 4.0), backend=backend).sample(
            x, 200, seed=seed
        )
        along = y @ a[0] / a.norm()
        stats[backend] = torch.stack([along, along**2, along.abs(), (along > 0).float()])
    mean = {k: v.mean(1) for k, v in stats.items()}
    spread = torch.stack([v.var(1) / v.shape[1] for v in stats.values()]).sum(0).sqrt()
    assert ((mean["eager"] - mean["fused"]).abs() < 4 * spread + 1e-6).all()
    assert mean["fused"][3].sub(0.5).abs() < 4 * math.sqrt(0.25 / 4000)
