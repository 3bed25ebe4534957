"""Refusals: every reason is declared once, maps to a status, and has a readable message."""

import base64
import importlib
import pkgutil
import re
import string
from collections.abc import Iterator

import grpc
import psycopg.errors
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

import services
from services.chassis import errors
from services.chassis.errors import (
    AppError,
    InvalidFields,
    RateLimited,
    Refused,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from services.chassis.server import statuses

for module in pkgutil.walk_packages(services.__path__, "services."):
    if not re.search(r"\.(__main__|alembic|migrations)\b", module.name):
        importlib.import_module(module.name)


def descendants(kind: type[AppError]) -> Iterator[type[AppError]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


# Without those of tests, and without `Refused`, which passes on what another service declared.
DECLARED = [e for e in descendants(AppError) if e.__module__.startswith("services.") and e is not Refused]
# The reasons of the contract with outside clients.
PROMISED = {
    "INVALID_FIELDS": "INVALID_ARGUMENT",
    "REQUEST_ID_REUSED": "INVALID_ARGUMENT",
    "UNAUTHENTICATED": "UNAUTHENTICATED",
    "PERMISSION_DENIED": "PERMISSION_DENIED",
    "PRODUCT_NOT_FOUND": "NOT_FOUND",
    "FLASH_SALE_NOT_FOUND": "NOT_FOUND",
    "STOCK_NOT_FOUND": "NOT_FOUND",
    "ORDER_NOT_FOUND": "NOT_FOUND",
    "PAYMENT_NOT_FOUND": "NOT_FOUND",
    "EMAIL_TAKEN": "ALREADY_EXISTS",
    "SLUG_TAKEN": "ALREADY_EXISTS",
    "SKU_TAKEN": "ALREADY_EXISTS",
    "STALE_ETAG": "ABORTED",
    "SOLD_OUT": "FAILED_PRECONDITION",
    "OUT_OF_STOCK": "FAILED_PRECONDITION",
    "SALE_NOT_LIVE": "FAILED_PRECONDITION",
    "CUSTOMER_LIMIT": "FAILED_PRECONDITION",
    "OPEN_ORDERS_LIMIT": "FAILED_PRECONDITION",
    "WRONG_STATE": "FAILED_PRECONDITION",
    "RATE_LIMITED": "RESOURCE_EXHAUSTED",
    "UNAVAILABLE": "UNAVAILABLE",
}


def test_every_error_maps_to_a_status() -> None:
    codes = set(code_pb2.Code.keys()) - {"OK", "INTERNAL", "UNKNOWN"}
    assert [error for error in DECLARED if error.code not in codes] == []


def test_every_message_is_a_sentence_over_its_metadata() -> None:
    def is_sentence(template: str) -> bool:
        parts = [(name, conversion) for _, name, conversion, _ in string.Formatter().parse(template)]
        in_json = all(name is None or re.fullmatch(r"[a-z][A-Za-z]*", name) for name, _ in parts)
        return template.endswith(".") and in_json and not any(conversion for _, conversion in parts)

    assert [error for error in DECLARED if not is_sentence(error.template)] == []


def test_exactly_retryable_errors_have_retry_seconds() -> None:
    retryable = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
    assert [error for error in DECLARED if (error.code in retryable) != (error.retry_seconds is not None)] == []


def test_reasons_of_the_contract_exist() -> None:
    declared = {(error.reason, error.code) for error in DECLARED}
    assert [promise for promise in PROMISED.items() if promise not in declared] == []


def test_one_reason_has_one_code() -> None:
    codes: dict[str, set[str]] = {}
    for error in DECLARED:
        codes.setdefault(error.reason, set()).add(error.code)
    assert not {reason: several for reason, several in codes.items() if len(several) > 1}


def test_message_requires_all_of_its_metadata() -> None:
    with pytest.raises(KeyError):
        WrongState(resource="order")


def details(answer: statuses.Answer) -> dict[str, object]:
    status = status_pb2.Status.FromString(dict(answer.trailing)["grpc-status-details-bin"])
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    found: dict[str, object] = {}
    for packed in status.details:
        for kind in kinds:
            message = kind()
            if packed.Unpack(message):
                found[kind.__name__] = message
    return found


def test_refusal_carries_reason_domain_and_metadata() -> None:
    answer = statuses.answer(WrongState(resource="order", state="PAID", wanted="CANCELLED"), "orders.stampede")
    assert answer.code == grpc.StatusCode.FAILED_PRECONDITION
    assert answer.message == "The order is PAID; it cannot become CANCELLED."
    info = details(answer)["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("WRONG_STATE", "orders.stampede")
    assert dict(info.metadata) == {"resource": "order", "state": "PAID", "wanted": "CANCELLED"}


def test_invalid_input_names_its_fields() -> None:
    bad = details(statuses.answer(InvalidFields({"lines[0].quantity": "is 0"}), "orders.stampede"))["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [("lines[0].quantity", "is 0")]


def test_many_violations_fit_into_a_header() -> None:
    """Envoy accepts 60 KiB of headers, and answers 502 if there are more."""
    everything = {f"attributes[{'€' * 5000}{number}]": "must not be so long" for number in range(5000)}
    answer = statuses.answer(InvalidFields({"sku": "must be set", **everything}), "catalog.stampede")
    ((_, packed),) = answer.trailing
    assert len(base64.b64encode(packed)) < 50_000
    bad = details(answer)["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert (len(bad.field_violations), bad.field_violations[0].field) == (50, "sku")
    assert answer.message == "5001 field(s) of the request are not valid."


@pytest.mark.parametrize("error", [RateLimited(what="orders"), Unavailable(part="inventory")])
def test_retryable_refusal_has_retry_info_and_header(error: AppError) -> None:
    answer = statuses.answer(error, "orders.stampede")
    assert "RetryInfo" in details(answer)
    assert answer.initial == (("retry-after", str(error.retry_seconds)),)


def test_caller_who_is_not_signed_in_is_challenged() -> None:
    assert statuses.answer(Unauthenticated(), "orders.stampede").initial == (
        ("www-authenticate", 'Bearer realm="stampede"'),
    )


def test_refusal_of_another_service_keeps_its_domain() -> None:
    refusal = statuses.to_refusal(WrongState(resource="sale", state="ENDED", wanted="LIVE"), "inventory.stampede")
    passed_on = statuses.from_refusal(refusal)
    assert statuses.to_refusal(passed_on, "orders.stampede") == refusal


def of_another_service(error: AppError) -> grpc.aio.AioRpcError:
    """`error` as a client of the service that has refused receives it."""
    answer = statuses.answer(error, "payments.stampede")
    trailing = grpc.aio.Metadata(*answer.trailing)
    return grpc.aio.AioRpcError(answer.code, grpc.aio.Metadata(), trailing, details=answer.message)


def test_invalid_fields_of_another_service_keep_their_names() -> None:
    refused = of_another_service(InvalidFields({"provider": "must be one of stripe"}))
    passed_on = statuses.from_rpc_error(refused, "payments")
    assert isinstance(passed_on, InvalidFields)
    assert (passed_on.violations, passed_on.domain) == ({"provider": "must be one of stripe"}, "payments.stampede")
    bad = details(statuses.answer(passed_on, "orders.stampede"))["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [violation.field for violation in bad.field_violations] == ["provider"]


def test_other_refusal_of_another_service_keeps_its_reason() -> None:
    refused = of_another_service(WrongState(resource="order", state="PAID", wanted="CANCELLED"))
    passed_on = statuses.from_rpc_error(refused, "payments")
    assert (passed_on.code, passed_on.reason, passed_on.domain) == (
        "FAILED_PRECONDITION", "WRONG_STATE", "payments.stampede",
    )  # fmt: skip
    assert passed_on.metadata["state"] == "PAID"


def test_error_of_another_service_without_a_reason_is_a_bug() -> None:
    broken = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata())
    with pytest.raises(grpc.aio.AioRpcError):
        statuses.from_rpc_error(broken, "payments")


@pytest.mark.parametrize(
    "error", [OperationalError("SELECT 1", {}, Exception("secret")), PoolTimeout("no connection is free")]
)
def test_unavailable_database_is_a_refusal(error: Exception) -> None:
    assert isinstance(errors.as_app_error(error), Unavailable)


@pytest.mark.parametrize("error", [ZeroDivisionError(), IntegrityError("INSERT", {}, Exception()), KeyError("x")])
def test_bug_is_not_a_refusal(error: Exception) -> None:
    assert errors.as_app_error(error) is None


def test_broken_connection_is_a_refusal() -> None:
    error = DBAPIError("SELECT 1", {}, Exception(), connection_invalidated=True)
    assert isinstance(errors.as_app_error(error), Unavailable)


def test_row_too_large_for_the_database_is_no_outage_of_it() -> None:
    """Otherwise an event with such a row would be retried for ever, and open circuits that serve everybody."""
    error = OperationalError("INSERT", {}, psycopg.errors.ProgramLimitExceeded())
    assert errors.as_app_error(error) is None


def test_stale_etag_is_refused() -> None:
    errors.check_etag("", '"2"')
    errors.check_etag('"2"', '"2"')
    with pytest.raises(errors.StaleEtag):
        errors.check_etag('"1"', '"2"')
