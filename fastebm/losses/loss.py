"""What losses have in common: the model that they train."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastebm.samplers.settings import callable_model


class Loss(nn.Module):
    """A loss of a model, which is an attribute and not a submodule, so that its parameters are not
    listed twice."""

    model: Callable[..., Tensor]

    def __setattr__(self, name: str, value) -> None:
        if name == "model":  # past nn.Module, which would register it
            self._check_model(value)
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _check_model(self, model: Callable[..., Tensor]) -> None:
        """Raises where this is no model of the loss."""
        callable_model("model", model)
