"""The gradient through the chains' last step, where torch has to be told how to take it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from loss_reference import gradients
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fastebm.chains import second_order
from fastebm.losses.improved import ImprovedContrastiveDivergence
from fastebm.samplers.langevin import LangevinDynamics

STEP, KL = 0.3, 5.0


def icd(model, x, sampled=None, k_steps=1, entropy_weight=0.0):
    sampler = LangevinDynamics(sampled or model, STEP, noise_std=0.0)
    loss = ImprovedContrastiveDivergence(
        model, sampler, k_steps=k_steps, kl_weight=KL, entropy_weight=entropy_weight
    )
    return loss(x).loss


def plain(model, x, e_last):
    """The same in plain torch of one step, whose energies are ``e_last(leaf)``."""
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(e_last(leaf).sum(), leaf, create_graph=True)
    x_kl = x - STEP * grad
    mean_pos, y = model(x).mean(), x_kl.detach().requires_grad_()
    mean_neg = model(y).mean()
    (v,) = torch.autograd.grad(mean_neg, y, retain_graph=True)
    return mean_pos - mean_neg + KL * (v * x_kl).sum()


def assert_same_gradients(mine, theirs):
    scale = max(g.abs().max() for g in theirs if g is not None)
    for a, b in zip(mine, theirs, strict=True):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        assert (a - b).abs().max() <= 1e-12 * scale


def spectral():
    sn = nn.utils.spectral_norm
    return nn.Sequential(sn(nn.Linear(3, 8)), nn.SiLU(), sn(nn.Linear(8, 1)), nn.Flatten(0))


def batch_norm():
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)
    )


class RunningScale(nn.Module):
    """Halves a buffer in each forward in training mode, past autograd's check."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3))
        self.register_buffer("scale", torch.ones(()))
        self.same = nn.Module()
        self.same.register_buffer("scale", self.scale)

    def forward(self, x):
        if self.training:
            self.scale.data.mul_(0.5)
        return torch.tanh((self.scale.clone() if self.training else self.scale) * (x @ self.w))


@pytest.mark.parametrize("make", [spectral, batch_norm, RunningScale])
def test_the_last_step_keeps_the_buffers_that_it_was_made_with(make):
    model, x = make().double(), torch.randn(16, 3, dtype=torch.float64)
    other = copy.deepcopy(model)
    mine = gradients(icd(model, x), model)
    buffers = {name: b.clone() for name, b in other.named_buffers()}
    eval_mode = copy.deepcopy(other).eval()
    tensors = {**dict(other.named_parameters()), **buffers}
    loss = plain(other, x, lambda leaf: functional_call(eval_mode, tensors, (leaf,)))
    assert_same_gradients(mine, gradients(loss, other))
    for name, b in other.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), b, rtol=1e-14, atol=0)


def test_buffers_are_the_same_tensors_afterwards_with_what_the_last_step_did_to_them():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3))
            self.register_buffer("in_place", torch.zeros(()))
            self.register_buffer("unseen", torch.zeros(()))
            self.register_buffer("replaced", torch.zeros(()))

        def forward(self, x):
            if x.requires_grad and not self.training:
                self.in_place.add_(1)
                self.unseen.data.add_(1)
                self.replaced = self.replaced + 1
            return torch.tanh(x @ self.w)

    model = Counting()
    in_place = model.in_place
    icd(model, torch.randn(4, 3), k_steps=3)
    assert model.in_place is in_place and model._buffers["replaced"] is model.replaced
    assert in_place == model.unseen == model.replaced == 3

    unchanged = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 1))
    unchanged.register_buffer("factor", torch.ones(1))
    loss = (unchanged(torch.randn(4, 3)) * unchanged.factor).sum()
    icd(unchanged, torch.randn(4, 3))
    loss.backward()  # no change that autograd would refuse

    def fails(x):
        raise KeyError

    model.forward = fails
    with pytest.raises(KeyError):
        LangevinDynamics(model, STEP).last_step(torch.randn(4, 3))
    assert model.in_place is in_place


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(4, 12), nn.Linear(4, 1), fused

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 1, 4)).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.mT / 2, -1) @ v
        return self.out(torch.tanh(y.squeeze(1))).mean((1, 2))


def attention_flags():
    cuda = torch.backends.cuda
    return (
        *(cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()),
        *(cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()),
    )


def test_attention_is_by_its_formula_in_the_last_step_alone():
    model, x = Attention(fused=True).double(), torch.randn(6, 5, 4, dtype=torch.float64)
    other = Attention(fused=False).double()
    other.load_state_dict(model.state_dict())
    before, seen = attention_flags(), []
    model.register_forward_pre_hook(lambda *_: seen.append(attention_flags()))
    mine = gradients(icd(model, x, k_steps=3, entropy_weight=0.3), model)
    assert_same_gradients(mine, gradients(icd(other, x, k_steps=3, entropy_weight=0.3), other))
    last = (False, False, True, False)
    assert seen == [before, before, last, before, before] and attention_flags() == before != last


@pytest.mark.parametrize("training", [True, False])
def test_layers_of_attention_have_a_gradient(training):
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, activation=F.silu)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(20, 1), nn.Flatten(0))
    model = model.double().train(training)
    x = torch.randn(6, 5, 4, dtype=torch.float64)
    mine = gradients(icd(model, x), model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_same_gradients(mine, gradients(plain(model, x, model), model))


def test_a_shared_setting_is_put_back_by_the_last_of_those_that_overlap():
    value, changes = ["found"], []

    def change():
        found, value[0] = value[0], "changed"
        changes.append(1)
        return lambda: value.__setitem__(0, found)

    setting = second_order.SharedSetting(change)
    setting.__enter__()
    with setting:
        setting.__exit__(None, None, None)  # the first in leaves first
        assert value == ["changed"] and len(changes) == 1
    assert value == ["found"]
    with pytest.raises(KeyError), setting:
        raise KeyError
    assert value == ["found"] and len(changes) == 2


class Checkpointed(nn.Module):
    def __init__(self, checkpointed):
        super().__init__()
        self.checkpointed, self.out = checkpointed, nn.Linear(8, 1)
        self.hidden = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh())

    def forward(self, x):
        if self.checkpointed:
            return self.out(checkpoint(self.hidden, x, use_reentrant=False)).squeeze(1)
        return self.out(self.hidden(x)).squeeze(1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("offloaded", [True, False])
def test_activation_checkpointing_changes_no_gradient(training, offloaded):
    model, other = (Checkpointed(c).double().train(training) for c in (True, False))
    other.load_state_dict(model.state_dict())
    x, found = torch.randn(16, 3, dtype=torch.float64), []
    for m in (model, other):
        torch.manual_seed(3)  # of the dropout
        if offloaded and m is model:
            with torch.autograd.graph.save_on_cpu():
                loss = icd(m, x, k_steps=2, entropy_weight=0.3)
        else:
            loss = icd(m, x, k_steps=2, entropy_weight=0.3)
        found.append(gradients(loss, m))
    assert_same_gradients(*found)


def test_checkpointing_acts_outside_of_the_last_step():
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(packed.append, lambda _: None):
        model, x = Checkpointed(False), torch.randn(4, 3)
        LangevinDynamics(model, STEP).last_step(x)
        assert not packed
        model(x)
        assert packed


COMPILED = {
    "module": lambda net: torch.compile(net, backend="aot_eager"),
    "submodule": lambda net: nn.Sequential(torch.compile(net[0], backend="aot_eager"), *net[1:]),
    "function": lambda net: torch.compile(lambda x: net(x), backend="aot_eager"),
}


@pytest.mark.parametrize("kind", [*COMPILED, "sampled"])
def test_compiled_code_is_differentiated_twice(kind):
    net = nn.Sequential(nn.Linear(3, 8), nn.Softplus(), nn.Linear(8, 1), nn.Flatten(0)).double()
    x = torch.randn(16, 3, dtype=torch.float64)
    right = gradients(icd(net, x, k_steps=2, entropy_weight=0.3), net)
    if kind == "sampled":
        loss = icd(net, x, COMPILED["module"](net), 2, 0.3)
    else:
        loss = icd(COMPILED[kind](net), x, None, 2, 0.3)
    assert_same_gradients(gradients(loss, net), right)
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_a_function_that_is_compiled_calls_eager_code_uncompiled():
    @second_order.uncompiled
    def inner(x):
        with second_order.eager_code():
            assert torch._dynamo.eval_frame._stance.stance == "force_eager"
            return x.square()

    step = torch.compile(lambda x: inner(x + 1) + 1, backend="eager")
    assert step(torch.ones(2)).tolist() == [5, 5] == inner(torch.full((2,), 2.0)).add(1).tolist()
