"""Every way to write a small perceptron, a Gaussian base and a condition that a capture reads."""

import pytest
import torch
from mlp_networks import double
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fastebm import LangevinDynamics
from fastebm.chains.captured_mlp import captured_mlp
from fastebm.chains.mlp_chain import MLPChain
from fastebm.energies import MLPEnergy, TemperedEnergy
from fastebm.ops import reference
from fastebm.ops.mlp.network import Network
from fastebm.rng import ChainRNG


class Energy(nn.Module):
    """A forward, and what it is of."""

    def __init__(self, forward, *, dim=3, outputs=1, activation=nn.SiLU, **parts):
        super().__init__()
        self.of = forward
        self.net = nn.Sequential(
            *(nn.Linear(dim, 8), activation(), nn.Linear(8, 6), activation()),
            nn.Linear(6, outputs),
        )
        for name, part in parts.items():
            if isinstance(part, (nn.Module, nn.Parameter)):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x, **model_kwargs):
        return self.of(self, x, **model_kwargs)


def added_in_place(e, other):
    e += other
    return e


def weights():
    return {
        "w": nn.Parameter(torch.randn(3, 8)),
        "b": nn.Parameter(torch.randn(8)),
        "v": nn.Parameter(torch.randn(8)),
    }


def scales():
    return {"m": torch.randn(3), "s": torch.rand(3) + 1, "t": torch.tensor(2.5)}


def parametrised(of):
    return nn.Sequential(of(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 1))


def normal(m, x):
    return torch.distributions.Normal(m.m, m.s, validate_args=False).log_prob(x)


def swish(z):
    return z * torch.sigmoid(z)


OUTPUTS = {
    "squeezed": lambda m, x: m.net(x).squeeze(-1),
    "all squeezed": lambda m, x: m.net(x).squeeze(),
    "column": lambda m, x: m.net(x)[:, 0],
    "dots": lambda m, x: m.net(x)[..., 0],
    "flat": lambda m, x: m.net(x).flatten(),
    "viewed": lambda m, x: m.net(x).view(-1),
    "reshaped": lambda m, x: m.net(x).reshape(len(x)),
    "selected": lambda m, x: m.net(x).select(1, 0),
    "kept": lambda m, x: m.net(x),
    "negative": lambda m, x: -m.net(x).squeeze(1),
    "scaled": lambda m, x: m.net(x).squeeze(1) * 3 / 7 - 1.5,
    "moved": lambda m, x: 2 - m.net(x)[:, 0],
}
FORMS = {
    **{name: (lambda f=f: Energy(f)) for name, f in OUTPUTS.items()},
    "scales": lambda: Energy(lambda m, x: m.net(x), outputs=4),
    "sum of outputs": lambda: Energy(lambda m, x: m.net(x).sum(1), outputs=4),
    "mean of outputs": lambda: Energy(lambda m, x: m.net(x).mean(-1), outputs=4),
    "one of outputs": lambda: Energy(lambda m, x: m.net(x)[:, -2], outputs=4),
    "temperature": lambda: Energy(lambda m, x: m.net(x).squeeze(1) / m.t, **scales()),
    "leaky": lambda: Energy(OUTPUTS["flat"], activation=lambda: nn.LeakyReLU(0.3)),
    "elu": lambda: Energy(OUTPUTS["flat"], activation=lambda: nn.ELU(0.7)),
    "in place": lambda: Energy(OUTPUTS["flat"], activation=lambda: nn.ReLU(inplace=True)),
    "leaky in place": lambda: Energy(OUTPUTS["flat"], activation=lambda: nn.LeakyReLU(0.1, True)),
    "softplus": lambda: Energy(OUTPUTS["flat"], activation=lambda: nn.Softplus(2, 5)),
    "gelu": lambda: Energy(OUTPUTS["flat"], activation=nn.GELU),
    "gelu by tanh": lambda: Energy(OUTPUTS["flat"], activation=lambda: nn.GELU("tanh")),
    "functions": lambda: Energy(
        lambda m, x: m.net[4](F.elu(m.net[2](F.elu(m.net[0](x))))).squeeze(1)
    ),
    "methods": lambda: Energy(lambda m, x: m.net[4](m.net[2](m.net[0](x).tanh()).tanh_())[:, 0]),
    "swish": lambda: Energy(lambda m, x: m.net[4](swish(m.net[2](swish(m.net[0](x)))))),
    "products": lambda: Energy(lambda m, x: torch.tanh(x @ m.w + m.b) @ m.v, **weights()),
    "addmm": lambda: Energy(lambda m, x: torch.addmm(m.b, x, m.w).tanh().matmul(m.v), **weights()),
    "functional": lambda: Energy(
        lambda m, x: F.linear(F.relu(F.linear(x, m.w.t(), m.b)), m.v[None]).squeeze(1), **weights()
    ),
    "dropout": lambda: Energy(
        lambda m, x: m.drop(m.net(m.drop(x))).squeeze(1), drop=nn.Dropout(0.5)
    ),
    "weight norm": lambda: Energy(
        lambda m, x: m.p(x)[:, 0], p=parametrised(parametrizations.weight_norm)
    ),
    "spectral norm": lambda: Energy(
        lambda m, x: m.p(x)[:, 0], p=parametrised(parametrizations.spectral_norm)
    ),
    "standardized": lambda: Energy(lambda m, x: m.net((x - m.m) / m.s).squeeze(1), **scales()),
    "pixels": lambda: Energy(lambda m, x: m.net(x / 2 - 1).squeeze(1)),
    "tempered": lambda: TemperedEnergy(Energy(OUTPUTS["flat"]), 3.0),
    "summed": lambda: MLPEnergy(3, (8,)) + (lambda x: 0.5 * x.square().sum(1)),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(Energy(OUTPUTS["flat"])),
    "compiled": lambda: torch.compile(Energy(OUTPUTS["flat"]), backend="eager"),
    "lambda": lambda: (lambda net: lambda x: net(x).squeeze(1))(Energy(OUTPUTS["kept"])),
}
BASES = {
    "pow": lambda m, x: m.net(x).squeeze(1) + 0.5 * x.pow(2).sum(1),
    "square": lambda m, x: m.net(x).squeeze(1) + x.square().sum(-1) / 2,
    "power": lambda m, x: (x**2).sum(-1) / (2 * m.t) - m.net(x).squeeze(1),
    "product": lambda m, x: m.net(x) + (m.s * x * x).mean(1, keepdim=True),
    "standard": lambda m, x: m.net(x)[:, 0] + 0.5 * (((x - m.m) / m.s) ** 2).sum(dim=1) + 1.5,
    "normal": lambda m, x: m.net(x)[:, 0] - normal(m, x).sum(1),
    "precision": lambda m, x: m.net(x)[:, 0] + ((x - m.m).square() * m.s).sum(axis=1),
    "in place": lambda m, x: added_in_place(m.net(x).squeeze(1), 0.5 * x.pow(2).sum(1)),
    "twice": lambda m, x: x.square().sum(1) + m.net(x)[:, 0] + (m.s * x**2).sum(1),
}
FORMS |= {f"base {name}": (lambda f=f: Energy(f, **scales())) for name, f in BASES.items()}


def embedded(m, x, c):
    return m.top(F.silu(m.of_x(x) + m.of_c(c))).squeeze(1) + 0.5 * x.square().sum(1)


def condition(of_c):
    return Energy(embedded, of_x=nn.Linear(3, 8), of_c=of_c, top=nn.Linear(8, 1))


CONDITIONS = {
    "joined": lambda: Energy(lambda m, x, c: m.net(torch.cat([x, c], 1))[:, 0], dim=5),
    "joined before": lambda: Energy(lambda m, x, c: m.net(torch.cat((c, x), dim=-1)), dim=5),
    "between": lambda: Energy(
        lambda m, x, c: m.net(torch.cat([c, x, c.cos()], 1).contiguous()).flatten(), dim=7
    ),
    "joined, one for all": lambda: Energy(
        lambda m, x, c: m.net(torch.cat([x, c[0].expand(len(x), -1)], 1)).squeeze(1), dim=5
    ),
    "added": lambda: condition(nn.Linear(2, 8)),
    "network": lambda: condition(nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 8))),
    "labels": lambda: condition(nn.Embedding(4, 8)),
}


def check(model, x, **model_kwargs):
    found = captured_mlp(model, x, model_kwargs)
    assert isinstance(found, Network), found
    with torch.no_grad():
        e = (model.eval() if isinstance(model, nn.Module) else model)(x, **model_kwargs)
    e = e.sum(1) if e.dim() == 2 else e
    ours = reference.mlp_energy(double(found), x.double().flatten(1))
    torch.testing.assert_close(ours.float(), e, rtol=1e-5, atol=1e-5)
    sampler, rng = LangevinDynamics(model, 0.05, backend="eager"), ChainRNG(5)
    eager = sampler.sample(x, 4, seed=5, model_kwargs=model_kwargs)
    fused = x.clone()
    MLPChain(found, "fp32").run(
        fused, sampler.plan(range(4)), rng.state("cpu", len(x)), sampler.options
    )
    torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-5)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_read(form):
    found = check(FORMS[form](), torch.randn(6, 3))
    assert found.row_bias is None
    assert (found.base_precision is not None) == (form.startswith("base") or form == "summed")


@pytest.mark.parametrize("form", CONDITIONS)
def test_conditions_are_read(form):
    model = CONDITIONS[form]()
    for n in (6, 9):
        c = torch.randint(4, (n,)) if form == "labels" else torch.randn(n, 2)
        found = check(model, torch.randn(n, 3), c=c)
        assert found.row_bias.shape == (n, 8)


def test_events_of_any_shape():
    model = Energy(
        lambda m, x: m.net(x.flatten(1)).squeeze() + 0.5 * (x - m.m).square().sum((1, 2)),
        **{"dim": 6, "m": torch.randn(3)},
    )
    found = check(model, torch.randn(5, 2, 3))
    assert torch.equal(found.base_mean, model.m.repeat(2))


def test_parameters_are_the_modules_own():
    model = Energy(OUTPUTS["flat"])
    found = captured_mlp(model, torch.randn(6, 3), {})
    ours = [p for p in found.parameters if p is not None]
    assert list(map(id, ours)) == list(map(id, model.parameters()))


@pytest.mark.parametrize(
    "widths, reason",
    [((513,), "513 outputs"), ((4,) * 5, "5 hidden layers"), ((), "squeeze of (layer, int)")],
)
def test_limits(widths, reason):
    sizes = (3, *widths)
    layers = [m for a, b in zip(sizes, widths, strict=False) for m in (nn.Linear(a, b), nn.Tanh())]
    net = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
    assert reason in captured_mlp(lambda x: net(x).squeeze(1), torch.randn(6, 3), {})
