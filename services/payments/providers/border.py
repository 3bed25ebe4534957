"""The border of an adapter: a call without a final answer is an exception inside, and a value outside."""

import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from services.payments.domain import Payment, Refund
from services.payments.providers.results import ChargeResult, RefundResult, Unknown, unknown_charge, unknown_refund

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")
Async = Coroutine[Any, Any, T]


class Withdrawn(Exception):
    """A call was not sent, because it is not wanted any more."""


Check = Callable[[], Awaitable[None]]
"""Awaited after each wait, directly before a request that can take money. Raises `Withdrawn` if it is not wanted."""


class NoAnswer(Exception):
    """The provider gave no final answer: the effect of the call may or may not have happened.

    Timeouts, lost connections, 429 and 5xx raise it. It never leaves an adapter.
    """

    def __init__(
        self, operation: str, *, has_ended: bool = False, too_many: bool = False, is_limit: bool = False
    ) -> None:
        """`has_ended`: the provider has answered with an error, so the call can take no effect later.

        `too_many`: a list is longer than one search may read. `is_limit`: the provider takes no more calls now.
        """
        super().__init__(operation)
        self.has_ended, self.too_many, self.is_limit = has_ended, too_many, is_limit
        self.was_sent = True


class NotSent(NoAnswer):
    """Our limits kept a call from being sent: it can take no effect."""

    def __init__(self, operation: str) -> None:
        super().__init__(operation, has_ended=True, is_limit=True)
        self.was_sent = False


class Refused(Exception):
    """The provider refused a request for good, and nothing has happened.

    Where an adapter makes no decision of it, it is a call without an answer that has ended.
    """

    def __init__(self, reason: str, field: str = "", *, is_missing: bool = False) -> None:
        """`is_missing`: there is no object with the id of the request."""
        super().__init__(reason)
        self.reason, self.field, self.is_missing = reason, field, is_missing
        self.has_ended, self.too_many, self.was_sent = True, False, True


def returns_charge(
    method: Callable[Concatenate[A, Payment, P], Async[ChargeResult]],
) -> Callable[Concatenate[A, Payment, P], Async[ChargeResult]]:
    """Return an unknown result of the payment for `NoAnswer` and `Refused`."""

    @functools.wraps(method)
    async def call(adapter: A, payment: Payment, /, *rest: P.args, **named: P.kwargs) -> ChargeResult:
        try:
            return await method(adapter, payment, *rest, **named)
        except (NoAnswer, Refused) as failed:
            return unknown_charge(payment, has_ended=failed.has_ended, was_sent=failed.was_sent)

    return call


def returns_refund(method: Callable[[A, Refund], Async[RefundResult]]) -> Callable[[A, Refund], Async[RefundResult]]:
    """Return an unknown result of the refund for `NoAnswer` and `Refused`."""

    @functools.wraps(method)
    async def call(adapter: A, refund: Refund) -> RefundResult:
        try:
            return await method(adapter, refund)
        except (NoAnswer, Refused) as failed:
            return unknown_refund(refund, has_ended=failed.has_ended)

    return call


def returns(method: Callable[P, Async[T]]) -> Callable[P, Async[T | Unknown]]:
    """Return `Unknown` for `NoAnswer` and `Refused`."""

    @functools.wraps(method)
    async def call(*arguments: P.args, **named: P.kwargs) -> T | Unknown:
        try:
            return await method(*arguments, **named)
        except (NoAnswer, Refused) as failed:
            return Unknown(too_many=failed.too_many)

    return call
