"""Holds every answer of the gateway against the contract."""

import re
from collections.abc import Callable, Collection

from deploy.client import Answer, Json, Rest, new_id

__all__ = ["Answer", "Json", "Rest", "check", "new_id"]

# gRPC's canonical codes, with the HTTP statuses that the gateway may answer them with.
_HTTP_OF = {
    3: {400, 408, 413, 415, 426, 431}, 4: {408, 504}, 5: {404}, 6: {409}, 7: {403}, 8: {429}, 9: {400}, 10: {409},
    12: {405}, 14: {502, 503}, 16: {401},
}  # fmt: skip
# The sandbox's page is the one address of a machine that an answer may have: customers pay there.
_LEAKS = re.compile(
    r"Traceback|File \\?\"/|\.py\b(?!-)|sqlalchemy|psycopg|asyncpg|grpc\.aio|\bSELECT\b.+\bFROM\b|\bINSERT INTO\b"
    r"|\bUPDATE\b.+\bSET\b|constraint \\?\"|127\.0\.0\.1:\d(?!\d*/c/pay/)|sk_test_|whsec_|-----BEGIN"
    r"|\$2b\$\d\d\$|remote_address"
)
_STATUS = {"code", "message", "details"}


def check(secrets: Collection[str]) -> Callable[[Answer], None]:
    """Returns a check that raises `AssertionError` for an answer that the contract forbids, or that has a secret."""

    def check_answer(answer: Answer) -> None:
        assert not (leak := _LEAKS.search(answer.text)), f"leaks {leak.group()!r}: {answer.text[:1000]}"
        for secret in secrets:
            assert secret not in answer.text, "leaks a secret of the mesh"
        assert answer.headers.get("x-request-id"), f"no x-request-id on {answer.status}"
        if answer.status >= 400:
            _check_error(answer)

    return check_answer


def _check_error(answer: Answer) -> None:
    shown = f"{answer.status} {dict(answer.headers)} {answer.text[:1000]}"
    assert answer.headers["content-type"].split(";")[0] == "application/json", shown
    assert answer.json.keys() <= _STATUS, shown
    assert answer.json.keys() >= {"code", "message"}, shown
    assert answer.status in _HTTP_OF.get(answer.json["code"], set()), shown
    if answer.status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1, shown
        assert answer.detail("RetryInfo").get("retryDelay"), shown
    if answer.reason:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", answer.reason), shown
        assert answer.domain.endswith(".stampede"), shown
    if answer.reason == "INVALID_FIELDS":
        assert answer.fields, shown
