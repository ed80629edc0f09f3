"""Checks of the integers that users give: counts, sizes, shapes."""

from __future__ import annotations

import operator
from collections.abc import Iterable


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
