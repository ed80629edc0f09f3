"""What bounds a Langevin step beside clips of gradients: its displacement, boxes of tensors."""

import math

import pytest
import torch
from conftest import SIMD_LEVELS
from test_langevin import bits, bounded, rng, sample

from fastebm import ops
from fastebm.ops import reference

INF = math.inf


def specials(dtype, dim):
    """Every pair of special values, as x and grad (B, dim)."""
    wide = torch.promote_types(dtype, torch.float32)
    values = torch.tensor([0.0, 0.5, 1.0, 3.0, INF, torch.finfo(dtype).tiny], dtype=wide)
    values = torch.cat([values, -values, torch.tensor([math.nan], dtype=wide)])
    return torch.cartesian_prod(values, values).repeat(dim, 1).T.reshape(2, -1, dim).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [3, 8, 72])
@pytest.mark.parametrize("displacement", [0.3, 1.0, 1e-60, 1e60])
def test_bits_of_the_displacement(device, dtype, dim, displacement, set_simd):
    """The free step, bounded about x by comparisons that are false for NaN, then by the box."""
    x, g = specials(dtype, dim)
    wide = torch.promote_types(dtype, torch.float32)

    def step(x, g, **options):
        args = (x.to(device, copy=True), g.to(device), 1.0, 0.2, rng(device))
        return ops.langevin_step_(*args, **options).cpu()

    for level in SIMD_LEVELS:
        set_simd(level)
        free, centre = step(x.to(wide), g.to(wide)), x.to(wide)
        reach = torch.tensor(displacement, dtype=torch.float64).to(wide)
        near = torch.where(free < centre - reach, centre - reach, free)
        near = torch.where(near > centre + reach, centre + reach, near)
        out = step(x, g, displacement_clip=displacement)
        assert torch.equal(bits(out), bits(near.to(dtype))), level
        in_box = step(x, g, displacement_clip=displacement, clamp=(-0.5, 0.7))
        assert torch.equal(bits(in_box), bits(bounded(near, -0.5, 0.7).to(dtype))), level
        assert torch.equal(bits(step(x, g, displacement_clip=INF)), bits(free.to(dtype))), level


def test_the_displacement_bounds_noise_too(device):
    x = torch.randn(9, 70, dtype=torch.float64, device=device)
    for grad in (None, 50 * torch.randn_like(x)):
        moved = ops.langevin_step_(x.clone(), grad, 0.1, 2.0, rng(device), displacement_clip=0.5)
        assert (moved - x).abs().max() <= 0.5 + 1e-15
        assert ((moved - x).abs() > 0.49).double().mean() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_the_displacement_are_torch_clamps(device, dtype):
    """On the bound too, and where clip and box act as well."""
    x = torch.tensor([[0.0, 0.5, -0.5, 0.25, 0.875, -1.0]], dtype=dtype, device=device)
    g = torch.tensor([[1.0, 4.0, -2.0, 0.5, -9.0, 1.0]], dtype=dtype, device=device)
    x.requires_grad_(), g.requires_grad_()
    weights = torch.randn_like(x)
    bounds = {"displacement_clip": 0.5, "grad_clip": 2.0, "clamp": (-1.0, 1.0)}
    out = ops.langevin_step(x, g, 0.5, 0.0, rng(device), **bounds)
    plain = (x + (-0.5 * g.clamp(-2, 2)).clamp(-0.5, 0.5)).clamp(-1, 1)
    assert torch.equal(out, plain)
    mine, torchs = (torch.autograd.grad((o * weights).sum(), (x, g)) for o in (out, plain))
    for a, b in zip(mine, torchs, strict=True):
        torch.testing.assert_close(a, b)


BOXES = {
    "dimension": (torch.linspace(-1, 0, 6).view(2, 3), torch.linspace(0.1, 1, 6).view(2, 3)),
    "sample": (-torch.linspace(0, 1, 4).view(4, 1, 1), torch.linspace(0.2, 1, 4).view(4, 1, 1)),
    "element": (-torch.linspace(0, 1, 24).view(4, 2, 3), torch.linspace(0, 2, 24).view(4, 2, 3)),
    "a number beside": (-0.5, torch.linspace(0, 1, 3)),
    "one face": (torch.linspace(-1, 0, 3), None),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_boxes_of_tensors(device, dtype, box):
    x, g = sample((4, 2, 3), dtype, device)
    box = tuple(face.to(device) if isinstance(face, torch.Tensor) else face for face in box)
    noise = ops.langevin_step_(torch.zeros(x.shape, device=device), None, 0.0, 1.0, rng(device))
    args = (0.3, 0.2, rng(device))
    free = ops.langevin_step(x, g, *args)
    out = ops.langevin_step(x, g, *args, clamp=box)
    exact = (x.double(), g.double(), 0.3, 0.2, noise.double())
    expected = reference.langevin_step(*exact, clamp=box).to(dtype)
    torch.testing.assert_close(out, expected)
    assert 0 < (out != free).sum() < out.numel()
    x_before = x.data_ptr()
    assert torch.equal(ops.langevin_step_(x, g, *args, clamp=box), out) and x.data_ptr() == x_before


def test_a_box_of_equal_numbers_in_tensors_is_that_of_the_numbers(device):
    x, g = sample((5, 6), device=device)
    faces = tuple(torch.full((6,), c, device=device) for c in (-0.5, 0.7))
    args = (x, g, 0.3, 0.2, rng(device))
    assert torch.equal(
        ops.langevin_step(*args, clamp=faces), ops.langevin_step(*args, clamp=(-0.5, 0.7))
    )


def test_gradients_through_a_box_of_tensors(device):
    x, g = sample((4, 6), torch.float64, device, requires_grad=True)
    box = (torch.linspace(-1, 0, 6, device=device), torch.linspace(0, 1, 4, device=device)[:, None])

    def f(x, g):
        return ops.langevin_step(x, g, 0.3, 0.2, rng(device), clamp=box, displacement_clip=0.3)

    assert torch.autograd.gradcheck(f, (x, g))
    assert torch.autograd.gradgradcheck(f, (x, g))
