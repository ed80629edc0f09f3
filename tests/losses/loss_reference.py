"""The losses written out naively in plain torch, and the models of their tests."""

import torch
from torch import nn

from fastebm.ops import reference
from fastebm.rng import ChainRNG
from fastebm.samplers.langevin import LangevinDynamics

STEP, SIGMA, K, EPS = 0.1, 0.2, 3, 1e-2


def mlp(scales=1):
    return nn.Sequential(
        nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, scales)
    ).double()


def langevin(model, **options):
    options = {"noise_std": SIGMA, "clamp": (-1.5, 1.5), "grad_clip": 0.6} | options
    return LangevinDynamics(model, STEP, **options)


def noise_of(sampler, seed, x, k):
    """What the sampler adds in step k, taken from a step on a flat energy."""
    flat = LangevinDynamics(lambda x: 0 * x.flatten(1).sum(1), 1.0, noise_std=1.0)
    rng = ChainRNG(seed, t=k)
    return flat.sample(torch.zeros_like(x), 1, seed=rng)


def naive(model, sampler, x, start, seed, k_steps, kl, ent, reg, refs=None, skip=None):
    """Every term with a graph of its own, nothing shared; refs None: no entropy term."""

    def energies(x):
        return model(x)  # (B, S)

    def step(x, k, create_graph):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energies(x).sum(), x, create_graph=create_graph)
        clipped = dict(grad_clip=sampler.options.grad_clip, clamp=sampler.options.clamp)
        noise = noise_of(sampler, seed, x, k)
        return reference.langevin_step(x.detach(), grad, STEP, SIGMA, noise, **clipped), grad

    z = start
    for k in range(k_steps - 1):
        z = step(z, k, False)[0].detach()
    x_kl, grad = step(z, k_steps - 1, True)
    x_neg = x_kl.detach()
    loss = energies(x).mean() - energies(x_neg).mean()
    loss = loss + reg * ((energies(x) ** 2).mean() + (energies(x_neg) ** 2).mean())
    constant = torch.func.functional_call
    frozen = {n: p.detach() for n, p in model.named_parameters()}
    loss = loss + kl * constant(model, frozen, (x_kl,)).mean()
    if refs is None:
        return loss, x_neg, grad
    terms = []
    for i in range(len(x_kl)):
        squares = [((x_kl[i] - y) ** 2).sum() for j, y in enumerate(refs) if j != skip[i]]
        terms.append(torch.log(torch.stack(squares).min() + EPS**2) / 2)
    return loss - ent * torch.stack(terms).mean(), x_neg, grad


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def assert_same(out, expected, model):
    loss, x_neg, grad = expected
    torch.testing.assert_close(out.loss, loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.x_neg, x_neg, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        out.metrics["grad_norm"], grad.norm(dim=1).mean(), rtol=1e-10, atol=0
    )
    mine = gradients(out.loss, model)
    theirs = gradients(loss, model)
    scale = max(g.abs().max() for g in theirs if g is not None)
    for a, b in zip(mine, theirs, strict=True):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        assert (a - b).abs().max() <= 1e-10 * scale


def naive_row(model, sampler, start, i, seed, weights, refs, skip):
    """What chain i adds to the mean over the chains."""
    kl, ent, reg = weights
    zero = torch.zeros(1, 2, dtype=torch.float64)
    z = start[i : i + 1]
    for k in range(K):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(model(z).sum(), z, create_graph=True)
        noise = noise_of(sampler, seed, start, k)[i : i + 1] + zero
        z = reference.langevin_step(z.detach(), grad, STEP, SIGMA, noise, grad_clip=0.6)
    x_neg = z.detach()
    frozen = {n: p.detach() for n, p in model.named_parameters()}
    total = -model(x_neg).mean() + reg * (model(x_neg) ** 2).mean()
    total = total + kl * torch.func.functional_call(model, frozen, (z,)).mean()
    if refs is not None:
        squares = [((z[0] - y) ** 2).sum() for j, y in enumerate(refs) if j != skip[i]]
        total = total - ent * torch.log(torch.stack(squares).min() + EPS**2) / 2
    return total
