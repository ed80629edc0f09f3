"""What an energy may be, its input gradient, and the model's state around sampling."""

import pytest
import torch

from fastebm.energies.protocol import energy, input_gradient


@pytest.mark.parametrize("shape, expected", [((4,), (4,)), ((4, 1), (4,)), ((4, 3), (4, 3))])
def test_shapes_of_energies(shape, expected):
    assert energy(lambda x: torch.zeros(shape), torch.zeros(4, 2)).shape == expected


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 1, 1), (1, 4), (4, 0)])
def test_wrong_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"model must return energies .* B = 4"):
        energy(lambda x: torch.zeros(shape), torch.zeros(4, 2))


@pytest.mark.parametrize("value", [1.0, torch.zeros(4, dtype=torch.int64)])
def test_energy_must_be_a_float_tensor(value):
    with pytest.raises(TypeError, match="floating-point"):
        energy(lambda x: value, torch.zeros(4, 2))


def test_model_kwargs_reach_the_model():
    out = energy(lambda x, scale: x.sum(1) * scale, torch.ones(2, 3), scale=2.0)
    assert out.tolist() == [6.0, 6.0]


@torch.no_grad()
def test_input_gradient_sums_scales_and_works_under_no_grad():
    x = torch.randn(4, 3, dtype=torch.float64)
    grad, e = input_gradient(lambda x: torch.stack([x.sum(1), (x**2).sum(1)], 1), x)
    torch.testing.assert_close(grad, 1 + 2 * x)
    torch.testing.assert_close(e, x.sum(1) + (x**2).sum(1))
    assert not grad.requires_grad and not e.requires_grad and not x.requires_grad


def test_input_gradient_with_graph_is_differentiable_in_the_parameters():
    w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 2, dtype=torch.float64)
    grad, e = input_gradient(lambda x: w * (x**2).sum(1), x, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(grad.sum(), w)[0], 2 * x.sum())
    assert e.requires_grad


@pytest.mark.parametrize("by_a_parameter", [False, True])
def test_an_energy_that_does_not_depend_on_x_is_an_error(by_a_parameter):
    w = torch.zeros((), requires_grad=by_a_parameter)
    with pytest.raises(ValueError, match="depends on x"):
        input_gradient(lambda x: w.expand(len(x)), torch.zeros(4, 2))


def test_input_gradient_of_a_tensor_made_in_inference_mode():
    with torch.inference_mode():
        x = torch.ones(2, 3)
        grad, e = input_gradient(lambda x: x.square().sum(1), x)
    assert torch.equal(grad, 2 * x) and e.tolist() == [3.0, 3.0] and not grad.is_inference()
