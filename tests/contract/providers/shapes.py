"""Stripe's public description of its objects, as the pinned SDK carries it: its classes are generated from it.

A field whose type is not optional must be there; each value has its type; a listed value is one of its list; no field
is unknown. The description says the same of fields that may be null and of fields that may be missing.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, ForwardRef, Literal, Union

import stripe

_NONE = type(None)
# The sandbox answers these as Stripe does, although this release of the description has dropped them.
_DROPPED = {
    "PaymentIntent": {"source"}, "Charge": {"source"}, "PaymentMethod": set(), "Customer": {"discount"},
}  # fmt: skip


def problems(value: Any, kind: Any, path: str = "") -> Iterator[str]:
    """Yields each difference between a JSON value and its described type."""
    if isinstance(kind, ForwardRef):
        kind = _named(kind.__forward_arg__)
    if isinstance(kind, str):
        kind = _named(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return
    if origin in (Union, types.UnionType):
        yield from _of_union(value, arguments, path)
    elif origin is Literal:
        if value not in arguments:
            yield f"{path}: {value!r} is none of {arguments}"
    elif origin is list:
        yield from _of_list(value, arguments[0], path)
    elif origin is not None and issubclass(origin, stripe.ListObject):
        yield from _of_list(value.get("data") if isinstance(value, dict) else None, arguments[0], f"{path}.data")
    elif origin is not None and issubclass(origin, dict | stripe.StripeObject):
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no object"
    elif isinstance(kind, type) and issubclass(kind, stripe.StripeObject):
        yield from _of_object(value, kind, path)
    elif not _is_plain(value, kind):
        yield f"{path}: {value!r} is no {getattr(kind, '__name__', kind)}"


def _of_union(value: Any, arguments: tuple[Any, ...], path: str) -> Iterator[str]:
    if value is None:
        if _NONE not in arguments:
            yield f"{path} is null"
        return
    closed = [each for each in arguments if typing.get_origin(each) is Literal]
    # `Literal[…] | str` means that Stripe may add values; the sandbox must not.
    options = closed or [each for each in arguments if each is not _NONE]
    found = [list(problems(value, each, path)) for each in options]
    if all(found):
        yield from min(found, key=len)


def _of_list(value: Any, kind: Any, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path}: {value!r} is no list"
        return
    for index, item in enumerate(value):
        yield from problems(item, kind, f"{path}[{index}]")


def _of_object(value: Any, kind: type[stripe.StripeObject], path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no {kind.__name__}"
        return
    described = {name: each for name, each in kind.__annotations__.items() if not name.isupper()}
    if not described:  # an object without a description, such as the tips of card readers
        return
    for name, each in described.items():
        if name in value:
            yield from problems(value[name], each, f"{path}.{name}")
        elif _NONE not in typing.get_args(each):
            yield f"{path}.{name} is missing"
    for name in value.keys() - described.keys() - _DROPPED.get(kind.__name__, set()):
        yield f"{path}.{name} is unknown"


def _is_plain(value: Any, kind: Any) -> bool:
    if kind in (int, float, Decimal):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _named(name: str) -> Any:
    return getattr(stripe, name, Any)
