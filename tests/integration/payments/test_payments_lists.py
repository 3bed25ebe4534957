"""The list of all payments for staff."""

import pytest

from services.payments.sql import lists
from stampede.payments.v1 import payment_service_pb2 as pb
from tests.integration.payments.conftest import Payments, an_order
from tests.support import tokens


async def listed(service: Payments, *, size: int = 2, state: int = 0) -> tuple[list[str], int]:
    """The ids of all pages, and how many pages there are."""
    found, token, pages = list[str](), "", 0
    while True:
        request = pb.ListPaymentsRequest(page_size=size, page_token=token, state=state)  # type: ignore[arg-type]
        page = await service.payments.ListPayments(request, metadata=tokens.as_staff())
        found += [payment.id for payment in page.payments]
        pages, token = pages + 1, page.next_page_token
        if not token:
            return found, pages


async def test_pages_hold_each_payment_once_newest_first(service: Payments) -> None:
    made = [(await service.charged(an_order())).payment_id for _ in range(5)]
    assert await listed(service) == (made[::-1], 3)


@pytest.mark.parametrize("candidates", [2_000, 3])
async def test_state_selects_payments(service: Payments, monkeypatch: pytest.MonkeyPatch, candidates: int) -> None:
    """Also with fewer candidates a page than there are payments: then some pages are empty."""
    monkeypatch.setattr(lists, "_CANDIDATES_MOST", candidates)
    cards = ("pm_card_chargeDeclined", "pm_card_visa", "", "pm_card_visa", "pm_card_chargeDeclined", "pm_card_visa")
    made = [(await service.charged(an_order(card))).payment_id for card in cards]

    found, _ = await listed(service, state=pb.Payment.FAILED)

    assert found == [made[4], made[0]]
    assert (await listed(service, state=pb.Payment.AWAITING_CUSTOMER))[0] == [made[2]]
