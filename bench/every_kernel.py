"""Launches every CUDA kernel once or a few times, on small inputs: for compute-sanitizer.

The sizes are those around which kernels change: vectors and tiles, full and not; shared memory that
holds an image and one that does not; all data types. Nothing is checked here but that it runs.
tests/bench/test_every_kernel.py proves, on the emulated device, that no kernel is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastebm import Augmentation, nearest_neighbor, ops
from fastebm.ops.bernoulli import bernoulli_sigmoid, bernoulli_sigmoid_
from fastebm.ops.choice import choose_slots, choose_strata
from fastebm.ops.discrete import gwg_step_
from fastebm.ops.hamiltonian import hmc_step_
from fastebm.ops.metropolis import metropolis_step_, population_jump
from fastebm.ops.mlp.adjusted import mlp_adjusted_chain_
from fastebm.ops.mlp.chain import mlp_chain_
from fastebm.ops.mlp.network import Network
from fastebm.ops.neighbor import neighbor_means, nn_log_distance
from fastebm.ops.tempering import replica_swap_
from fastebm.ops.underdamped import underdamped_step_
from fastebm.rng import ChainRNG

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EVERYTHING = dict(scale=(0.1, 1.0), hflip_p=0.5, contrast=0.5, kernel_size=5, blur_p=0.5)
COLOR = dict(brightness=0.5, saturation=0.5, hue=0.2, grayscale_p=0.3)


def steps(rng: Tensor) -> None:
    for dtype in FLOATS:
        for dim in (3, 64, 1030):
            x, grad = (torch.randn(5, dim).to(rng.device, dtype) for _ in range(2))
            wide = torch.promote_types(dtype, torch.float32)
            sizes = torch.full((5,), 0.01, dtype=wide, device=rng.device)
            ops.langevin_step_(x, grad, 0.01, 0.1, rng, grad_clip=1.0, clamp=(-1.0, 1.0))
            ops.langevin_step_(x, grad, sizes, 0.1, rng, grad_norm_clip=0.5)
            ops.langevin_step_(x, grad, 0.01, 0.1, rng, displacement_clip=0.2)
            ops.langevin_step_(x, None, 0.0, 1.0, rng)
            underdamped_step_(x, grad.clone(), grad, sizes, 0.1, 0.9, 0.1, rng, lo=-1.0)
            underdamped_step_(x, grad.clone(), grad, 0.1, 0.1, 1.0, 0.0, rng, hi=x[0] + 1)
            x.requires_grad_()
            ops.langevin_step(x, grad, 0.01, 0.1, rng, clamp=(-1.0, 1.0)).backward(grad)


def moves(rng: Tensor) -> None:
    """Transitions on any energy; samples by one thread, some, a warp, and two."""
    for dtype in (torch.float32, torch.float64):
        for dim in (2, 3, 64, 130, 1030):
            x, grad, y, v = (torch.randn(70, dim).to(rng.device, dtype) for _ in range(4))
            energy, e_y, factor = (torch.randn(70).to(rng.device, dtype) for _ in range(3))
            sums = torch.zeros(2, 70, device=rng.device)
            box = dict(lo=-2.0, hi=x + 3)
            chain = (x, energy, grad, sums, y)
            metropolis_step_(*chain, None, None, 0.1, 0.4, rng)
            metropolis_step_(*chain, e_y, v, 0.1, 0.4, rng, next_step=(0.1, 0.4), **box)
            metropolis_step_(*chain, e_y, v, 0.1, 0.4, rng, log_factor=factor)
            counts = sums[0], torch.zeros(70, dtype=torch.int32, device=rng.device)
            chain = (x, energy, grad, y, v, e_y.clone(), *counts)
            for ends in ((None, None), (None, grad.clone()), (e_y, grad.clone())):
                hmc_step_(*chain, *ends, 0.1, 1.0, rng, jitter=0.2, **box)
            hmc_step_(*chain, e_y, grad.clone(), 0.1, 1.0, rng, next_step=(0.1, 1.0))


def neighbors(rng: Tensor) -> None:
    for dtype in (torch.float32, torch.float64, torch.uint8):
        wide = torch.promote_types(dtype, torch.float32)
        most = {torch.float32: 1032, torch.float64: 264, torch.uint8: 400}[dtype]
        for n, m, dim in ((5, 300, 3), (5, 300, 16), (5, 150, 33), (70, 150, 64), (9, 150, most)):
            x = torch.rand(n, dim).to(rng.device, wide)
            x[1] = -9  # off the grid of bytes
            x.requires_grad_()
            y = (torch.rand(m, dim) * 200).to(rng.device, dtype)
            skip = torch.arange(n, device=rng.device)
            distance, _ = nearest_neighbor(x, y, skip=skip, k=3)
            distance.sum().backward()
            nn_log_distance(x.detach(), y, skip, 0.1)
    x, y = 100 * torch.rand(70, 516), 100 * torch.rand(150, 516)  # large: bfloat16 comes first
    x[0] *= 1000  # and leaves it all references
    nearest_neighbor(x.to(rng.device), y.to(rng.device), k=3)
    for dim in (3, 300):
        neighbor_means(torch.rand(70, dim).to(rng.device), torch.arange(9, device=rng.device), 4)


def replay(rng: Tensor) -> None:
    choose_slots(rng, 300, 40)
    choose_strata(rng, 300, 40)
    index = torch.tensor([0, 3, -1, 2, 5, 1], device=rng.device)
    for shape in ((3, 16, 17), (1, 9, 11), (3, 64, 64), (3, 65, 66)):
        color = COLOR if shape[0] == 3 else {}
        for dtype in (torch.uint8, torch.float32, torch.bfloat16):
            images = torch.randint(0, 256, (6, *shape)).to(rng.device, dtype)
            for parameters in ((), Augmentation(**EVERYTHING, **color).parameters):
                for init in ("uniform", "normal"):
                    how = dict(reinit_prob=0.2, init=init, augmentation=parameters)
                    ops.replay_gather(images, index, rng, **how)


def chains(rng: Tensor) -> None:
    for n, dim, widths in (  # tiles of 1, 4 and 8 samples, groups of warps, some that are packed
        *((20, 3, (40, 9)), (300, 2, (31, 70)), (600, 33, (130, 31)), (4200, 2, (8,))),
        *((4100, 3, (100, 20)), (5, 70, (256, 256, 200)), (5, 300, (512, 300)), (2100, 1, (257,))),
    ):
        sizes = (dim, *widths, 1)
        weights = [
            torch.randn(b, a, device=rng.device) / a**0.5
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        ]
        net = Network(weights, [None] * len(weights), "silu")
        own = net._replace(
            base_precision=torch.ones(dim, device=rng.device),
            base_mean=torch.zeros(dim, device=rng.device),
            row_bias=torch.randn(n, widths[0], device=rng.device),
        )
        box = torch.full((dim,), -3.0, device=rng.device), 3.0
        for precision in ("fp32", "bf16"):
            x = torch.randn(n, dim, device=rng.device)
            how = dict(grad_norm_clip=1.0, precision=precision)
            mlp_chain_(x, net, 2, 0.01, 0.1, rng, **how)
            if n < 1000:
                energy = torch.empty(n, device=rng.device)
                mlp_chain_(x, own, 1, 0.01, 0.1, rng, clamp=box, energy=energy, **how)
        jumps = dict(centres=torch.randn(9, dim, device=rng.device), lo=-3.0, hi=3.0)
        jumps |= dict(scales=torch.ones(9, device=rng.device), uniform_share=0.3)
        population_jump(x, rng=rng, **jumps)
        state = torch.empty(n, device=rng.device), torch.empty_like(x)
        for known in (False, True):
            sums = torch.zeros(2, n, device=rng.device)
            mlp_adjusted_chain_(
                *(x, *state, sums, net if known else own, 1, 0.01, 0.1, rng),
                **jumps | dict(known=known, every=1 + known),
            )


def units(rng: Tensor) -> None:
    for dtype in FLOATS:
        for n, dim in ((5, 3), (70, 130)):
            logits = torch.randn(n, dim).to(rng.device, dtype)
            bernoulli_sigmoid(logits, rng, dtype=torch.uint8)
            bernoulli_sigmoid_(bernoulli_sigmoid(logits, rng), rng)


def discrete(rng: Tensor) -> None:
    for shape, k in (((9, 3), 0), ((5, 64), 0), ((3, 1030), 0), ((5, 3, 3), 3), ((2, 40, 8), 8)):
        x = torch.zeros(shape, device=rng.device)
        if k:
            x[..., 0] = 1
        energy, log_q, sums = torch.zeros(3, shape[0], device=rng.device)
        grad, site = torch.randn_like(x), torch.zeros_like(energy, dtype=torch.int64)
        own = x, energy, grad, log_q, site, sums, torch.empty_like(x), energy + 1, grad.clone()
        for t in range(3):
            gwg_step_(*own, 1.0, rng, t=t, accept=t > 0, propose=t < 2, n_categories=k)


def replicas(rng: Tensor) -> None:
    for dtype in FLOATS:
        for dim in (3, 64, 1030):
            x, grad, v = (torch.randn(3, 5, dim).to(rng.device, dtype) for _ in range(3))
            energy = torch.randn(3, 5, device=rng.device)
            swaps = torch.zeros(2, 5, device=rng.device)
            temperatures = torch.linspace(1, 3, 3, dtype=torch.float64, device=rng.device)
            for velocity in (None, v):
                for parity in (0, 1):
                    replica_swap_(x, energy, grad, velocity, temperatures, parity, swaps, rng)


def main(device: str = "cuda") -> None:
    rng = ChainRNG(1).state(device)
    for part in (steps, moves, neighbors, replay, chains, units, discrete, replicas):
        part(rng)
        torch.cuda.synchronize()  # an error is of the part above
        print(part.__name__, "done", flush=True)


if __name__ == "__main__":
    main()
