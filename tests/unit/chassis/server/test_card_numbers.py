"""Card numbers in requests are found in every spelling, and other long numbers are not taken for one."""

import timeit
import uuid

import pytest

from services.chassis.server.card_numbers import fields_with, has_card_number, may_contain
from stampede.catalog.v1 import catalog_service_pb2 as catalog_pb
from stampede.orders.v1 import order_service_pb2 as order_pb

CARDS = (
    "4242424242424242", "4222222222222", "4000056655665556", "5555555555554444", "5105105105105100", "2223003122003222",
    "378282246310005", "6011111111111117", "3056930009020004", "36227206271667", "3566002020360505",
    "6200000000000005", "6205500000000000004", "6304000000000000",
)  # fmt: skip


def request_with(text: str) -> order_pb.CancelOrderRequest:
    return order_pb.CancelOrderRequest(order_id=str(uuid.uuid4()), request_id=str(uuid.uuid4()), reason=text)


def is_found(text: str) -> bool:
    """Whether both tests find a card number in a field with `text`, as the guard applies them."""
    request = request_with(text)
    fast = may_contain(request, request.SerializeToString())
    return fast and list(fields_with(request)) == ["reason"]


@pytest.mark.parametrize("card", CARDS)
def test_card_numbers_of_all_brands_are_found(card: str) -> None:
    assert is_found(card)
    assert is_found(f"my card: {card}.")
    assert not has_card_number(card[:-1] + str((int(card[-1]) + 1) % 10))


@pytest.mark.parametrize(
    "text",
    [
        "4242 4242 4242 4242", "4242-4242-4242-4242", "4242.4242.4242.4242", "4242\xa04242\xa04242\xa04242",
        "4242\u20134242\u20134242\u20134242", "4242- 4242 4242 4242", "4242_4242_4242_4242",
        "3782 822463 10005", "pay4242424242424242now", "4242 4242 4242 4242 12 27 123", "4242 4242 4242 4242 1227",
        "+4242424242424242", "４２４２４２４２４２４２４２４２",
        "\u0664\u0662\u0664\u0662\u0664\u0662\u0664\u0662\u0664\u0662\u0664\u0662\u0664\u0662\u0664\u0662",
        "4242424242424242=27121011000", "Karte: 4242 4242 4242 4242, gültig bis März",
    ],
)  # fmt: skip
def test_card_numbers_are_found_in_every_spelling(text: str) -> None:
    assert is_found(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "order 1234", "0000000000000000", "1111111111111111", "4242 4242 4242 4241", "+49 151 12345678",
        "+4915112345678", "2026-11-27 14:31:00.123456", "9780306406157", "123456789012345678901234567890",
        "018f0000-0000-7000-8000-000000000001", "42 42 42 42 42 42 42 42",
    ],
)  # fmt: skip
def test_other_numbers_are_no_card_numbers(text: str) -> None:
    assert not has_card_number(text)


def test_fields_are_named_as_clients_write_them() -> None:
    order = order_pb.PlaceOrderRequest(request_id=CARDS[0], payment_method=CARDS[0])
    order.shipping_address.line1 = f"c/o {CARDS[6]}"
    assert list(fields_with(order)) == ["paymentMethod", "shippingAddress.line1"]
    product = catalog_pb.CreateProductRequest(
        sku=CARDS[0], name="Clock", attributes={"note": CARDS[1], CARDS[2]: "", "size": "4"}
    )
    assert list(fields_with(product)) == ["attributes"]  # the key itself is not repeated
    del product.attributes[CARDS[2]]
    assert list(fields_with(product)) == ["attributes[note]"]


def test_numbers_of_parcels_and_articles_are_allowed() -> None:
    assert not list(fields_with(order_pb.ShipOrderRequest(carrier="UPS", tracking_number=CARDS[0])))
    assert not list(fields_with(catalog_pb.CreateProductRequest(sku=CARDS[0], name="Clock")))


def test_ordinary_requests_pass_the_fast_test() -> None:
    """Of 1,000 orders, the exact test looks into few: the digits of a UUID can look like a long number."""
    looked_into = 0
    for _ in range(1000):
        line = order_pb.PlaceOrderLine(product_id=str(uuid.uuid4()), quantity=1, flash_sale_id=str(uuid.uuid4()))
        order = order_pb.PlaceOrderRequest(request_id=str(uuid.uuid4()), lines=[line], payment_method="pm_card_visa")
        looked_into += may_contain(order, order.SerializeToString())
    assert looked_into < 150


def test_the_fast_test_costs_microseconds() -> None:
    """A generous bound: it takes less than one on an idle machine."""
    request = request_with("I ordered the wrong size")
    data = request.SerializeToString()
    assert min(timeit.repeat(lambda: may_contain(request, data), number=1000, repeat=5)) / 1000 < 20e-6


def test_a_long_text_of_digits_is_searched_quickly() -> None:
    longest = "123 " * 125
    assert min(timeit.repeat(lambda: has_card_number(longest), number=1, repeat=3)) < 0.02
