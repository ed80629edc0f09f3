"""Energies that hold a value in every kind of place where Python keeps one, and how it changes."""

import dataclasses
import enum
import functools
import types

import numpy as np
import torch
from torch import nn

SCALE = 1.0


class Power(enum.Enum):
    TWO = 2.0
    THREE = 3.0


class Scaled(nn.Module):
    """``scale() * sum x^2``; what holds the scale is set from outside."""

    def scale(self):
        raise NotImplementedError

    def forward(self, x):
        return self.scale() * x.square().sum(1)


def energy(scale, **held):
    """A class and an instance of its own, so that no test changes another's."""
    kind = type("Energy", (Scaled,), {"scale": scale, "__module__": __name__})
    model = kind()
    for name, value in held.items():
        setattr(model, name, value)
    return model


@dataclasses.dataclass
class Options:
    scale: float
    more: object = None


class WithSlots:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale

    def method(self):
        return self.scale

    @property
    def twice(self):
        return 2 * self.scale


def closure(scale):
    def get():
        return scale

    def put(value):
        nonlocal scale
        scale = value

    return get, put


def change(path, value):
    """Sets model.<path>."""

    def put(model):
        *owners, name = path.split(".")
        setattr(functools.reduce(getattr, owners, model), name, value)

    return put


def item(name, key, value):
    return lambda model: getattr(model, name).__setitem__(key, value)


def patch_global(model):
    globals()["SCALE"] = 3.0 if SCALE == 1.0 else 1.0


def patch_forward(model):
    type(model).forward = lambda self, x: 3 * x.square().sum(1)


def default(scale=1.0):
    return scale


def _with_closure():
    get, put = closure(1.0)
    model = energy(lambda self: self.get(), get=get)
    return model, lambda model: put(3.0)


def _with_default():
    f = types.FunctionType(default.__code__, globals(), "default", (1.0,))
    return energy(lambda self: self.f(), f=f), lambda model: setattr(f, "__defaults__", (3.0,))


def _with_class_value():
    model = energy(lambda self: self.value)
    type(model).value = 1.0
    return model, lambda model: setattr(type(model), "value", 3.0)


def _with_shared_object():
    owner = WithSlots(1.0)
    return energy(lambda self: self.f(), f=owner.method), lambda model: setattr(owner, "scale", 3.0)


class Softplus(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Softplus(), nn.Linear(3, 1))

    def forward(self, x):
        return self.net(x)


def _one(x):
    return 1.0


def _three(x):
    return 3.0


# name: () -> model, what changes it
KINDS = {
    "number": lambda: (energy(lambda s: s.v, v=1.0), change("v", 3.0)),
    "tuple": lambda: (energy(lambda s: s.v[1], v=(0, 1.0)), change("v", (0, 3.0))),
    "list": lambda: (energy(lambda s: s.v[0], v=[1.0]), item("v", 0, 3.0)),
    "dict": lambda: (energy(lambda s: s.v["a"], v={"a": 1.0}), item("v", "a", 3.0)),
    "set": lambda: (energy(lambda s: max(s.v), v={1.0}), lambda m: m.v.add(3.0)),
    "text": lambda: (energy(lambda s: len(s.v), v="a"), change("v", "aaa")),
    "enum": lambda: (energy(lambda s: s.v.value, v=Power.TWO), change("v", Power.THREE)),
    "tensor": lambda: (
        energy(lambda s: s.v, v=torch.tensor(1.0)),
        lambda m: setattr(m, "v", torch.tensor(3.0)),
    ),
    "list of tensors": lambda: (
        energy(lambda s: s.v[0] * s.v[1], v=[torch.tensor(1.0), torch.tensor(1.0)]),
        lambda m: m.v.__setitem__(1, torch.tensor(3.0)),
    ),
    "array": lambda: (energy(lambda s: float(s.v[0]), v=np.ones(2)), item("v", 0, 3.0)),
    "callable": lambda: (
        energy(lambda s: s.v(None), v=_one),
        lambda m: setattr(m, "v", _three),
    ),
    "partial": lambda: (
        energy(lambda s: s.v(), v=functools.partial(default, 1.0)),
        change("v", functools.partial(default, 3.0)),
    ),
    "closure": _with_closure,
    "default argument": _with_default,
    "method of an object": _with_shared_object,
    "nested object": lambda: (
        energy(lambda s: s.v.more.scale, v=Options(0.0, WithSlots(1.0))),
        change("v.more.scale", 3.0),
    ),
    "namespace": lambda: (
        energy(lambda s: s.v.a, v=types.SimpleNamespace(a=1.0)),
        change("v.a", 3.0),
    ),
    "property": lambda: (energy(lambda s: s.v.twice, v=WithSlots(1.0)), change("v.scale", 3.0)),
    "class attribute": _with_class_value,
    "global": lambda: (energy(lambda s: SCALE), patch_global),
    "patched forward": lambda: (energy(lambda s: 1.0), patch_forward),
    "a forward of its own": lambda: (
        energy(lambda s: 1.0),
        lambda m: setattr(m, "forward", lambda x: 3 * x.square().sum(1)),
    ),
    "number of a layer": lambda: (Softplus(), change("net.1.beta", 3.0)),
    "another layer": lambda: (Softplus(), lambda m: m.net.__setitem__(1, nn.Tanh())),
}
