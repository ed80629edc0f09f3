"""Chains whose gradient is compiled: the eager result, and errors that say what is wrong."""

import gc
import weakref

import pytest
import torch
from torch import nn

from fastebm import ImprovedContrastiveDivergence, LangevinDynamics
from fastebm.chains.compiled import CompiledGradient


@pytest.fixture
def no_inductor(monkeypatch):
    """All of torch.compile but its slow last stage, code generation."""
    monkeypatch.setattr(torch._inductor, "compile", torch._dynamo.lookup_backend("aot_eager"))


def mlp():
    return nn.Sequential(
        nn.Linear(2, 16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 1)
    )


def assert_same(model, x, **options):
    compiled = LangevinDynamics(model, 0.1, compile=True, **options)
    plain = LangevinDynamics(model, 0.1, **options)
    for n in (x.shape[0], x.shape[0] - 1):  # another shape is compiled anew
        out = compiled.sample(x[:n], 5, seed=3, return_diagnostics=True)
        expected = plain.sample(x[:n], 5, seed=3, return_diagnostics=True)
        torch.testing.assert_close(
            compiled.sample(x[:n], 5, seed=3), expected[0], rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(out[0], expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out[1], expected[1], rtol=1e-5, atol=1e-5)
    return compiled


def test_inductor_gives_the_eager_chain():
    model, x = mlp(), torch.randn(8, 2)
    compiled = assert_same(model, x, clamp=(-2, 2), grad_clip=0.5)
    assert model.training and all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():  # weights are read, not baked
            p.add_(0.5)
    plain = LangevinDynamics(model, 0.1, clamp=(-2, 2), grad_clip=0.5)
    torch.testing.assert_close(compiled.sample(x, 4, seed=1), plain.sample(x, 4, seed=1))


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)), nn.SiLU()),
        lambda: nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)),
        lambda: lambda x: x.square().sum(1),
    ],
    ids=["spectral norm, three scales", "batch norm", "function"],
)
def test_models(no_inductor, model):
    assert_same(model(), torch.randn(8, 2))


@pytest.mark.parametrize("watched", [False, True])
def test_a_chain_asks_torch_for_its_code_twice(no_inductor, monkeypatch, watched):
    asked, run = [], CompiledGradient.run
    monkeypatch.setattr(
        CompiledGradient, "run", lambda self, *args: asked.append(self) or run(self, *args)
    )
    model, x = mlp(), torch.randn(8, 2)
    compiled, plain = (LangevinDynamics(model, 0.1, compile=c) for c in (True, False))
    for chain in range(3):
        out = compiled.sample(x, 7, seed=chain, return_diagnostics=watched)
        torch.testing.assert_close(out, plain.sample(x, 7, seed=chain, return_diagnostics=watched))
        assert len(asked) == 2 * (chain + 1)
        with torch.no_grad():
            model[0].weight.mul_(1.5)
        model[3].weight = nn.Parameter(torch.randn(16, 16))  # and another tensor


def test_a_model_that_changes_at_each_call_is_asked_for_at_each(no_inductor):
    class Counts(nn.Module):
        def forward(self, x):
            self.calls += 1
            return self.calls * x.square().sum(1)

    model, x, ends = Counts(), torch.randn(8, 2), []
    for compile in (False, True):
        sampler = LangevinDynamics(model, 0.01, compile=compile)
        for _ in range(2):  # the first chain makes one call more, to check the energy
            model.calls = 0
            end = sampler.sample(x, 6, seed=1)
        assert model.calls == 6
        ends.append(end)
    torch.testing.assert_close(ends[1], ends[0])


def test_a_function_of_a_parameter_leaves_no_graph(no_inductor):
    weight = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    x = torch.randn(8, 2, dtype=torch.float64)
    ends = [
        LangevinDynamics(lambda x: (weight * x).square().sum(1), 0.1, compile=c).sample(
            x, 5, seed=1
        )
        for c in (True, False)
    ]
    assert not ends[0].requires_grad and weight.grad is None
    torch.testing.assert_close(*ends)


def test_torch_told_to_compile_nothing(no_inductor):
    model, x = mlp(), torch.randn(8, 2)
    plain = LangevinDynamics(model, 0.1).sample(x, 4, seed=1)
    with torch.compiler.set_stance("force_eager"):
        end = LangevinDynamics(model, 0.1, compile=True).sample(x, 4, seed=1)
    torch.testing.assert_close(end, plain)


def test_what_was_compiled_dies_with_the_sampler(no_inductor):
    sampler = LangevinDynamics(mlp(), 0.1, compile=True)
    sampler.sample(torch.randn(8, 2), 4)
    model = weakref.ref(sampler.model)
    del sampler
    gc.collect()
    assert model() is None


def test_many_models_do_not_use_up_the_limit_of_recompilations(no_inductor):
    x = torch.randn(4, 2)
    with torch._dynamo.config.patch(recompile_limit=2):
        samplers = [LangevinDynamics(mlp(), 0.1, compile=True) for _ in range(4)]
        for sampler in samplers:
            sampler.sample(x, 1)


def test_model_arguments_and_the_loss(no_inductor):
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x, y):
            return self.net(x + y[:, None])

    model, x = Conditional(), torch.randn(8, 2)
    losses = []
    for compile in (False, True):
        sampler = LangevinDynamics(model, 0.1, compile=compile)
        loss = ImprovedContrastiveDivergence(model.eval(), sampler, k_steps=3)
        out = loss(x, {"y": torch.arange(8.0)}, seed=2)
        losses.append((out.loss.detach(), *torch.autograd.grad(out.loss, model.parameters())))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


def test_errors_say_what_is_wrong(no_inductor):
    class Branches(nn.Module):
        def forward(self, x):
            return x.square().sum(1) if x.sum() > 0 else x.sum(1)

    with pytest.raises(RuntimeError, match="compile=True: torch.compile fails.*compile=False"):
        LangevinDynamics(Branches(), 0.1, compile=True).sample(torch.randn(4, 2), 1)
    with pytest.raises(ValueError, match="depends on x"):
        LangevinDynamics(lambda x: torch.ones(4), 0.1, compile=True).sample(torch.randn(4, 2), 1)
    with pytest.raises(ValueError, match="shape"):
        LangevinDynamics(lambda x: x, 0.1, compile=True).sample(torch.randn(4, 2, 2), 1)
    sampler = LangevinDynamics(mlp(), 0.1, compile=True)
    sampler.sample(torch.randn(4, 2), 1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # the model's own
        sampler.sample(torch.randn(4, 3), 1)
