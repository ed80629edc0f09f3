"""Work shared among threads gives what one thread gives: several shares each, which end inside
samples. Noise, draws, replay and chains on perceptrons have such tests beside their others."""

import functools

import pytest
import torch
from mlp_networks import network, with_base_and_rows
from torch import nn

from fastebm import (
    ChainRNG,
    ContrastiveDivergence,
    ImprovedContrastiveDivergence,
    LangevinDynamics,
    PersistentContrastiveDivergence,
    ReplayBuffer,
)
from fastebm.ops import choice, langevin, neighbor
from fastebm.ops.mlp.loss import mlp_adjusted_contrastive_divergence, mlp_contrastive_divergence


def langevin_steps():
    x, grad = torch.randn(2, 3000, 7, requires_grad=True)
    args = (0.1, 0.2, ChainRNG(1).state())
    bounds = {"clamp": (-1, 1), "grad_clip": 1.5, "displacement_clip": 0.3}
    out = langevin.langevin_step(x, grad, *args, **bounds)
    gradients = torch.autograd.grad(out, (x, grad), torch.randn_like(out))
    norms = langevin.langevin_step_(x.detach().clone(), grad, *args, grad_norm_clip=2.0)
    return out, *gradients, norms


def neighbors(n, m, dim):
    x, y = torch.randn(n, dim, requires_grad=True), torch.randn(m, dim)
    distance, index = neighbor.nearest_neighbor(x, y, k=3)
    (gradient,) = torch.autograd.grad(distance, x, torch.randn_like(distance))
    return distance, index, gradient, *neighbor.nn_log_distance(x.detach(), y, None, 0.1)


def formulas(batch):
    """Loss and gradients by formulas, of CD (one run of sums) and of ICD (two)."""
    layers = nn.Linear(8, 40), nn.SiLU(), nn.Linear(40, 16), nn.SiLU(), nn.Linear(16, 1)
    model = nn.Sequential(*layers)
    sampler, x, results = LangevinDynamics(model, 0.1, backend="fused"), torch.randn(batch, 8), []
    for kind in (ContrastiveDivergence, ImprovedContrastiveDivergence):
        out = kind(model, sampler, k_steps=2, energy_reg_weight=0.1)(x, seed=1)
        results += [out.loss, out.x_neg, *torch.autograd.grad(out.loss, model.parameters())]
    return results


def adjusted_formulas(batch):
    """By adjusted chains with jumps, in one operator."""
    layers = nn.Linear(8, 40), nn.SiLU(), nn.Linear(40, 16), nn.SiLU(), nn.Linear(16, 1)
    model, x = nn.Sequential(*layers), torch.randn(batch, 8)
    sampler = LangevinDynamics(model, "auto", adjusted=True, clamp=(-5.0, 5.0))
    buffer = ReplayBuffer(8000, 8, seed=0)
    loss = PersistentContrastiveDivergence(model, sampler, buffer, 4, jumps=2)
    out = loss(x, seed=1)
    return [out.loss, out.x_neg, *torch.autograd.grad(out.loss, model.parameters())]


def conditioned_formulas(batch):
    """Both losses' operators, of row biases and a base."""
    net = with_base_and_rows(network(8, (40, 16)), batch)
    x, start, noise = torch.randn(batch, 8), torch.randn(batch, 8), ChainRNG(1).state()
    kinds, rows = {"kl_weight": 1.0, "entropy_weight": 0.3}, torch.randn(batch, 40)
    out = mlp_contrastive_divergence(
        *(x, start, net, 2, 0.1, 0.3, noise), data_row_bias=rows, energy_reg_weight=0.1, **kinds
    )
    adjusted = mlp_adjusted_contrastive_divergence(
        *(x, start, net, 3, 0.1, (0.3, 1.0, 1.0), noise), data_row_bias=rows
    )
    return [*out[:6], *out[6], *adjusted[:5], *adjusted[5]]


CASES = {
    "Langevin step": langevin_steps,
    "direct search": lambda: neighbors(9000, 700, 6),
    "search by tiles": lambda: neighbors(700, 900, 100),
    **{f"formulas, {n}": functools.partial(formulas, n) for n in (50, 65, 128, 1000, 7000)},
    **{f"conditions, {n}": functools.partial(conditioned_formulas, n) for n in (50, 1000)},
    **{f"adjusted chains, {n}": functools.partial(adjusted_formulas, n) for n in (50, 128, 1000)},
    "choice": lambda: choice.choose_slots(
        ChainRNG(1).state(), 20_000, 9000, torch.randint(20_000, (200,))
    ),
    "strata": lambda: [choice.choose_strata(ChainRNG(1).state(), 2**40, 9000)],
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_same_bits_with_any_number_of_threads(case, set_threads):
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        torch.manual_seed(0)
        results.append(case())
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
