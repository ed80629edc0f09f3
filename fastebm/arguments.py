"""Checks of what users give: attributes, choices, counts, sizes, shapes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

Check = Callable[[str, Any], Any]  # (name, value) -> what is kept; or raises


class Setting:
    """An attribute that is checked whenever it is set, and read as any attribute of an instance."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, instance: object, value: Any) -> None:
        vars(instance)[self.name] = self.check(self.name, value)


class Fixed(Setting):
    """An attribute that is set once."""

    def __set__(self, instance: object, value: Any) -> None:
        if self.name in vars(instance):
            kind = type(instance).__name__
            raise AttributeError(f"{self.name} of a {kind} is fixed: make another {kind}")
        super().__set__(instance, value)


def optional(check: Check) -> Check:
    """``check`` of what is not None."""
    return lambda name, value: None if value is None else check(name, value)


def one_of(*values: Any) -> Check:
    def check(name: str, value: Any) -> Any:
        if not any(type(value) is type(v) and value == v for v in values):  # 1 is not True here
            raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, got {value!r}")
        return value

    return check


def integer(name: str, value: int, least: int, most: int | None = None) -> int:
    """``value`` as an int, of any integer type (NumPy's too) but bool.

    Raises:
        ValueError: it is none, or not in least..most.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        wanted = f">= {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name} must be an integer {wanted}, got {value!r}")
    return number


def sizes(name: str, values: int | Iterable[int]) -> tuple[int, ...]:
    """Integers >= 1, such as the shape of a sample; a number stands for one of them.

    Raises:
        ValueError: one of them is none.
    """
    values = tuple(values) if isinstance(values, Iterable) else (values,)
    return tuple(integer(name, value, 1) for value in values)


def finite_range(name: str, value: Iterable[float]) -> tuple[float, float]:
    """(lo, hi), finite, with lo < hi, or a ValueError."""
    try:
        lo, hi = map(float, value)
    except (TypeError, ValueError):
        lo = hi = math.nan
    if not -math.inf < lo < hi < math.inf:
        raise ValueError(f"{name} must be finite (lo, hi) with lo < hi, got {value!r}")
    return lo, hi


def share(name: str, value: float) -> float:
    """A number in [0, 1], or a ValueError."""
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")
    return float(value)
