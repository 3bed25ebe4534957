"""The rules of further attempts to pay an order, which its customer asks for. Pure."""

from dataclasses import dataclass, replace

from services.chassis.errors import AppError, WrongState
from services.orders.domain import HoldEnded, Order, PaymentState, State

ATTEMPTS_MOST = 5
"""So many attempts to pay an order may its customer ask for, beside the one that it came with."""


class PaymentInProgress(AppError):
    code = "FAILED_PRECONDITION"
    template = "An earlier attempt to pay the order {orderId} may be taking money."


class AttemptsLimit(AppError):
    code = "FAILED_PRECONDITION"
    template = "The order {orderId} has had its {limit} further attempts to pay."


@dataclass(frozen=True, slots=True)
class PaymentTerms:
    """How a customer wants to pay an order in another attempt, beside a card's token."""

    provider: str = ""
    """Empty for that of the earlier attempt."""
    checkout: bool = False
    """Whether they pay on a page of the provider."""
    return_url: str = ""
    """The address to which that page sends them back."""
    saved_method_id: str = ""
    """The saved method that is charged."""
    save_method: bool = False
    """Whether the method that pays is saved, as they have agreed to."""

    def at(self, provider: str) -> "PaymentTerms":
        """The terms with the provider of the earlier attempt, if they name none."""
        return replace(self, provider=self.provider or provider)


def check_state(order: Order, *, hold_is_over: bool) -> None:
    """Raises unless its customer may pay the order now: `WrongState`, `HoldEnded`."""
    declined = order.state is State.FAILED and order.payment and order.payment.state is PaymentState.FAILED
    if not (declined or order.state is State.PENDING) or order.cancel_requested:
        raise WrongState(resource="order", state=order.state, wanted=State.PAID)
    if hold_is_over:
        raise HoldEnded(requestId=order.request_id)


def check_limit(order: Order) -> None:
    """Raises `AttemptsLimit` if its customer has asked for enough attempts to pay the order."""
    if order.payment_attempts >= ATTEMPTS_MOST:
        raise AttemptsLimit(orderId=order.id, limit=ATTEMPTS_MOST)
