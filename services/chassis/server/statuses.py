"""Mapping of errors to gRPC statuses and back."""

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.chassis.errors import AppError, InvalidFields, Refused, Unavailable
from stampede.type.v1 import refusal_pb2

_DETAILS_KEY = "grpc-status-details-bin"
# RFC 9110, 11.6.1: every 401 has one. The gateway sends the same (gateway/replies.py).
_CHALLENGE = ("www-authenticate", 'Bearer realm="stampede"')
# A status travels in headers, of which Envoy accepts 60 KiB. A client that fixes these receives the other violations.
_VIOLATIONS_MAX, _FIELD_LENGTH_MAX = 50, 100
_CODES = {number.value[0]: number for number in grpc.StatusCode}


class Answer(NamedTuple):
    """A refusal, ready to be sent."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, bytes], ...]
    initial: tuple[tuple[str, str], ...]
    """Envoy turns only initial metadata into headers, such as `retry-after`."""


INTERNAL = Answer(grpc.StatusCode.INTERNAL, "Internal error.", (), ())


def answer(error: AppError, domain: str) -> Answer:
    """Returns the answer for `error`. `domain` is that of the answering service; an error may name another."""
    violations = _first(error.violations, error.cause) if isinstance(error, InvalidFields) else ()
    return _answer(
        error.code, error.reason, error.domain or domain, str(error), tuple(error.metadata.items()), violations,
        error.retry_seconds,
    )  # fmt: skip


def _first(violations: Mapping[str, str], cause: str) -> tuple[tuple[str, str, str], ...]:
    """Returns the first violations. A field name may be long, because it contains the key of a map."""
    return tuple(
        (field[:_FIELD_LENGTH_MAX], text, cause) for field, text in islice(violations.items(), _VIOLATIONS_MAX)
    )


# In a rush nearly all answers are the same refusal of the same sale.
@lru_cache(maxsize=512)
def _answer(
    code: str,
    reason: str,
    domain: str,
    message: str,
    metadata: tuple[tuple[str, str], ...],
    violations: tuple[tuple[str, str, str], ...],
    retry_seconds: int | None,
) -> Answer:
    number = code_pb2.Code.Value(code)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=dict(metadata))]
    if violations:
        field = error_details_pb2.BadRequest.FieldViolation
        broken = [field(field=f, description=d, reason=cause) for f, d, cause in violations]
        details.append(error_details_pb2.BadRequest(field_violations=broken))
    initial: tuple[tuple[str, str], ...] = (_CHALLENGE,) if code == "UNAUTHENTICATED" else ()
    if retry_seconds is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=retry_seconds)))
        initial = (("retry-after", str(retry_seconds)),)
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=number, message=message, details=packed)
    return Answer(_CODES[number], message, ((_DETAILS_KEY, status.SerializeToString()),), initial)


def to_refusal(error: AppError, domain: str) -> refusal_pb2.Refusal:
    """Returns `error` as the outcome of one item of a batch."""
    return refusal_pb2.Refusal(
        code=code_pb2.Code.Value(error.code), reason=error.reason, domain=error.domain or domain,
        message=str(error), metadata=error.metadata,
    )  # fmt: skip


def from_refusal(refusal: refusal_pb2.Refusal) -> Refused:
    """Returns the refusal of one item as an error to raise."""
    return Refused(
        code=code_pb2.Code.Name(refusal.code), reason=refusal.reason, domain=refusal.domain,
        message=refusal.message, metadata=dict(refusal.metadata),
    )  # fmt: skip


def from_rpc_error(error: grpc.aio.AioRpcError, part: str) -> AppError:
    """Returns the refusal of the service `part`, or `Unavailable`; raises `error` if it is neither."""
    if error.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    ):
        return Unavailable(part=part)
    status = rpc_status.from_call(error)
    info, broken = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    unpacked = [packed.Unpack(info) or packed.Unpack(broken) for packed in (status.details if status else ())]
    if not any(unpacked) or not info.reason:
        raise error
    if broken.field_violations:
        violations = {violation.field: violation.description for violation in broken.field_violations}
        invalid = InvalidFields(violations, cause=broken.field_violations[0].reason)
        invalid.domain = info.domain
        return invalid
    return Refused(
        code=error.code().name, reason=info.reason, domain=info.domain,
        message=error.details() or "", metadata=dict(info.metadata),
    )  # fmt: skip
