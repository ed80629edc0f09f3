"""How the CUDA kernel of float32 cuts a batch: every way is right, and no result depends on it."""

import pytest
import torch
from mlp_networks import network, rounding_errors
from test_mlp_chain_cuda import device, exact, run, set_schedule  # noqa: F401

from fastebm.ops.mlp.network import Network

# Batch, dimension, widths. A tile of 1, 2, 4 or 8 samples by batch and width, which all warps of a
# CUDA block share, and in large batches a tile for each warp, of 4 or 8; weights in shared memory
# and in slabs; the gradient in x by chunks of features (few inputs), or by inputs.
PLANS = {
    "tiles of 1": (128, 5, (70, 36)),
    "tiles of 1, wide": (9, 256, (33, 250)),
    "tiles of 1, slabs": (6, 40, (256, 255)),
    "tiles of 2": (129, 64, (33, 100)),
    "tiles of 4": (300, 2, (31, 70, 1)),
    "tiles of 4, wide": (258, 65, (20, 80)),
    "tiles of 8": (516, 33, (130, 31)),
    "tiles of 8 of a warp": (2050, 3, (20,)),
    "tiles of 8, slabs": (519, 40, (256, 255)),
    "tiles of 8, wide, slabs": (515, 200, (256,)),
    "a tile a warp": (4097, 9, (40, 7)),
    "a tile a warp, 128": (4100, 3, (100, 20)),
    "a tile a warp, 256": (4099, 2, (140, 17)),
    "a tile of 8 a warp, 128": (8195, 3, (66, 2)),
    "a tile a warp, wide": (4101, 50, (36,)),
    "a tile a warp, slabs": (4098, 18, (130, 129, 130)),
}
SMALL = [name for name, (batch, *_) in PLANS.items() if batch < 500 or name == "tiles of 8"]


@pytest.mark.parametrize("plan", PLANS)
def test_right_and_the_same_bits_in_any_plan(device, plan):  # noqa: F811
    """A few samples alone go through the smallest tiles; norms and energies are sums as well."""
    batch, dim, widths = PLANS[plan]
    net, x = network(dim, widths, device=device), torch.randn(batch, dim, device=device)
    whole = run(x, net, grad_norm_clip=0.5)
    (e, g), (e_error, g_error, _) = exact(net, x), rounding_errors(net, x)
    assert ((whole[1].double() - e).abs() <= e_error).all()
    assert ((whole[2].double() - g).abs() <= g_error).all()
    few = [(0, 1), (batch // 2, batch // 2 + 5), (batch - 3, batch)]
    for first, end in few:
        part = run(x[first:end], net, first=first, grad_norm_clip=0.5)
        assert all(torch.equal(a, b[first:end]) for a, b in zip(part, whole, strict=True))
    if plan in SMALL:
        options = {"noise_first": True, "clamp": (-1.0, 1.5)}
        whole = run(x, net, 3, **options)
        for first, end in few:
            part = run(x[first:end], net, 3, first=first, **options)
            assert all(torch.equal(a, b[first:end]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize("plan", SMALL)
def test_same_for_every_schedule(device, plan, set_schedule):  # noqa: F811
    if device == "cuda":
        pytest.skip("a GPU has its own")
    batch, dim, widths = PLANS[plan]
    net, x = network(dim, widths), torch.randn(batch, dim)
    expected = run(x, net, 2, grad_norm_clip=0.5)
    for seed in (1, 2):
        set_schedule(seed)
        assert all(map(torch.equal, run(x, net, 2, grad_norm_clip=0.5), expected))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("widths", [(32, 16), (256, 256, 256)], ids=["resident", "slabs"])
def test_weights_may_lie_anywhere(device, precision, widths):  # noqa: F811
    """A row whose address is no multiple of 16 bytes is read by element."""
    net, x = network(8, widths, device=device), torch.randn(40, 8, device=device)
    shifted = [torch.cat([w.new_zeros(1), w.flatten()])[1:].view_as(w) for w in net.weights]
    assert all(w.data_ptr() % 16 for w in shifted) and all(w.is_contiguous() for w in shifted)
    moved = Network(shifted, *net[1:])
    for a, b in zip(run(x, net, precision=precision), run(x, moved, precision=precision),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)


def test_noise_is_that_of_the_step(device):  # noqa: F811
    """Drawn by a warp of its own while the others multiply: three steps and their draws."""
    net = network(70, (40, 33), device=device)
    x = torch.randn(260, 70, device=device)
    together = run(x, net, 3, t=4)[0]
    for k in range(3):
        x = run(x, net, 1, t=4 + k)[0]
    assert torch.equal(together, x)
    one, other = (run(x, net, 1, t=t)[0] for t in (4, 5))
    assert (one != other).all()
