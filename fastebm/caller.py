"""Warnings in the name of who called the package."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

_BETWEEN = {"fastebm", "torch", "sklearn"}  # torch's modules and scikit-learn's wrappers call us


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the caller's own line, however deep in here it arises."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
