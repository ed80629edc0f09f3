"""What nodes of a traced energy can be, and how these are reckoned with."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor, fx

from fastebm.chains.traced_ops import Activation
from fastebm.ops.mlp.network import MAX_WIDTH

Constant = Real | fx.Node  # a number, or a node that does not depend on x
Size = int | torch.SymInt


class NoNetwork(Exception):
    """The graph is something else; says what."""


@dataclass(frozen=True)
class Scaled:
    """``scale (x - shift)``, element by element; each a number, or a node of 1 or D elements."""

    scale: Constant = 1.0
    shift: Constant = 0.0


@dataclass(frozen=True)
class Square:
    """``factor (x - mean)^2 + offset``, element by element."""

    factor: Constant
    mean: Constant
    offset: Constant = 0.0


@dataclass(frozen=True)
class Joined:
    """Columns of x and of conditions (B, C), and how many."""

    parts: tuple[tuple[Scaled | fx.Node, int], ...]


@dataclass(frozen=True)
class Hidden:
    """Activations by these layers; ``row`` (B, width) is each sample's own in the first."""

    layers: tuple[tuple[fx.Node, fx.Node | None], ...]
    width: int
    activation: Activation
    row: fx.Node | None


@dataclass(frozen=True)
class Layer:
    """``weight below + bias + row``, (B, width), below x where it is None."""

    below: Hidden | None
    width: int
    weight: fx.Node
    bias: fx.Node | None = None
    row: fx.Node | None = None


@dataclass(frozen=True)
class Gate:
    """The sigmoid of a layer."""

    layer: Layer


@dataclass(frozen=True)
class Energy:
    """``top + sum_i factor_i (x_i - mean_i)^2 + constant``, (B,) or (B, 1)."""

    top: Layer | None = None
    square: Square | None = None
    constant: Constant = 0.0


class Terms:
    """Sums, products and layers of them, by nodes that it adds to the graph of an energy; None of
    what would be something else.

    Args:
        graph: new nodes come where it inserts.
        rows: the batch's size.
        dim: D, elements of a sample.
    """

    def __init__(self, graph: fx.Graph, rows: Size, dim: int) -> None:
        self.graph, self.rows, self.dim = graph, rows, dim

    def emit(self, f: Callable, *args) -> fx.Node:
        return self.graph.call_function(f, args)

    def times(self, a: Constant, b: Constant) -> Constant:
        if isinstance(a, Real) and isinstance(b, Real):
            return a * b
        return a if is_number(b, 1) else b if is_number(a, 1) else self.emit(operator.mul, a, b)

    def plus(self, a: Constant | None, b: Constant) -> Constant:
        if a is None or is_number(a, 0):
            return b
        if isinstance(a, Real) and isinstance(b, Real):
            return a + b
        return a if is_number(b, 0) else self.emit(operator.add, a, b)

    def filled(self, c: Constant, n: int, like: fx.Node) -> fx.Node:
        return self.emit(_filled, c, n, like)

    def element(self, c: Constant, event: tuple[int, ...]) -> Constant | None:
        """A constant beside values (B, *event), for each of their D elements."""
        if isinstance(c, Real) or not shape_of(c):
            return c
        shape = shape_of(c)
        if not all(isinstance(n, int) for n in shape):
            return None
        if len(shape) > len(event) and (len(shape) > len(event) + 1 or shape[0] != 1):
            return None
        return self.emit(_vector, c, event)

    def scaled(self, a: object, c: Constant, event: tuple[int, ...]) -> object:
        """``c a``, where a is (B, *event); c is a number where a is constant."""
        if isinstance(a, fx.Node):
            product = self.emit(operator.mul, a, c)
            product.meta["example_value"] = a.meta["example_value"]
            return product
        if isinstance(a, Real):
            return a * c
        if isinstance(a, (Layer, Energy)):
            if not is_one(c):
                return None
            c = c if isinstance(c, Real) or not shape_of(c) else self.emit(_number, c)
        if isinstance(a, Layer):
            bias, row = (v and self.times(v, c) for v in (a.bias, a.row))
            return replace(a, weight=self.times(a.weight, c), bias=bias, row=row)
        if isinstance(a, Energy):
            top, square = (v and self.scaled(v, c, ()) for v in (a.top, a.square))
            return Energy(top, square, self.times(a.constant, c))
        c = self.element(c, event)
        if c is None or not isinstance(a, (Scaled, Square)):
            return None
        if isinstance(a, Scaled):
            return replace(a, scale=self.times(a.scale, c))
        return replace(a, factor=self.times(a.factor, c), offset=self.times(a.offset, c))

    def added(self, a: object, b: object, event: tuple[int, ...]) -> object:
        """``a + b``, (B, *event)."""
        if is_constant(a):
            a, b = b, a
        if not is_constant(b):
            return self._united(self.energy(a), self.energy(b))
        if isinstance(a, Layer):
            return self.shifted(a, b)
        if isinstance(a, Energy):
            one = is_one(b)
            b = self.emit(_number, b) if one and isinstance(b, fx.Node) and shape_of(b) else b
            return replace(a, constant=self.plus(a.constant, b)) if one else None
        b = self.element(b, event)
        if isinstance(a, Square) and b is not None:
            return replace(a, offset=self.plus(a.offset, b))
        if not isinstance(a, Scaled) or b is None or not isinstance(a.scale, Real) or a.scale == 0:
            return None
        return replace(a, shift=self.plus(a.shift, self.times(b, -1 / a.scale)))

    def _united(self, a: Energy | None, b: Energy | None) -> Energy | None:
        if a is None or b is None:
            return None
        if a.top and b.top:
            raise NoNetwork("it is a sum of two perceptrons")
        square = a.square or b.square
        if a.square and b.square:
            if a.square.mean is not b.square.mean and a.square.mean != b.square.mean:
                raise NoNetwork("it is a sum of two quadratics")
            square = replace(square, factor=self.plus(a.square.factor, b.square.factor))
        return Energy(a.top or b.top, square, self.plus(a.constant, b.constant))

    def shifted(self, layer: Layer, c: Constant) -> Layer | None:
        """With another bias, or what rows add to the first layer."""
        shape = () if isinstance(c, Real) else shape_of(c)
        of_rows = len(shape) == 2 and not isinstance(self.rows, int)
        if of_rows and same_size(shape[0], self.rows) and same_size(shape[1], layer.width):
            row = None if layer.below else self.plus(layer.row, c)
            return row and replace(layer, row=row)
        if not all(isinstance(n, int) for n in shape):
            return None
        if shape and (shape[-1] not in (1, layer.width) or any(n != 1 for n in shape[:-1])):
            return None
        bias = self.plus(layer.bias, self.filled(c, layer.width, layer.weight))
        return replace(layer, bias=bias)

    def layer(self, h: object, weight: object, bias: object) -> Layer | None:
        """``weight h + bias``; weight (outputs, inputs)."""
        shape = shape_of(weight)
        if len(shape) != 2 or not is_float(weight) or not (bias is None or is_float(bias)):
            return None
        if shape[0] > MAX_WIDTH:
            raise NoNetwork(f"a layer has {shape[0]} outputs, more than {MAX_WIDTH}")
        if isinstance(h, Hidden):
            return Layer(h, shape[0], weight, bias)
        parts = h.parts if isinstance(h, Joined) else ((h, self.dim),)
        if [isinstance(part, Scaled) for part, _ in parts].count(True) != 1:
            return None
        start, of_x, row = 0, None, None
        for part, width in parts:
            columns = weight if len(parts) == 1 else self.emit(_columns, weight, start, width)
            start += width
            if isinstance(part, Scaled):
                of_x = self._of_scaled(part, columns, bias)
            else:
                row = self.plus(row, self.emit(torch.nn.functional.linear, part, columns))
        return Layer(None, shape[0], *of_x, row)

    def _of_scaled(self, x: Scaled, weight: fx.Node, bias: fx.Node | None) -> tuple:
        weight = self.times(weight, x.scale)
        if not is_number(x.shift, 0):
            shift = self.filled(x.shift, self.dim, weight)
            bias = self.plus(bias, self.emit(operator.neg, self.emit(torch.mv, weight, shift)))
        return weight, bias

    def activated(self, layer: object, activation: Activation | None) -> Hidden | None:
        if not isinstance(layer, Layer) or activation is None:
            return None
        below = layer.below
        if below and below.activation != activation:
            raise NoNetwork(f"it has activations {below.activation[0]} and {activation[0]}")
        layers = (*(below.layers if below else ()), (layer.weight, layer.bias))
        return Hidden(layers, layer.width, activation, below.row if below else layer.row)

    def summed(self, layer: Layer) -> Energy | None:
        """Over its outputs."""
        if layer.width == 1:
            return self.energy(layer)
        bias = layer.bias and self.emit(_sum, layer.bias)
        return self.energy(replace(layer, width=1, weight=self.emit(_sum, layer.weight), bias=bias))

    def column(self, layer: Layer, i: object) -> Energy | None:
        """One of its outputs."""
        if not isinstance(i, int) or not -layer.width <= i < layer.width:
            return None
        if layer.width == 1:
            return self.energy(layer)
        weight, bias = (
            v and self.emit(_row, v, i % layer.width) for v in (layer.weight, layer.bias)
        )
        return self.energy(replace(layer, width=1, weight=weight, bias=bias))

    def energy(self, a: object) -> Energy | None:
        """What is one number a sample."""
        if isinstance(a, Square) and self.dim == 1:
            return self.total(a)
        if isinstance(a, Layer):
            return Energy(a) if a.width == 1 and a.below else None
        return a if isinstance(a, Energy) else None

    def total(self, square: Square) -> Energy:
        """The sum over elements."""
        offset = square.offset
        total = (
            offset * self.dim if isinstance(offset, Real) else self.emit(_total, offset, self.dim)
        )
        return Energy(None, replace(square, offset=0.0), total)


def is_constant(a: object) -> bool:
    return isinstance(a, (Real, fx.Node))


def is_number(a: object, value: float) -> bool:
    return isinstance(a, Real) and a == value


def is_one(c: object) -> bool:
    """Whether it is a number, or a tensor of one element."""
    return (
        isinstance(c, Real) or isinstance(c, fx.Node) and all(same_size(n, 1) for n in shape_of(c))
    )


def is_float(node: object) -> bool:
    example = node.meta["example_value"] if isinstance(node, fx.Node) else None
    return isinstance(example, Tensor) and example.dtype == torch.float32


def shape_of(node: object) -> tuple[Size, ...]:
    """() of what is no tensor."""
    example = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return tuple(example.shape) if isinstance(example, Tensor) else ()


def same_size(a: Size, b: Size) -> bool:
    """Whether they are one number in all batches; nothing is asked that adds a guard."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a.node.expr == b.node.expr


# Nodes of the networks' tensors call these.


def _filled(c: float | Tensor, n: int, like: Tensor) -> Tensor:
    return torch.as_tensor(c, dtype=like.dtype, device=like.device).reshape(-1).expand(n)


def _vector(c: Tensor, event: tuple[int, ...]) -> Tensor:
    return c.expand(1, *event).reshape(-1)


def _number(c: Tensor) -> Tensor:
    return c.reshape(())


def _columns(weight: Tensor, start: int, n: int) -> Tensor:
    return weight[:, start : start + n]


def _row(weight: Tensor, i: int) -> Tensor:
    return weight[i : i + 1]


def _sum(weight: Tensor) -> Tensor:
    return weight.sum(0, keepdim=True)


def _total(offset: float | Tensor, n: int) -> Tensor:
    return torch.as_tensor(offset).expand(n).sum()
