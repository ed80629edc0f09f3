"""A loss and its chains have one model."""

import copy
from functools import partial

import pytest
import torch
from loss_reference import mlp
from torch import nn

from fastebm.energies import (
    RBM,
    EnergyFromLogProb,
    GivenEnergy,
    MultiScaleEnergy,
    SumEnergy,
    TemperedEnergy,
)
from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.improved import ImprovedContrastiveDivergence
from fastebm.losses.maximum_likelihood import MaximumLikelihood
from fastebm.losses.persistent import PersistentContrastiveDivergence
from fastebm.replay.buffer import ReplayBuffer
from fastebm.samplers.gibbs import GibbsSampler
from fastebm.samplers.langevin import LangevinDynamics


class Classifier(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def energy(self, x):
        return -self.net(x).logsumexp(1)

    log_prob = energy


class Hides(nn.Module):
    """A parameter of its own, and a net that is not registered."""

    def __init__(self, net):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.nets = [self, net]

    def forward(self, x):
        return self.scale * self.nets[1](x)


OTHER = mlp()
WRAPPED = {
    "method": lambda net: Classifier(net).energy,
    "partial": lambda net: partial(Classifier(net).energy),
    "function": lambda net: lambda x: net(x),
    "log prob": lambda net: EnergyFromLogProb(Classifier(net)),
    "tempered": lambda net: TemperedEnergy(net, 2.0),
    "sum": lambda net: SumEnergy((OTHER, net)),
    "sum of a method": lambda net: GivenEnergy(Classifier(net).energy) + OTHER,
    "sum of a function": lambda net: GivenEnergy(lambda x: net(x)) + OTHER,
    "scales": lambda net: MultiScaleEnergy([net, OTHER, OTHER]),
    "hidden": Hides,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "traced": lambda net: torch.jit.trace(net, torch.zeros(1, 2).double()),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_what_wraps_a_model_is_the_same(wrap):
    net = mlp()
    for model, sampled in ((net, wrap(net)), (wrap(net), net), (wrap(net), wrap(net))):
        ContrastiveDivergence(model, LangevinDynamics(sampled, 0.1))


OTHERS = {
    "copy": copy.deepcopy,
    "average": torch.optim.swa_utils.AveragedModel,
    "method": lambda net: Classifier(copy.deepcopy(net)).energy,
    "hidden": lambda net: Hides(OTHER),
    "layer of functions": lambda net: nn.TransformerEncoderLayer(4, 2),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_model_is_refused(other):
    net = mlp()
    sampler = LangevinDynamics(other(net), 0.1)
    for make in (ContrastiveDivergence, ImprovedContrastiveDivergence, MaximumLikelihood):
        with pytest.raises(ValueError, match="sampler.model must be the loss's model"):
            make(net, sampler)
    with pytest.raises(ValueError, match="sampler.model must be"):
        PersistentContrastiveDivergence(net, sampler, ReplayBuffer(4, (2,)))
    loss = ContrastiveDivergence(net, LangevinDynamics(net, 0.1))
    loss.sampler = sampler
    with pytest.raises(ValueError, match="sampler.model must be"):
        loss(torch.zeros(4, 2).double())


def test_another_machine_is_refused():
    with pytest.raises(ValueError, match="sampler.model must be"):
        ContrastiveDivergence(RBM(4, 3), GibbsSampler(RBM(4, 3)))


def test_a_copied_loss_has_the_copied_model():
    net = mlp()
    loss = copy.deepcopy(ContrastiveDivergence(net, LangevinDynamics(net, 0.1), k_steps=1))
    assert loss.model is loss.sampler.model is not net
    loss(torch.zeros(4, 2).double())
