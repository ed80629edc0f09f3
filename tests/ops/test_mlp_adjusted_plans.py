"""Adjusted chains on CUDA: the same bits in every way to cut a batch and order of threads."""

import pytest
import torch
from mlp_networks import network, rounding_errors
from test_mlp_adjusted import SEED, chain, same
from test_mlp_chain_cuda import device, exact, set_schedule  # noqa: F401

from fastebm.ops import library, reference

# Batch, dimension, widths: as in test_mlp_chain_plans.py, with less to compute.
PLANS = {
    "tiles of 1": (31, 50, (70, 36)),  # chunks of the gradient over the values of both layers
    "tiles of 1, wide": (9, 256, (33, 250)),
    "tiles of 1, slabs": (6, 40, (256, 255)),
    "tiles of 2": (129, 64, (97,)),
    "tiles of 4": (257, 2, (97, 5)),
    "tiles of 4, wide": (258, 65, (20, 80)),
    "tiles of 8": (513, 3, (97,)),
    "a tile a warp": (4097, 5, (8, 3)),
    "a tile a warp, 128": (4100, 1, (65,)),
    "a tile a warp, 256": (4099, 2, (129,)),
    "a tile of 8 a warp, 128": (8193, 1, (65,)),
    "a tile a warp, slabs": (4098, 33, (130, 129, 130)),
}
MANY = ("tiles of 1, wide", "tiles of 1, slabs", "tiles of 4, wide", "a tile a warp, slabs")
STEP, SIGMA = 0.02, 0.15


def case(plan, device):  # noqa: F811
    """Network, samples and options: proposals and jumps, in a box that refuses some."""
    batch, dim, widths = PLANS[plan]
    net, x = network(dim, widths, device=device), torch.randn(batch, dim, device=device)
    options = {"lo": -2.1, "hi": 2.1, "every": 2, "uniform_share": 0.4}
    options["centres"] = 0.5 * torch.randn(9, dim, device=device)
    options["scales"] = 0.8 + 0.4 * torch.rand(9, device=device)
    return net, x.clamp(-1.6, 1.6), options


@pytest.mark.parametrize("plan", PLANS)
def test_right_and_the_same_bits_in_any_plan(device, plan):  # noqa: F811
    """A few samples alone go through the smallest tiles."""
    if plan == "a tile a warp, slabs" and library.op is not torch.ops.fastebm:
        pytest.skip("takes long on an emulated device")
    net, x, options = case(plan, device)
    batch, steps = len(x), 2 if len(x) > 4000 else 3
    options["sample_ids"] = torch.arange(batch, device=device)
    whole = chain(net, x, steps, STEP, SIGMA, **options)
    (e, g), (e_error, g_error, _) = exact(net, whole.x), rounding_errors(net, whole.x)
    assert ((whole.energy.double() - e).abs() <= e_error).all()
    assert ((whole.grad.double() - g).abs() <= g_error).all()
    assert (whole.x != x).any() and whole.acceptance.any()
    if batch < 4000:
        at = chain(net, x, 1, STEP, SIGMA, **options)
        options.update(known=True, t=1, first=1)
        assert same(chain(net, x, 2, STEP, SIGMA, at, **options), whole)
        options.update(known=False, t=0, first=0)
    for first, end in ((0, 1), (batch // 2, batch // 2 + 3), (batch - 3, batch)):
        options["sample_ids"] = torch.arange(first, end, device=device)
        few = chain(net, x[first:end].contiguous(), steps, STEP, SIGMA, **options)
        assert torch.equal(few.acceptance, whole.acceptance[:, first:end])
        assert same(few[:3], [v[first:end] for v in whole[:3]])


@pytest.mark.parametrize("plan", MANY)
def test_ratio_of_many_elements_and_features(device, plan):  # noqa: F811
    net, x, _ = case(plan, device)
    x = x[:6].contiguous()
    net.weights[-1].mul_(10)
    share = chain(net, x, 1, STEP, SIGMA).acceptance[0].double().cpu()
    cpu = net._replace(weights=[w.cpu() for w in net.weights], biases=[b.cpu() for b in net.biases])
    expected, _ = reference.adjusted_chain(
        *(lambda y: exact(cpu, y), x.double().cpu(), [STEP], [SIGMA], SEED, torch.arange(len(x)))
    )
    assert ((share - expected.acceptance[0]).abs() < 1e-3).all() and share.std() > 1e-3


@pytest.mark.parametrize("plan", ["tiles of 1", "tiles of 1, slabs", "tiles of 4", "a tile a warp"])
def test_same_for_every_order_of_threads(device, plan, set_schedule):  # noqa: F811
    if library.op is torch.ops.fastebm:
        pytest.skip("a GPU has its own")
    net, x, options = case(plan, device)
    expected = chain(net, x, 2, STEP, SIGMA, **options)
    for seed in (1,) if len(x) > 4000 else (1, 2, 3):
        set_schedule(seed)
        assert same(chain(net, x, 2, STEP, SIGMA, **options), expected)
