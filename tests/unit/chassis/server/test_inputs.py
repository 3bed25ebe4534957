"""The headers and ids of a request, as values."""

import uuid
from typing import Any

import pytest

from services.chassis.errors import InvalidFields
from services.chassis.server import inputs
from stampede.catalog.v1 import catalog_service_pb2 as catalog_pb
from stampede.inventory.v1.reservation_service_pb2 import BatchConfirmRequest
from stampede.orders.v1 import order_service_pb2 as order_pb
from stampede.payments.v1 import payment_service_pb2 as payment_pb

ID = "0196f5c0-abcd-7000-8000-00000000000a"
SALE = "0196f5c0-abcd-7000-8000-00000000000b"


def an_order(spell: Any = str) -> order_pb.PlaceOrderRequest:
    lines = [
        order_pb.PlaceOrderLine(product_id=spell(ID), quantity=1),
        order_pb.PlaceOrderLine(product_id=spell(SALE), quantity=1, flash_sale_id=spell(SALE)),
    ]
    return order_pb.PlaceOrderRequest(request_id=spell(ID), lines=lines, payment_method="pm_CARD")


def test_upper_case_request_is_the_same_request() -> None:
    request = an_order(str.upper)
    inputs.normalize_ids(request)
    assert request == an_order()


def test_every_id_of_a_list_is_rewritten() -> None:
    request = BatchConfirmRequest(ids=[SALE, ID.upper()])
    inputs.normalize_ids(request)
    assert list(request.ids) == [SALE, ID]


def test_only_ids_are_rewritten() -> None:
    request = catalog_pb.CreateProductRequest(sku=ID.upper(), name="A", request_id=ID.upper())
    inputs.normalize_ids(request)
    assert (request.sku, request.request_id) == (ID.upper(), ID)


@pytest.mark.parametrize("key", [ID, ID.upper(), f'"{ID}"', f"{{{ID}}}", f"urn:uuid:{ID}", ID.replace("-", "")])
def test_every_spelling_of_a_key_is_one_request_id(key: str) -> None:
    request = order_pb.CancelOrderRequest()
    inputs.take_headers(request, {"idempotency-key": key}, reads=False)
    assert request.request_id == ID


def test_quotes_are_no_part_of_a_key() -> None:
    def id_for(key: str) -> str:
        request = order_pb.CancelOrderRequest()
        inputs.take_headers(request, {"idempotency-key": key}, reads=False)
        return str(uuid.UUID(request.request_id))

    assert id_for('"order #42"') == id_for("order #42")


def test_if_match_is_the_etag() -> None:
    request = catalog_pb.UpdateProductRequest()
    inputs.take_headers(request, {"if-match": '"3"'}, reads=False)
    assert request.etag == '"3"'
    inputs.take_headers(request, {"if-match": '"3"'}, reads=False)


def test_if_match_star_accepts_every_version() -> None:
    request = catalog_pb.UpdateProductRequest()
    inputs.take_headers(request, {"if-match": "*"}, reads=False)
    assert request.etag == ""


@pytest.mark.parametrize(
    ("request_", "headers", "reads", "field"),
    [
        (catalog_pb.UpdateProductRequest(etag='"2"'), {"if-match": '"3"'}, False, "If-Match"),
        (catalog_pb.UpdateProductRequest(), {"if-match": '"2", "3"'}, False, "If-Match"),
        (payment_pb.RefundPaymentRequest(), {"if-match": '"3"'}, False, "If-Match"),
        (catalog_pb.GetProductRequest(), {"if-match": '"3"'}, True, "If-Match"),
        (catalog_pb.CreateProductRequest(), {"if-none-match": "*"}, False, "If-None-Match"),
        (catalog_pb.UpdateProductRequest(), {"if-unmodified-since": "yesterday"}, False, "If-Unmodified-Since"),
    ],
)
def test_condition_that_cannot_be_obeyed_is_refused(request_: Any, headers: Any, reads: bool, field: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        inputs.take_headers(request_, headers, reads=reads)
    assert list(caught.value.violations) == [field]


def test_read_may_ignore_a_condition_that_saves_its_answer() -> None:
    inputs.take_headers(catalog_pb.GetProductRequest(), {"if-none-match": '"3"'}, reads=True)
