"""What losses have in common: their settings, of which the model is one."""

from __future__ import annotations

from torch import nn

from fastebm.arguments import Setting


class Loss(nn.Module):
    """A loss, whose settings are attributes and never submodules: the parameters of its model are
    not listed twice.

    Attributes:
        calls: of the loss so far.
    """

    calls = 0
    _outside_graphs = ("calls",)  # what no graph of a step bakes in

    def __setattr__(self, name: str, value) -> None:
        if isinstance(getattr(type(self), name, None), Setting):
            object.__setattr__(self, name, value)  # past nn.Module, which would register a module
        else:
            super().__setattr__(name, value)
