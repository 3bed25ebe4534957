"""How services say no: every reason declared once, mapped to a status, and readable."""

import base64
import importlib
import pkgutil
import re
import string
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

import services
from services.chassis import errors
from services.chassis.errors import AppError, InvalidFields, RateLimited, Refused, Unavailable, WrongState
from services.chassis.server import statuses

for module in pkgutil.walk_packages(services.__path__, "services."):
    if not re.search(r"\.(__main__|alembic|migrations)\b", module.name):
        importlib.import_module(module.name)


def descendants(kind: type[AppError]) -> Iterator[type[AppError]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


# Those of tests aside. `Refused` passes on what another service declared.
DECLARED = [e for e in descendants(AppError) if e.__module__.startswith("services.") and e is not Refused]
# The reasons that outside clients rely on.
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
    "WRONG_STATE": "FAILED_PRECONDITION",
    "RATE_LIMITED": "RESOURCE_EXHAUSTED",
    "UNAVAILABLE": "UNAVAILABLE",
}

each_error = pytest.mark.parametrize("error", DECLARED, ids=lambda e: f"{e.__module__}.{e.__name__}")


@each_error
def test_every_error_maps_to_a_status(error: type[AppError]) -> None:
    assert error.code in set(code_pb2.Code.keys()) - {"OK", "INTERNAL", "UNKNOWN"}


@each_error
def test_every_message_is_a_sentence_over_its_metadata(error: type[AppError]) -> None:
    assert error.template.endswith(".")
    for _, name, conversion, _ in string.Formatter().parse(error.template):
        assert name is None or re.fullmatch(r"[a-z][A-Za-z]*", name), "metadata has JSON names"
        assert not conversion


@each_error
def test_who_is_invited_to_repeat_is_told_when(error: type[AppError]) -> None:
    invited = error.code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
    assert invited == (error.retry_seconds is not None)


@pytest.mark.parametrize(("reason", "code"), PROMISED.items())
def test_the_contracts_reasons_exist(reason: str, code: str) -> None:
    assert {error.code for error in DECLARED if error.reason == reason} == {code}


def test_one_reason_has_one_code() -> None:
    codes: dict[str, set[str]] = {}
    for error in DECLARED:
        codes.setdefault(error.reason, set()).add(error.code)
    assert not {reason: several for reason, several in codes.items() if len(several) > 1}


def test_a_message_needs_all_of_its_metadata() -> None:
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


def test_a_refusal_carries_what_a_program_needs() -> None:
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


def test_however_much_is_invalid_it_can_be_said_in_a_header() -> None:
    """Envoy takes 60 KiB of them, and would answer 502."""
    everything = {f"attributes[{'€' * 5000}{number}]": "must not be so long" for number in range(5000)}
    answer = statuses.answer(InvalidFields({"sku": "must be set", **everything}), "catalog.stampede")
    ((_, packed),) = answer.trailing
    assert len(base64.b64encode(packed)) < 50_000
    bad = details(answer)["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert (len(bad.field_violations), bad.field_violations[0].field) == (50, "sku")
    assert answer.message == "5001 field(s) of the request are not valid."


@pytest.mark.parametrize("error", [RateLimited(what="orders"), Unavailable(part="inventory")])
def test_an_invitation_to_repeat_is_both_detail_and_header(error: AppError) -> None:
    answer = statuses.answer(error, "orders.stampede")
    assert "RetryInfo" in details(answer)
    assert answer.initial == (("retry-after", str(error.retry_seconds)),)


def test_a_refusal_of_another_service_stays_its_own() -> None:
    said = statuses.to_refusal(WrongState(resource="sale", state="ENDED", wanted="LIVE"), "inventory.stampede")
    passed_on = statuses.from_refusal(said)
    assert statuses.to_refusal(passed_on, "orders.stampede") == said


@pytest.mark.parametrize(
    "error", [OperationalError("SELECT 1", {}, Exception("secret")), PoolTimeout("no connection is free")]
)
def test_a_database_that_is_away_is_no_bug(error: Exception) -> None:
    assert isinstance(statuses.as_app_error(error), Unavailable)


@pytest.mark.parametrize("error", [ZeroDivisionError(), IntegrityError("INSERT", {}, Exception()), KeyError("x")])
def test_a_bug_is_not_foreseen(error: Exception) -> None:
    assert statuses.as_app_error(error) is None


def test_a_connection_that_broke_is_no_bug() -> None:
    error = DBAPIError("SELECT 1", {}, Exception(), connection_invalidated=True)
    assert isinstance(statuses.as_app_error(error), Unavailable)


def test_etags() -> None:
    errors.check_etag("", '"2"')
    errors.check_etag('"2"', '"2"')
    with pytest.raises(errors.StaleEtag):
        errors.check_etag('"1"', '"2"')
