"""Energies in standard units: their units, their box, and that the data's scale does not matter."""

import copy
import math
import time

import pytest
import torch
from torch import nn

from fastebm import Standardized
from fastebm.energies import GivenEnergy, MLPEnergy
from fastebm.energies.protocol import energy, input_gradient

UNIT = 2.0**-24  # of rounding in float32


def points(n=200, seed=0):
    """Coordinates of different places and scales."""
    g = torch.Generator().manual_seed(seed)
    return torch.tensor([5.0, -0.3, 0.0]) + torch.tensor([2.0, 0.01, 30.0]) * torch.randn(
        (n, 3), generator=g
    )


def network(seed=0):
    torch.manual_seed(seed)
    return MLPEnergy(3, (16, 16))


def test_coordinates_have_mean_0_and_standard_deviation_1():
    data = points()
    model = Standardized(network(), data)
    z = (data.double() - data.double().mean(0)) / data.double().std(0)
    # |z| < 4; x, mean and std are each rounded once: UNIT (|x| + |mean|) / std, and 3 UNIT |z|.
    size = (data.abs() + model.mean.abs()) / model.std
    assert (model.standardize(data) - z).abs().le(UNIT * (size + 3 * z.abs())).all()
    assert model.mean.dtype == model.std.dtype == torch.float32
    torch.testing.assert_close(
        model.std, data.double().std(0, correction=1).float(), rtol=0, atol=0
    )
    torch.testing.assert_close(model(data), model.energy(model.standardize(data)), rtol=0, atol=0)
    assert not torch.equal(model(data), model.energy(data))


def test_restore_undoes_standardize_up_to_rounding():
    model, x = Standardized(network(), points()), points(1000, seed=1) * 3
    # Three roundings of z and one of z std come to 4 UNIT |x - mean|, the last sum to UNIT |x|.
    bound = UNIT * (4 * (x - model.mean).abs() + x.abs()) * (1 + 8 * UNIT)
    assert ((model.restore(model.standardize(x)) - x).abs() <= bound).all()
    assert model.restore(model.standardize(x)).dtype == torch.float32
    for dtype in (torch.float64, torch.bfloat16):
        assert model.standardize(x.to(dtype)).dtype == model.restore(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("scale", [2.0**-7, 2.0**7, 0.01, 100.0])
def test_the_scale_of_the_data_does_not_matter(scale):
    data, x, net = points(), points(50, seed=1), network()
    one, other = Standardized(net, data), Standardized(copy.deepcopy(net), data * scale)
    tolerance = {"rtol": 0, "atol": 0}  # a power of two changes no bit
    if scale in (0.01, 100.0):
        # z errs by some UNIT (|x| + |mean|) / std, below 400 UNIT here (-0.3 of std 0.01), so E and
        # its gradient in z, of slopes below 10, by 4000 UNIT, also after a chain of short steps.
        tolerance = {"rtol": 0, "atol": 4000 * UNIT}
    torch.testing.assert_close(other(x * scale), one(x), **tolerance)

    (grad, _), (scaled, _) = input_gradient(one, x), input_gradient(other, x * scale)
    torch.testing.assert_close(scaled * other.std, grad * one.std, **tolerance)

    for model, batch in ((one, x), (other, x * scale)):
        energy(model, batch).mean().backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, **tolerance)

    def chain(model, x, n_steps=5, step=0.05):
        """In standard units, by hand."""
        z, g = model.standardize(x), torch.Generator().manual_seed(3)
        for _ in range(n_steps):
            noise = math.sqrt(2 * step) * torch.randn(z.shape, generator=g)
            z = z - step * input_gradient(model.energy, z)[0] + noise
        return z, model.restore(z)

    (z, ends), (z_scaled, ends_scaled) = chain(one, x), chain(other, x * scale)
    torch.testing.assert_close(z_scaled, z, **tolerance)
    in_units = {k: v * 100 for k, v in tolerance.items()}  # of std 30, and means
    torch.testing.assert_close(ends_scaled / scale, ends, **in_units)


def test_a_constant_coordinate_is_only_shifted():
    for n in (6, 7, 11, 300):
        data = points(n).double()
        data[:, 1] = 0.1  # the mean of n of which may not be 0.1
        model = Standardized(network(), data)
        assert model.std[1] == 1 and model.mean[1] == 0.1
        assert (model.standardize(data)[:, 1] == 0).all()
    data = points(7)
    data[:, 1] = 0.1
    data[3, 1] = 0.1 + 1e-8  # the next number
    assert 0 < Standardized(network(), data).std[1] < 1e-8
    data[:, 1] = 0.0
    data[0, 1] = 1e-45  # has no standard deviation in float32
    assert Standardized(network(), data).std[1] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_moments_are_exact_and_of_the_datas_dtype_or_better(dtype):
    data = (300 + points()).to(dtype)
    data[0, 1] = 290.0  # in bfloat16 the others are all 300
    model = Standardized(lambda z: z.sum(1), data)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert model.mean.dtype == model.std.dtype == expected
    assert torch.equal(model.mean, data.double().mean(0).to(expected))
    assert torch.equal(model.std, data.double().std(0).to(expected))


def test_the_box_in_standard_units():
    data = points()
    model = Standardized(network(), data)
    lo, hi = model.bounds((-1, 2.5))
    assert lo.shape == hi.shape == (3,)
    torch.testing.assert_close(lo, model.standardize(torch.full((1, 3), -1.0))[0], rtol=0, atol=0)
    torch.testing.assert_close(hi, model.standardize(torch.full((1, 3), 2.5))[0], rtol=0, atol=0)
    assert model.bounds(None) is None and model.bounds((None, None)) == (None, None)
    assert model.bounds((None, 2.5))[0] is None and model.bounds((0.0, None))[1] is None
    assert torch.equal(model.bounds((None, 2.5))[1], hi)
    for bad in ((1.0, 0.0), (math.nan, 1.0), (0.0, math.nan), (1.0,), 3.0, ("a", 1.0)):
        with pytest.raises(ValueError, match=r"clamp must be \(lo, hi\)"):
            model.bounds(bad)


def test_it_is_saved_with_the_model():
    data = points()
    model, other = Standardized(network(), data), Standardized(network(1), torch.randn(5, 3))
    assert set(model.state_dict()) == {
        "mean",
        "std",
        *("energy." + k for k in network().state_dict()),
    }
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(data), model(data)) and torch.equal(
        copy.deepcopy(model)(data), model(data)
    )
    assert [*model.parameters()] == [*model.energy.parameters()]  # the moments are none of them
    assert torch.equal(
        model.double().standardize(data.double())[0], model.standardize(data.double()[:1])[0]
    )
    assert model.mean.dtype == torch.float64


def test_events_of_any_shape_arguments_scales_and_operators():
    def scales(z, factor=1.0):
        return factor * z.flatten(1)[:, :2]

    data = 3 + 2 * torch.randn(20, 2, 3)
    model = Standardized(scales, data)
    assert model.mean.shape == (2, 3) and isinstance(model.energy, GivenEnergy)
    z = model.standardize(data)
    assert torch.equal(model(data), scales(z)) and torch.equal(
        model(data, factor=2.0), scales(z, 2)
    )
    torch.testing.assert_close((2 * model)(data), 2 * scales(z).sum(1))
    numbers = torch.randn(9)
    model = Standardized(lambda z: z, numbers)
    assert model(numbers).shape == (9,)
    with pytest.raises(ValueError, match=r"x must be \(B\) as the data, got \(\)"):
        model(numbers[0])


def test_bad_input_is_refused():
    net, data = network(), points(5)
    for bad, error, match in (
        (data[:1], ValueError, r"data must be .* at least 2 samples, got shape \(1, 3\)"),
        (data[0, 0], ValueError, r"at least 2 samples, got shape \(\)"),
        (data[:, :0], ValueError, r"data must be"),
        (data.long(), TypeError, r"data must be a floating-point tensor .* got torch.int64"),
        (data.tolist(), TypeError, r"data must be a floating-point tensor .* got list"),
        (data / 0, ValueError, r"data must be finite, got 15 of 15 values that are not"),
        (data.double() * 1e160, ValueError, r"data must have a finite variance"),
    ):
        with pytest.raises(error, match=match):
            Standardized(net, bad)
    with pytest.raises(TypeError, match="energy must be callable, got int"):
        Standardized(3, data)
    model = Standardized(net, data)
    for name, call in (("x", model), ("x", model.standardize), ("z", model.restore)):
        for shape in ((4, 2), (4, 1), (3,), (4, 3, 1), ()):
            with pytest.raises(ValueError, match=rf"{name} must be \(B, 3\) as the data, got"):
                call(torch.zeros(shape))
        with pytest.raises(
            TypeError, match=f"{name} must be a floating-point tensor, got torch.int64"
        ):
            call(torch.zeros(4, 3).long())


def test_a_process_of_several_trains_it_as_any_module(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = Standardized(network(), points())
        twin, wrapped = copy.deepcopy(model), nn.parallel.DistributedDataParallel(model)
        x = points(10)
        wrapped(x).mean().backward()
        twin(x).mean().backward()
        for p, q in zip(wrapped.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    finally:
        # A thread of gloo asks for the GIL to give back the last reduction, and the wrapper, going,
        # waits for that thread with the GIL: for ever, if it has not had it by then (torch 2.13).
        time.sleep(0.1)
        torch.distributed.destroy_process_group()
