"""Perceptrons with a condition and a Gaussian base, and a sampler that runs them fused."""

import torch
from torch import nn
from torch.nn import functional as F

from fastebm import LangevinDynamics
from fastebm.chains.mlp_chain import MLPChain
from fastebm.ops.mlp.network import Network


class Columns(nn.Module):
    """The condition (B, C), or (C,) for all, is an input of the first layer beside x."""

    def __init__(self, dim, condition, learnt_base=False):
        super().__init__()
        self.dim = dim
        self.first = self.of_x(dim, condition)
        self.hidden, self.last = nn.Linear(20, 9), nn.Linear(9, 1)
        for layer in self.children():  # steeper than torch makes them
            nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        self.precision = nn.Parameter(torch.rand(dim), learnt_base)
        self.mean = nn.Parameter(torch.randn(dim), learnt_base)

    def of_x(self, dim, condition):
        return nn.Linear(dim + condition, 20)

    def rows(self, n, c):
        """The weights of x, and the first layer's biases of n samples."""
        own = F.linear(c, self.first.weight[:, self.dim :], self.first.bias)
        return self.first.weight[:, : self.dim], own.expand(n, -1)

    def forward(self, x, c):
        x = x.flatten(1)
        weight, rows = self.rows(len(x), c)
        e = self.last(F.silu(self.hidden(F.silu(x @ weight.T + rows))))[:, 0]
        return e + 0.5 * (self.precision * (x - self.mean).square()).sum(1)

    def network(self, n, c):
        weight, rows = self.rows(n, c)
        layers = self.hidden, self.last
        return Network(
            [weight, *(layer.weight for layer in layers)],
            [self.first.bias, *(layer.bias for layer in layers)],
            "silu",
            base_precision=self.precision,
            base_mean=self.mean,
            row_bias=rows,
        )


class OwnMap(Columns):
    """The condition has a linear map of its own, which is added to the first layer."""

    def of_x(self, dim, condition):
        self.of_condition = nn.Linear(condition, 20)
        return nn.Linear(dim, 20)

    def rows(self, n, c):
        return self.first.weight, (self.of_condition(c) + self.first.bias).expand(n, -1)


class Fused(LangevinDynamics):
    """LangevinDynamics that knows these."""

    def fused_chain(self, x, model_kwargs, n_steps=0):
        if self.backend == "eager":
            return None
        return MLPChain(self.model.network(len(x), **model_kwargs), "fp32")
