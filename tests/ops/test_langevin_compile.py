"""The fused Langevin step under torch's own tools: opcheck and torch.compile."""

import math

import pytest
import torch
from conftest import HAS_GPU
from test_langevin import rng, sample

from fastebm import ops
from fastebm.ops import library


def op_arguments(x, g, **options):
    lo, hi = options.get("clamp", (None, None))
    return (
        x,
        g,
        0.1,
        0.2,
        None,
        None,
        rng(x.device),
        3,
        None,
        options.get("grad_clip"),
        options.get("displacement_clip"),
        lo,
        hi,
        128,
    )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("shape", [(3,), (2, 5), (0, 4), (2, 3, 4)])
def test_opcheck(device, shape, requires_grad):
    if device == "cpu" and library.op is not torch.ops.fastebm:
        pytest.skip("the emulated device is for values")
    x, g = sample(shape, device=device, requires_grad=requires_grad)
    options = {"clamp": (-1.0, 1.0), "grad_clip": 0.5, "displacement_clip": 0.2}
    torch.library.opcheck(torch.ops.fastebm.langevin_step.default, op_arguments(x, g, **options))
    x, g = x.detach(), g.detach()
    args = op_arguments(x, g)
    torch.library.opcheck(torch.ops.fastebm.langevin_step_.default, (*args[:10], 2.0, *args[10:]))
    mask = torch.full((shape[0], (math.prod(shape[1:]) + 3) // 4), 255, dtype=torch.uint8)
    torch.library.opcheck(
        torch.ops.fastebm.langevin_step_backward.default,
        (sample(shape, device=device, requires_grad=requires_grad)[0], mask.to(device), 0.1, None),
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compile_fullgraph(device):
    if device == "cuda" and not HAS_GPU:
        pytest.skip("no CUDA device")
    state = rng(device)

    def f(x, g):
        return (
            ops.langevin_step(torch.tanh(x), g * 2, 0.1, 0.2, state, clamp=(-1, 1)).square().sum()
        )

    x, g = sample((8, 6), device=device, requires_grad=True)
    compiled = torch.compile(f, fullgraph=True)
    torch.testing.assert_close(compiled(x, g), f(x, g))
    mine = torch.autograd.grad(compiled(x, g), (x, g))
    for a, b in zip(mine, torch.autograd.grad(f(x, g), (x, g)), strict=True):
        torch.testing.assert_close(a, b)


def test_compile_in_place_makes_no_copies():
    from torch._inductor.utils import run_and_get_code

    state = rng()

    def chain(x, g):
        for t in range(3):
            ops.langevin_step_(x, g, 0.1, 0.2, state, t=t)

    x, g = sample((8, 6))
    expected = x.clone()
    chain(expected, g)
    _, code = run_and_get_code(torch.compile(chain, fullgraph=True), x, g)
    assert torch.equal(x, expected)
    code = "\n".join(code)
    assert code.count("fastebm.langevin_step_.default(") == 3
    assert (
        "copy_" not in code
        and "clone" not in code
        and "empty_strided_cpu(" not in code.split("def call")[1]
    )
