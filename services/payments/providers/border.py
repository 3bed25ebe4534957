"""The border of an adapter: a call without a final answer is an exception inside, and a value outside."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from services.payments.domain import Payment, Refund
from services.payments.providers.results import ChargeResult, RefundResult, Unknown, unknown_charge, unknown_refund

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")
Async = Coroutine[Any, Any, T]


class NoAnswer(Exception):
    """The provider gave no final answer: the effect of the call may or may not have happened.

    Timeouts, lost connections, 429 and 5xx raise it. It never leaves an adapter.
    """

    def __init__(self, operation: str, *, has_ended: bool = False, too_many: bool = False) -> None:
        """`has_ended`: the provider has answered with an error, so the call can take no effect later."""
        super().__init__(operation)
        self.has_ended, self.too_many = has_ended, too_many


def returns_charge(
    method: Callable[Concatenate[A, Payment, P], Async[ChargeResult]],
) -> Callable[Concatenate[A, Payment, P], Async[ChargeResult]]:
    """Return an unknown result of the payment for `NoAnswer`."""

    @functools.wraps(method)
    async def call(adapter: A, payment: Payment, /, *rest: P.args, **named: P.kwargs) -> ChargeResult:
        try:
            return await method(adapter, payment, *rest, **named)
        except NoAnswer as failed:
            return unknown_charge(payment, has_ended=failed.has_ended)

    return call


def returns_refund(method: Callable[[A, Refund], Async[RefundResult]]) -> Callable[[A, Refund], Async[RefundResult]]:
    """Return an unknown result of the refund for `NoAnswer`."""

    @functools.wraps(method)
    async def call(adapter: A, refund: Refund) -> RefundResult:
        try:
            return await method(adapter, refund)
        except NoAnswer as failed:
            return unknown_refund(refund, has_ended=failed.has_ended)

    return call


def returns(method: Callable[P, Async[T]]) -> Callable[P, Async[T | Unknown]]:
    """Return `Unknown` for `NoAnswer`."""

    @functools.wraps(method)
    async def call(*arguments: P.args, **named: P.kwargs) -> T | Unknown:
        try:
            return await method(*arguments, **named)
        except NoAnswer as failed:
            return Unknown(too_many=failed.too_many)

    return call
