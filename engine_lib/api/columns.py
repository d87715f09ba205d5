"""Arguments of a call that have one value, or one for each of its texts."""

from __future__ import annotations

from typing import Any, TypeVar

from engine_lib.errors import InvalidRequestError

T = TypeVar("T")


def listed(value: Any) -> Any:
    """A tuple, an array, a tensor or a column of a table as the list it holds; anything else as it is."""
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") and getattr(value, "ndim", None) else value


def entries(value: Any) -> list[Any]:
    """What `value` holds, as `listed` has it; of anything else itself alone."""
    held = listed(value)
    return held if isinstance(held, list) else [held]


def plain(value: Any) -> Any:
    """A scalar of numpy or torch as the Python value it holds; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def broadcast(field: str, value: T | list[T], count: int) -> list[T]:
    """`value` for each of `count` texts.

    Raises:
        InvalidRequestError: it is a list of another length.
    """
    values: list[T] = entries(value)
    if len(values) == 1:
        values = values * count
    if len(values) != count:
        raise InvalidRequestError(field, f"has {len(values)} entries for {count} texts; give one, or one a text")
    return values


def check_string(field: str, value: object) -> None:
    """Check an argument that may be left out.

    Raises:
        InvalidRequestError: it is neither None nor a string.
    """
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(field, f"is a {type(value).__name__}; give a string")
