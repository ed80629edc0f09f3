"""Whether a traced energy is a small perceptron and a diagonal quadratic, and by which tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, fx

from fastebm.chains.traced_ops import (
    ACTIVATIONS,
    IN_PLACE,
    Activation,
    is_inplace,
    is_random,
    op_of,
)
from fastebm.chains.traced_terms import (
    Energy,
    Gate,
    Hidden,
    Joined,
    Layer,
    NoNetwork,
    Scaled,
    Square,
    Terms,
    is_constant,
    is_float,
    is_number,
    same_size,
    shape_of,
)
from fastebm.ops.mlp.network import MAX_DIM_CUDA, MAX_HIDDEN, Network


class Recipe(NamedTuple):
    """How the tensors of a network follow from the inputs of a graph."""

    tensors: Callable[..., tuple]
    activation: Activation

    def network(self, *inputs: Tensor | int | float) -> Network:
        """Of the inputs as they are now."""
        layers, *rest = self.tensors(*inputs)
        weights, biases = (list(values) for values in zip(*layers, strict=True))
        return Network(weights, biases, *self.activation, *rest)


def recipe(graph: fx.Graph, x: fx.Node, summed: bool = True) -> Recipe:
    """The network of a graph of torch's functions, which is changed.

    Args:
        graph: its only output are the energies, (B,), (B, 1) or (B, S); the nodes'
            ``meta["example_value"]`` tell shapes and dtypes.
        x: its input (B, *event).
        summed: the energy is the sum of the scales, as for chains; else there may be but one.

    Raises:
        NoNetwork: it is none, and why.
    """
    return _Reader(graph, x).read(summed)


class _Reader:
    """Goes through a graph; ``op_...`` say what an operation makes of its arguments, None: nothing
    that is known."""

    def __init__(self, graph: fx.Graph, x: fx.Node) -> None:
        rows, *event = shape_of(x)
        if not all(isinstance(n, int) for n in event):
            raise NoNetwork("the sizes of samples are not fixed")
        if isinstance(rows, int) and rows != 1:
            raise NoNetwork(f"it is written for batches of {rows} alone")
        self.graph, self.x = graph, x
        self.terms = Terms(graph, rows, math.prod(event))
        self.values: dict[fx.Node, object] = {x: Scaled()}
        self.event: tuple[int, ...] = ()  # of what the node at hand gives

    def read(self, summed: bool) -> Recipe:
        *nodes, output = self.graph.nodes
        with self.graph.inserting_before(output):
            for node in nodes:
                if node is not self.x:
                    self.values[node] = node if node.op == "placeholder" else self._value(node)
            (results,) = output.args
            if len(results) != 1 or not isinstance(results[0], fx.Node):
                raise NoNetwork("it computes more than energies")
            e = self.values[results[0]]
            e = self.terms.summed(e) if summed and isinstance(e, Layer) else self.terms.energy(e)
            if e is None or e.top is None:
                raise NoNetwork("what it returns is no output of a perceptron")
            output.args = (self._tensors(e),)
        for node in reversed(nodes := list(self.graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)
        code = fx.GraphModule(torch.nn.Module(), self.graph)
        return Recipe(code.forward, e.top.below.activation)

    def _tensors(self, e: Energy) -> tuple:
        """Layers, precision, mean and row biases."""
        terms, top, hidden = self.terms, e.top, e.top.below
        if len(hidden.layers) > MAX_HIDDEN:
            raise NoNetwork(f"it has {len(hidden.layers)} hidden layers, more than {MAX_HIDDEN}")
        if self.x.meta["example_value"].device.type == "cuda" and terms.dim > MAX_DIM_CUDA:
            raise NoNetwork(f"samples have {terms.dim} elements, on a device over {MAX_DIM_CUDA}")
        if not is_number(e.constant, 0):
            top = terms.shifted(top, e.constant)
        precision, mean, row = None, None, hidden.row
        if row is not None and hidden.layers[0][1] is not None:
            row = terms.emit(operator.add, row, hidden.layers[0][1])
        if e.square is not None:
            precision = terms.filled(terms.times(e.square.factor, 2.0), terms.dim, top.weight)
            if not is_number(e.square.mean, 0):
                mean = terms.filled(e.square.mean, terms.dim, top.weight)
        layers = (*hidden.layers, (top.weight, top.bias))
        if self._counts_rows([*(n for layer in layers for n in layer), precision, mean]):
            raise NoNetwork("it depends on how many samples there are")
        return layers, precision, mean, row

    def _counts_rows(self, nodes: list[fx.Node | None]) -> bool:
        """Whether a number of these depends on the size of the batch."""
        seen = set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            value = node.meta.get("example_value")
            if (
                node is self.x
                or isinstance(value, torch.SymInt)
                and (node.op != "placeholder" or same_size(value, self.terms.rows))
            ):
                return True
            nodes += node.all_input_nodes
        return False

    def _value(self, node: fx.Node) -> object:
        name = op_of(node)
        if name is None or is_random(node):
            raise NoNetwork(f"it calls {_name(node)}")
        if is_inplace(node) and not self._is_alone(node.args[0]):
            raise NoNetwork(f"it changes a tensor in place by {_name(node)}")
        inputs = node.all_input_nodes
        of_shape = name == "size" and inputs == [self.x]
        if of_shape or all(isinstance(self.values[n], fx.Node) for n in inputs):
            return node
        value_of = lambda a: self.values[a] if isinstance(a, fx.Node) else a  # noqa: E731
        args = [value_of(a) for a in node.args]
        kwargs = {k: value_of(a) for k, a in node.kwargs.items()}
        name, self.event = name.removeprefix(IN_PLACE), shape_of(node)[1:]
        try:
            if name in ACTIVATIONS:
                value = self.terms.activated(args[0], ACTIVATIONS[name](*args[1:], **kwargs))
            else:
                value = getattr(self, f"op_{name}")(node, *args, **kwargs)
        except (TypeError, AttributeError, LookupError):  # arguments that it is not read with
            value = None
        if value is None or not self._fits(value, node):
            kinds = ", ".join(type(a).__name__.lower() for a in args)
            raise NoNetwork(f"{_name(node)} of ({kinds}) is no part of one")
        return value

    def _is_alone(self, node: fx.Node) -> bool:
        """Whether nothing else sees the memory of a value that is changed in place."""
        if not isinstance(self.values.get(node), (Layer, Square, Energy)) or len(node.users) > 1:
            return False
        return op_of(node) not in _VIEWS or self._is_alone(node.args[0])

    def _fits(self, value: object, node: fx.Node) -> bool:
        """Whether shape and dtype of the node are the value's, as broadcasting may do anything."""
        shape = shape_of(node)
        if not is_float(node) or not shape or not same_size(shape[0], self.terms.rows):
            return False
        if not all(isinstance(n, int) for n in shape[1:]):
            return False
        if isinstance(value, (Scaled, Square)):
            return math.prod(shape[1:]) == self.terms.dim
        if isinstance(value, Energy):
            return shape[1:] in ((), (1,))
        if isinstance(value, Joined):
            return shape[1:] == (sum(width for _, width in value.parts),)
        layer = value.layer if isinstance(value, Gate) else value
        return isinstance(layer, (Layer, Hidden)) and shape[1:] == (layer.width,)

    def op_linear(self, node, h, weight, bias=None, of=0):
        return self.terms.layer(h, weight, bias) if len(shape_of(node.args[of])) == 2 else None

    def op_matmul(self, node, h, weight):
        if len(shape_of(weight)) == 1:
            return self.terms.energy(self._by(node, 0, h, weight, torch.unsqueeze, 0))
        return self._by(node, 0, h, weight, torch.t)

    def op_addmm(self, node, bias, h, weight):
        layer = self._by(node, 1, h, weight, torch.t)
        return layer and self.terms.added(layer, bias, self.event)

    def _by(self, node, of, h, weight, turn, *how):
        """A product with a weight that is to be turned."""
        turned = self.terms.emit(turn, weight, *how)
        turned.meta["example_value"] = turn(weight.meta["example_value"], *how)
        return self.op_linear(node, h, turned, of=of)

    def op_cat(self, node, parts, dim=0):
        shapes, parts = [shape_of(p) for p in parts], [self.values[p] for p in parts]
        if dim not in (1, -1) or any(len(shape) != 2 for shape in shapes):
            return None
        if not all(isinstance(part, (Scaled, fx.Node)) for part in parts):
            return None
        return Joined(tuple((part, shape[1]) for part, shape in zip(parts, shapes, strict=True)))

    def op_sigmoid(self, node, layer):
        return Gate(layer) if isinstance(layer, Layer) else None

    def op_dropout(self, node, value, *how, **named):  # which is off
        return value

    def op_add(self, node, a, b, alpha=1):
        return self.terms.added(a, b, self.event) if alpha == 1 else None

    def op_sub(self, node, a, b, alpha=1):
        return self.op_add(node, a, self.terms.scaled(b, -1.0, self.event), alpha)

    def op_rsub(self, node, a, b, alpha=1):
        return self.op_sub(node, b, a, alpha)

    def op_neg(self, node, a):
        return self.terms.scaled(a, -1.0, self.event)

    def op_mul(self, node, a, b):
        if isinstance(a, Scaled) and isinstance(b, Scaled):
            same = a.shift is b.shift or a.shift == b.shift
            return Square(self.terms.times(a.scale, b.scale), a.shift) if same else None
        for gate, layer in ((a, b), (b, a)):
            if isinstance(gate, Gate) and gate.layer is layer:
                return self.terms.activated(layer, ACTIVATIONS["silu"]())
        if is_constant(a):
            a, b = b, a
        return self.terms.scaled(a, b, self.event) if is_constant(b) else None

    def op_div(self, node, a, b):
        if not is_constant(b) or is_number(b, 0):
            return None
        inverse = self.terms.emit(_inverse, b) if isinstance(b, fx.Node) else 1 / b
        if isinstance(b, fx.Node):
            inverse.meta["example_value"] = b.meta["example_value"]
        return self.terms.scaled(a, inverse, self.event)

    def op_square(self, node, a):
        return self.op_mul(node, a, a) if isinstance(a, Scaled) else None

    def op_pow(self, node, a, exponent):
        return self.op_square(node, a) if is_number(exponent, 2) else None

    def op_sum(self, node, a, dim=None, keepdim=False, axis=None, dtype=None):
        if isinstance(a, Layer):
            return self.terms.summed(a)
        return self.terms.total(a) if isinstance(a, Square) else None

    def op_mean(self, node, a, *dims, **named):
        summed = self.op_sum(node, a, *dims, **named)
        n = a.width if isinstance(a, Layer) else self.terms.dim
        return summed and self.terms.scaled(summed, 1 / n, self.event)

    def op_reshape(self, node, a, *shape, **named):
        if isinstance(a, Layer) and self.event != (a.width,):
            return self.terms.energy(a)
        return a if isinstance(a, (Scaled, Square, Energy, Layer)) else None

    def op_clone(self, node, a, *how, **named):
        return a

    def op_to(self, node, a, *how):
        return a if set(how) <= {torch.float32} else None

    def op_getitem(self, node, a, index):
        index = index if isinstance(index, tuple) else (index,)
        if not isinstance(a, Layer) or len(index) != 2 or index[0] not in (..., slice(None)):
            return None
        if not isinstance(index[1], slice):
            return self.terms.column(a, index[1])
        columns = range(a.width)[index[1]]
        return self.terms.column(a, columns[0]) if len(columns) == 1 else None

    def op_select(self, node, a, dim, index):
        return self.terms.column(a, index) if isinstance(a, Layer) and dim in (1, -1) else None


_VIEWS = ("reshape", "getitem", "select", "clone", "to", "dropout")


def _inverse(c: float | Tensor) -> float | Tensor:
    return 1 / c


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
