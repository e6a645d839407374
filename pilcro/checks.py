"""Refuse arguments, in the words that all of pilcro uses."""

from collections.abc import Iterable, Sequence
from numbers import Real


def positive_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def as_pair(name: str, value: object, least: int = 1) -> tuple[int, int]:
    """An int or a pair of them as a pair, checked."""
    both = [value] * 2 if isinstance(value, int) else value
    if not isinstance(both, Sequence) or [type(number) for number in both] != [int, int]:
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if min(both) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return both[0], both[1]


def number(name: str, value: object) -> Real:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def one_of(name: str, value: object, options: Iterable[str]) -> str:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}; got {value!r}")
    return value
