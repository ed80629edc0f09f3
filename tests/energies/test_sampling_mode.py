"""The state of a model while chains run, and that it comes back as it was."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from fastebm import ContrastiveDivergence, LangevinDynamics, ais
from fastebm.energies import EnergyFromLogProb, GivenEnergy, SumEnergy, TemperedEnergy
from fastebm.energies.sampling_mode import module_of, sampling_mode

pytestmark = pytest.mark.usefixtures("alone")


class Classifier(nn.Module):
    """A joint energy model, whose layers all work otherwise in training."""

    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 3))

    def energy(self, x):
        return -self.f(x).logsumexp(1)

    forward = energy


def bowl(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(1)


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Classifier())


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = scripted()

    def forward(self, x):
        return self.inner(x)


def state(module):
    flags = [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]
    shadows = ["training" in vars(m) for m in module.modules()]  # of an attribute in C++
    return *flags, [b.clone() for b in module.buffers()], shadows


CALLABLES = {
    "module": lambda m: m,
    "method": lambda m: m.energy,
    "forward": lambda m: m.forward,
    "partial": partial,
    "partial of a method": lambda m: partial(m.energy),
    "partial of a partial": lambda m: partial(partial(m.energy)),
    "decorated": lambda m: torch.enable_grad()(m.energy),
    "compiled": torch.compile,
    "compiled method": lambda m: torch.compile(m.energy),
    "composed": lambda m: TemperedEnergy(m.energy, 2.0) + m,
    "in a partial": lambda m: GivenEnergy(partial(m.energy)),
    "of a log density": lambda m: SumEnergy([EnergyFromLogProb(m.energy)]),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_the_module_behind_a_callable_is_in_eval_mode_frozen_and_restored(name):
    module = Classifier()
    module.f[2].bias.requires_grad_(False)
    module.f[1].eval()
    model, seen = CALLABLES[name](module), []
    before, others = state(module), copy.deepcopy(module).eval()
    with sampling_mode(model), torch.compiler.set_stance("force_eager"):
        seen += [*map(lambda m: m.training, module.modules())]
        seen += [p.requires_grad for p in module.parameters()]
        x = torch.randn(5, 2)
        assert torch.equal(module.energy(x), others.energy(x))
    assert len(seen) == 9 and not any(seen)
    assert all(torch.equal(a, b) for a, b in zip(before[2], state(module)[2], strict=True))
    after = state(module)
    assert (after[0], after[1], after[3]) == (before[0], before[1], before[3])


def test_chains_from_noise_start_in_the_dtype_of_the_module_behind():
    module = Classifier().double()
    for name in ("module", "partial of a method", "composed"):
        sampler = LangevinDynamics(CALLABLES[name](module), 0.1)
        assert sampler.sample(n_samples=4, dim=2, n_steps=1).dtype == torch.float64


def test_any_other_function_is_left_alone():
    module = Classifier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(bowl)
    for other in (lambda x: module(x), torch.nn.functional.relu, module.state_dict().copy, script):
        assert module_of(other) is None
        with sampling_mode(other):
            assert module.training


@pytest.mark.parametrize("make", [scripted, Holder])
def test_scripted_modules_are_in_eval_mode_and_come_back(make):
    net = make()
    before, x = state(net), 9 + torch.randn(16, 2)
    with sampling_mode(net):
        assert not any(m.training for m in net.modules())
        assert torch.equal(net(x), net(x))  # no dropout
    LangevinDynamics(net, 0.1).sample(x, 3)
    after = state(net)
    assert (after[0], after[1], after[3]) == (before[0], before[1], before[3])
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert not net.training and torch.equal(net(x), net(x))


def test_traced_and_frozen_scripts_compute_what_they_were_traced_with():
    x = torch.randn(6, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Classifier().eval(), x).train()
        frozen = torch.jit.freeze(torch.jit.script(Classifier().eval()))
    expected = traced(x)
    for net in (traced, frozen):
        LangevinDynamics(net, 0.1).sample(x, 2)
    assert torch.equal(traced(x), expected) and traced.training


@pytest.mark.parametrize("fails", [False, True])
def test_sampling_mode_restores_every_flag(fails):
    model = Classifier()
    model.f[2].weight.requires_grad_(False)
    before = state(model)[:2]
    try:
        with sampling_mode(model), sampling_mode(model):
            assert not any(p.requires_grad for p in model.parameters())
            assert not any(m.training for m in model.modules())
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert state(model)[:2] == before


def test_sampling_mode_can_leave_parameters_alone():
    model = Classifier()
    with sampling_mode(model, freeze=False):
        assert all(p.requires_grad for p in model.parameters()) and not model.training


@pytest.mark.parametrize("layer", [nn.LazyLinear(1), nn.LazyBatchNorm1d(affine=False)])
def test_lazy_modules_are_named_before_any_work(layer):
    net, x, calls = nn.Sequential(layer, nn.Linear(2, 1)), torch.randn(4, 2), []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    sampler = LangevinDynamics(net, 0.1)
    base = ais.GaussianBase(torch.zeros(2), torch.ones(2))
    for use in (
        lambda: sampler.sample(x, 1),
        lambda: sampler.sample(n_samples=2, dim=2),
        lambda: ContrastiveDivergence(net, sampler)(x),
        lambda: ais.ais(net, base, 3, n_chains=2),
    ):
        with pytest.raises(ValueError, match="model has parameters that are not .*run it once"):
            use()
    assert not calls


def test_ais_in_inference_mode_has_its_numbers():
    base = ais.GaussianBase(torch.zeros(2), torch.ones(2))

    def estimate():
        return ais.ais(lambda x: x.square().sum(1), base, 5, n_chains=8, step_size=0.1, seed=0)

    with torch.inference_mode():
        inside = estimate()
    assert float(inside.log_z) == float(estimate().log_z)
