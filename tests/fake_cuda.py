"""A CUDA device without one, for tests: tensors that say they are on it, kernels that are emulated,
and torch's error where an operator gets tensors of two devices.

A tensor is "on cuda" when its storage is in a list. Whoever asks for the device, or makes a tensor
on one, meets a stand-in for torch's method; a mode below autograd enters what operators make of
such tensors into the list, and refuses what a GPU would refuse.
"""

import contextlib
import importlib

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastebm import _C
from fastebm.chains import chain, plain_mlp
from fastebm.ops import library

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
ANY_DEVICE = ("copy_", "_to_copy")
INDICES_ANYWHERE = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
ON_CUDA: set[StorageWeakRef] = set()  # a weak one keeps the address from being used again
ANYWHERE: set[StorageWeakRef] = set()  # zeros that autograd made, on the device it knew

_device = torch._C.TensorBase.device.__get__
_grad = torch._C.TensorBase.grad
_to = torch.Tensor.to


def key(tensor):
    """Of its storage; None where a tensor has none."""
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError, ValueError):
        return None


def on_cuda(tensor):
    storage = key(tensor)
    return storage is not None and storage in ON_CUDA


def place(tensor, device):
    ANYWHERE.discard(key(tensor))
    (ON_CUDA.add if device.type == "cuda" else ON_CUDA.discard)(key(tensor))
    return tensor


def is_device(value):
    return isinstance(value, (str, torch.device))


def to(self, *args, **kwargs):
    """``Tensor.to``: a change of device is a copy."""
    args, other = list(args), kwargs.pop("other", None)
    if args and isinstance(args[0], torch.Tensor):
        other = args.pop(0)
    if other is not None:
        args[:0] = [other.device, other.dtype]
    device = args.pop(0) if args and is_device(args[0]) else kwargs.pop("device", None)
    if device is None:
        return _to(self, *args, **kwargs)
    if args and args[0] is None:
        args.pop(0)
    device, here = torch.device(device), self.device
    if {device.type, here.type} - {"cuda", "cpu"}:
        return _to(self, device, *args, **kwargs)
    if device.type == here.type:
        return _to(self, CPU, *args, **kwargs)
    for value in args:  # positional: dtype, non_blocking, copy
        if isinstance(value, torch.dtype):
            kwargs["dtype"] = value
    return place(_to(self, CPU, **kwargs | {"copy": True}), device)


def made_on(make):
    """The stand-in for a function that takes ``device=``."""

    def call(*args, **kwargs):
        kwargs.pop("pin_memory", None)
        device = kwargs.get("device")
        if device is None:
            made = make(*args, **kwargs)
            ANYWHERE.discard(key(made))
            return made
        if torch.device(device).type not in ("cuda", "cpu"):
            return make(*args, **kwargs)
        return place(make(*args, **kwargs | {"device": CPU}), torch.device(device))

    return call


def as_tensor(make):
    """The same for those that may hand back what they were given."""

    def call(data, *args, device=None, **kwargs):
        made = make(data, *args, **kwargs)
        return made if device is None else made.to(device)

    return call


def grad(self):
    """It is where its tensor is, also where autograd came from the other device."""
    found = _grad.__get__(self)
    return found if found is None else place(found, self.device)


def numpy(self, **kwargs):
    if on_cuda(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return torch._C.TensorBase.numpy(self, **kwargs)


def call_op(op, args, kwargs=None, **_):
    """In the place of opcheck: one call, on copies as there."""
    copies = tree_map_only(torch.Tensor, torch.Tensor.clone, (args, kwargs or {}))
    return op(*copies[0], **copies[1])


class Devices(TorchDispatchMode):
    """What operators make of tensors on cuda is there too; two devices in one are an error.

    Attributes:
        calls: operators that had a tensor on cuda.
    """

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().split("::")[1].split(".")[0]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        there = [t for t in given if on_cuda(t)]
        if there:
            Devices.calls += 1
            if len(there) < len(given):
                self.refuse_two_devices(func, name, args, given)
        out = func(*args, **kwargs)
        if there:
            known = {key(t) for t in given}
            made = {key(t) for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
            ON_CUDA.update(made - known - {None})
        elif not given:
            ANYWHERE.update({key(t) for t in tree_leaves(out) if isinstance(t, torch.Tensor)})
        for storages in (ON_CUDA, ANYWHERE):
            if len(storages) > 10_000:
                storages.difference_update([s for s in [*storages] if s is None or s.expired()])
        return out

    @staticmethod
    def refuse_two_devices(func, name, args, given):
        if name in ANY_DEVICE:
            return
        strict = func.namespace.startswith("fastebm")
        indices = args[1] if name in INDICES_ANYWHERE and on_cuda(args[0]) else ()
        others = [t for t in given if not on_cuda(t) and key(t) not in ANYWHERE]
        others = [t for t in others if not any(t is i for i in indices)]
        changed = name.endswith("_") and any(t is args[0] for t in others)
        if changed or any(strict or t.dim() for t in others):
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but found at least two"
                " devices, cuda:0 and cpu"
            )


@contextlib.contextmanager
def fake_cuda(patch):
    """Within it torch has the device "cuda", without streams, graphs and generators; what would be
    compiled or checked by torch's own tracers is called. ``patch``: pytest's monkeypatch."""
    importlib.import_module("torch._dynamo")  # looks at Tensor's own properties as it is imported
    for make in _device_constructors():
        if getattr(torch, make.__name__, None) is make:
            stand_in = as_tensor if make.__name__ in ("as_tensor", "asarray") else made_on
            patch.setattr(torch, make.__name__, stand_in(make))
    for name in ("empty", "full", "ones", "rand", "randint", "randn", "zeros"):
        like = f"{name}_like"
        patch.setattr(torch, like, made_on(getattr(torch, like)))
    for name in ("new_empty", "new_full", "new_ones", "new_zeros"):
        patch.setattr(torch.Tensor, name, made_on(getattr(torch.Tensor, name)), raising=False)
    stand_ins = {
        "device": property(lambda t: CUDA if on_cuda(t) else _device(t)),
        "is_cuda": property(on_cuda),
        "grad": property(grad, _grad.__set__, _grad.__delete__),
        "get_device": lambda t: 0 if on_cuda(t) else -1,
        "to": to,
        "cuda": lambda t, *_, **__: t.to(CUDA),
        "cpu": lambda t, *_, **__: t.to(CPU),
        "pin_memory": lambda t: t.clone(),
        "numpy": numpy,
        "new_tensor": lambda t, data, **how: torch.tensor(
            data, **{"dtype": t.dtype, "device": t.device} | how
        ),
    }
    for name, stand_in in stand_ins.items():
        patch.setattr(torch.Tensor, name, stand_in, raising=False)
    patch.setattr(torch.cuda, "synchronize", lambda *_: None)
    patch.setattr(torch.library, "opcheck", call_op)
    patch.setattr(torch, "compile", lambda call, **_: call)
    patch.setattr(library, "op", torch.ops.fastebm_simt)
    patch.setattr(_C, "cuda_archs", "90")
    for module in (plain_mlp, chain):
        patch.setattr(module, "has_modes", lambda: False)  # the one below is the device
    patch.setattr(chain.GRAPHS, "device_types", ())
    with Devices():
        yield
