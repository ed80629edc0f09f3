"""The networks: shapes, independence of samples, derivatives, constraints on weights, errors."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from fastebm import ImprovedContrastiveDivergence, LangevinDynamics, MultiScaleEnergy
from fastebm.energies import ConvEnergy, MLPEnergy, ResNetEnergy, WeightStandardization
from fastebm.energies.protocol import input_gradient
from fastebm.energies.sampling_mode import sampling_mode

CONSTANT = "fastebm.energies.sampling_mode._constant"  # forward of parametrised weights in chains

IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def resnet(**options):
    net = ResNetEnergy((3, 16, 16), width=8, blocks=1, **options).double()
    for name, p in net.named_parameters():  # so that no part is still the identity
        if "gamma" in name or "labels" in name:
            nn.init.normal_(p)
    return net


NETS = {
    "mlp": (lambda **o: MLPEnergy(6, (8, 8), **o).double(), (2, 3)),
    "conv": (lambda **o: ConvEnergy((1, 8, 8), width=4, **o).double(), (1, 8, 8)),
    "resnet": (resnet, (3, 16, 16)),
    "instance": (lambda **o: resnet(norm="instance", **o), (3, 16, 16)),
}
each_net = pytest.mark.parametrize("name", NETS)


def built(name, **options):
    make, event = NETS[name]
    return make(**options), torch.rand(4, *event, dtype=torch.float64)


def weights_of(model):
    """Every parametrised weight's value, by module."""
    return {
        name: module.weight
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module, "weight")
    }


@pytest.mark.parametrize("shape", IMAGES)
def test_shapes_and_sizes(shape):
    x = torch.rand(2, *shape)
    assert MLPEnergy(math.prod(shape))(x).shape == ConvEnergy(shape)(x).shape == (2,)
    assert ResNetEnergy(shape, width=8)(x).shape == (2,)
    assert ConvEnergy(shape)(x[:0]).shape == MLPEnergy(math.prod(shape))(x[:0]).shape == (0,)
    if shape == (1, 28, 28):
        assert 300_000 < sum(p.numel() for p in ConvEnergy(shape).parameters()) < 320_000


def test_stages_of_the_resnet():
    def sides(net, x):
        seen = []
        for layer in net.layers:
            layer.register_forward_hook(
                lambda layer, args, out: seen.append((type(layer).__name__[:4], *out.shape[1:3]))
            )
        net(x)
        return seen

    assert sides(ResNetEnergy((3, 32, 32), width=2, blocks=1), torch.rand(1, 3, 32, 32)) == [
        ("Resi", 2, 16), ("Resi", 4, 8), ("Self", 4, 8), ("Resi", 8, 4),
    ]  # fmt: skip
    large = sides(ResNetEnergy((3, 128, 128), width=2), torch.rand(1, 3, 128, 128))
    assert [s for s in large if s[0] == "Self"] == [("Self", 8, 8)]
    assert len(large) == 11 and large[-1] == ("Resi", 8, 4)


def test_mlp_is_a_plain_sequential():
    net = MLPEnergy(3, (5, 4), activation="tanh")
    assert [type(m) for m in net.net] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    x = torch.randn(7, 3)
    assert torch.equal(net(x), net.net(x)[:, 0])


@each_net
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_a_sample_is_alone_also_in_training_mode(name, spectral_norm):
    net, x = built(name, spectral_norm=spectral_norm)
    net.train(not spectral_norm)  # each call in training advances the power iteration
    other = torch.cat([x[:1], 10 * torch.randn_like(x)])
    torch.testing.assert_close(net(x)[0], net(other)[0], rtol=1e-9, atol=1e-9)


@each_net
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_derivatives(name, spectral_norm):
    # Input gradient by central differences, and the derivative of <v, grad E> in every parameter,
    # what ICD's last step needs, along a random direction.
    net, x = built(name, spectral_norm=spectral_norm)
    net.eval()
    g = torch.Generator().manual_seed(1)
    v = torch.randn(x.shape, generator=g, dtype=x.dtype)
    parameters = list(net.parameters())
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in parameters]
    grad, _ = input_gradient(net, x, create_graph=True)
    h = 1e-5
    difference = (net(x + h * v).sum() - net(x - h * v).sum()) / (2 * h)
    torch.testing.assert_close((grad * v).sum(), difference, rtol=1e-5, atol=1e-7)

    second = torch.autograd.grad((grad * v).sum(), parameters, allow_unused=True)
    along = sum((s * d).sum() for s, d in zip(second, direction, strict=True) if s is not None)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += sign * h * d
        values.append((input_gradient(net, x)[0] * v).sum())
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p -= sign * h * d
    torch.testing.assert_close(along, (values[0] - values[1]) / (2 * h), rtol=1e-4, atol=1e-6)


def test_weight_standardization():
    weight = 3 + 5 * torch.randn(4, 3, 3, 3, dtype=torch.float64)
    rows = WeightStandardization()(weight).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(4).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.square().sum(1), torch.ones(4).double(), rtol=1e-6, atol=0)
    constant = WeightStandardization()(torch.ones(2, 1, 3, 3))
    assert torch.equal(constant, torch.zeros_like(constant))


def test_standardised_convolution_keeps_the_scale():
    # Inputs of variance 1 give outputs of mean square 1 in the mean over channels.
    x = torch.randn(64, 16, 8, 8, dtype=torch.float64)
    conv = nn.Conv2d(16, 64, 3, bias=False).double()
    parametrize.register_parametrization(conv, "weight", WeightStandardization())
    assert conv(x).square().mean().item() == pytest.approx(1, abs=0.02)


@each_net
def test_spectral_norm_bounds_every_weight(name):
    net, x = built(name, spectral_norm=True)
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for layer in layers * 200:
        _ = layer.weight  # training mode: the power iteration converges
    net.eval()
    assert len(layers) == len(weights_of(net)) and layers
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert norm == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("name", ["conv", "resnet"])
def test_chains_compute_parametrised_weights_once(name, monkeypatch):
    net, x = built(name, spectral_norm=True)
    weights = [m for m in net.modules() if isinstance(m, parametrize.ParametrizationList)]
    parts = [part for weight in weights for part in weight]
    calls = []
    for part in parts:
        part.register_forward_hook(lambda module, *_: calls.append(module))
    buffers = [b.clone() for b in net.buffers()]
    sampler = LangevinDynamics(net, 0.01)
    cached = sampler.sample(x, 5, seed=0)
    assert len(calls) == len(parts) == len(set(calls)) > 0
    for before, after in zip(buffers, net.buffers(), strict=True):
        assert torch.equal(before, after)  # no power iteration

    calls.clear()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    assert not torch.equal(sampler.sample(x, 5, seed=0), cached)  # nothing stale is left
    assert len(calls) == len(parts)

    calls.clear()
    monkeypatch.setattr(CONSTANT, parametrize.ParametrizationList.forward)
    again = sampler.sample(x, 5, seed=0)
    assert len(calls) == 5 * len(parts)
    monkeypatch.undo()
    assert torch.equal(again, sampler.sample(x, 5, seed=0))


class CountCalls(TorchDispatchMode):
    """How many operators are dispatched, views included."""

    n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += 1
        return function(*args, **(kwargs or {}))


def dispatches_per_step(net, x):
    counts = []
    for n_steps in (2, 6):
        with CountCalls() as count:
            LangevinDynamics(net, 0.01).sample(x, n_steps, seed=0)
        counts.append(count.n)
    return (counts[1] - counts[0]) / 4


def test_standardisation_costs_a_step_nothing(alone, monkeypatch):
    net, x = ResNetEnergy((3, 16, 16), width=4), torch.rand(2, 3, 16, 16)
    hoisted = dispatches_per_step(net, x)
    monkeypatch.setattr(CONSTANT, parametrize.ParametrizationList.forward)
    every = dispatches_per_step(net, x)
    per_weight = 8  # operators of one standardisation
    assert every - hoisted == per_weight * len(weights_of(net))


@pytest.mark.parametrize("name", ["resnet", "conv"])
def test_loss_has_the_gradient_of_written_out_weights(name):
    # ICD's loss, second derivatives of the last step included, by the net, and by a copy without
    # parametrisations whose weights are given to it as functions of the net's originals.
    net, x = built(name, spectral_norm=name == "conv")
    net.eval()  # no power iteration between the two
    plain, _ = built(name, spectral_norm=name == "conv")
    plain.eval()
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    originals = dict(net.named_parameters())

    def written_out(x):
        values = {}
        for name, p in originals.items():
            if name.endswith(".parametrizations.weight.original"):
                name = name.removesuffix(".parametrizations.weight.original")
                layer = net.get_submodule(name).parametrizations.weight
                p, name = layer[0](p), f"{name}.weight"
            values[name] = p
        return torch.func.functional_call(plain, values, (x,))

    grads = []
    for model in (net, written_out):
        net.zero_grad()
        sampler = LangevinDynamics(model, 0.01)
        loss = ImprovedContrastiveDivergence(model, sampler, k_steps=3)(x, seed=0).loss
        grads.append(torch.autograd.grad(loss, list(originals.values()), allow_unused=True))
    assert len(weights_of(net)) > 0
    for (name, p), a, b in zip(originals.items(), *grads, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")
            assert p.dim() < 2 or a.abs().max() > 0


def test_an_open_cache_of_the_caller_is_an_error():
    net, x = built("resnet")
    with parametrize.cached(), pytest.raises(RuntimeError, match="parametrize.cached"):
        LangevinDynamics(net, 0.01).sample(x, 2)
    plain, x = built("mlp")
    with parametrize.cached():
        LangevinDynamics(plain, 0.01).sample(x, 2)
    net, x = built("resnet")
    with sampling_mode(net), sampling_mode(net):  # our own, nested, is not
        net(x)


def test_labels():
    net, x = built("resnet", n_classes=5)
    y = torch.tensor([0, 3, 3, 4])
    each = net(x, y=y)
    torch.testing.assert_close(net(x, y=3)[1:3], each[1:3])
    assert (net(x, y=0)[1:] - each[1:]).abs().min() > 1e-6
    for wrong in (5, -1, y.int(), y[:2], None):
        with pytest.raises(ValueError, match="y"):
            net(x, y=wrong)
    with pytest.raises(ValueError, match="no y"):
        resnet()(x, y=3)
    fresh = ResNetEnergy((3, 16, 16), width=8, n_classes=5).double()
    assert torch.equal(fresh(x, y=0), fresh(x, y=4))  # until trained, labels say nothing
    both = net.given(y=3) + net.given(y=4)
    torch.testing.assert_close(both(x), net(x, y=3) + net(x, y=4))
    assert LangevinDynamics(both, 0.01).sample(x, 2).shape == x.shape


def test_attention_starts_as_the_identity_and_then_acts():
    with_attention = ResNetEnergy((3, 16, 16), width=8).double()
    x = torch.rand(2, 3, 16, 16).double()
    gammas = [p for name, p in with_attention.named_parameters() if "gamma" in name]
    before = with_attention(x)
    assert len(gammas) == 1 and gammas[0] == 0
    nn.init.ones_(gammas[0])
    assert not torch.allclose(with_attention(x), before)
    plain = ResNetEnergy((3, 16, 16), width=8, attention=False)
    assert not any("gamma" in name for name, _ in plain.named_parameters())


def test_multiscale():
    nets = [ConvEnergy((1, 16 // f, 16 // f), width=4).double() for f in (1, 2, 4)]
    model, x = MultiScaleEnergy(nets), torch.rand(3, 1, 16, 16).double()
    blocks = x.reshape(3, 1, 4, 4, 4, 4).mean((3, 5))  # averages over 4x4
    e = model(x)
    assert e.shape == (3, 3)
    torch.testing.assert_close(e[:, 0], nets[0](x))
    torch.testing.assert_close(e[:, 2], nets[2](blocks))
    grad, total = input_gradient(model, x)
    torch.testing.assert_close(total, e.sum(1))
    loss = ImprovedContrastiveDivergence(model, LangevinDynamics(model, 0.01), None, k_steps=2)
    loss(x).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    for factors, match in (((1, 2), "one for each of factors"), ((1, 2, 0), "factors must be")):
        with pytest.raises(ValueError, match=match):
            MultiScaleEnergy(nets, factors)
    with pytest.raises(ValueError, match=r"multiples .* got \(3, 1, 14, 14\)"):
        model(torch.zeros(3, 1, 14, 14))


@each_net
def test_moving_average_is_a_model_for_chains(name):
    # torch's AveragedModel as it is: parameters averaged before the parametrisation, buffers (the
    # vectors of spectral norm) those of the model.
    net, x = built(name, spectral_norm=True)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ema.update_parameters(net)  # the first copies
    before = [p.detach().clone() for p in net.parameters()]
    net(x)  # a power iteration
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    ema.update_parameters(net)
    for old, new, mean in zip(before, net.parameters(), ema.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.9 * old + 0.1 * new)
    for own, averaged in zip(net.buffers(), ema.module.buffers(), strict=True):
        assert torch.equal(own, averaged)
    sampler = LangevinDynamics(ema, 0.01)
    out = sampler.sample(x, 3, seed=0)
    other, _ = built(name, spectral_norm=True)
    other.load_state_dict(ema.module.state_dict())
    assert torch.equal(out, LangevinDynamics(other, 0.01).sample(x, 3, seed=0))
    assert not torch.equal(out, LangevinDynamics(net, 0.01).sample(x, 3, seed=0))


@each_net
def test_state_dict_round_trip(name):
    net, x = built(name, spectral_norm=True)
    other, _ = built(name, spectral_norm=True)
    other.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(x), other.eval()(x))


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: MLPEnergy(0), "dim must be"),
        (lambda: MLPEnergy(2, (3, 0)), "hidden must be"),
        (lambda: MLPEnergy(2, activation="swish"), "activation must be one of silu"),
        (lambda: MLPEnergy(2)(torch.zeros(4, 3)), "samples of 2 elements"),
        (lambda: ConvEnergy((28, 28)), r"shape must be \(C, H, W\)"),
        (lambda: ConvEnergy((1, 3, 28)), "at least 4"),
        (lambda: ConvEnergy((1, 8, 8), width=0), "width must be"),
        (lambda: ConvEnergy((1, 8, 8))(torch.zeros(2, 1, 8, 9)), r"x must be \(B, 1, 8, 8\)"),
        (lambda: ResNetEnergy((3, 4, 8)), "at least 8"),
        (lambda: ResNetEnergy((3, 8, 8), norm="batch"), "norm must be group or instance"),
        (lambda: ResNetEnergy((3, 8, 8), blocks=0), "blocks must be"),
        (lambda: ResNetEnergy((3, 8, 8), n_classes=0), "n_classes must be"),
        (lambda: ResNetEnergy((3, 8, 8))(torch.zeros(3, 8, 8)), r"x must be \(B, 3, 8, 8\)"),
    ],
)
def test_wrong_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()
