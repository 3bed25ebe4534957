"""From errors to gRPC statuses and back: the one place where the two meet."""

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import grpc
import sqlalchemy.exc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.chassis.errors import AppError, InvalidFields, Refused, Unavailable
from stampede.type.v1 import refusal_pb2

_DETAILS_KEY = "grpc-status-details-bin"
# A status travels in headers, and of these Envoy takes 60 KiB. Who mends the first fields is told of the others then.
_VIOLATIONS_MOST, _FIELD_LENGTH_MOST = 50, 100
_CODES = {number.value[0]: number for number in grpc.StatusCode}


class Answer(NamedTuple):
    """A refusal, ready to be sent."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, bytes], ...]
    initial: tuple[tuple[str, str], ...]
    """Envoy shows only initial metadata as headers, so `retry-after` goes there."""


INTERNAL = Answer(grpc.StatusCode.INTERNAL, "Internal error.", (), ())


def answer(error: AppError, domain: str) -> Answer:
    """How `error` goes out. `domain` is the answering service's, unless the error names another."""
    violations = _first(error.violations) if isinstance(error, InvalidFields) else ()
    return _answer(
        error.code, error.reason, error.domain or domain, str(error), tuple(error.metadata.items()), violations,
        error.retry_seconds,
    )  # fmt: skip


def _first(violations: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """As many as can be told at once; a key of a map, which is part of the field's name, may be long."""
    return tuple((field[:_FIELD_LENGTH_MOST], said) for field, said in islice(violations.items(), _VIOLATIONS_MOST))


# In a rush nearly all answers are the same refusal of the same sale.
@lru_cache(maxsize=512)
def _answer(
    code: str,
    reason: str,
    domain: str,
    message: str,
    metadata: tuple[tuple[str, str], ...],
    violations: tuple[tuple[str, str], ...],
    retry_seconds: int | None,
) -> Answer:
    number = code_pb2.Code.Value(code)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=dict(metadata))]
    if violations:
        field = error_details_pb2.BadRequest.FieldViolation
        details.append(
            error_details_pb2.BadRequest(field_violations=[field(field=f, description=d) for f, d in violations])
        )
    initial: tuple[tuple[str, str], ...] = ()
    if retry_seconds is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=retry_seconds)))
        initial = (("retry-after", str(retry_seconds)),)
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=number, message=message, details=packed)
    return Answer(_CODES[number], message, ((_DETAILS_KEY, status.SerializeToString()),), initial)


def as_app_error(error: BaseException) -> AppError | None:
    """The refusal that a library's exception amounts to; None where it is a bug of ours."""
    if isinstance(error, AppError):
        return error
    if isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError | sqlalchemy.exc.TimeoutError):
        # Away, restarting, no connection free, or a lock or statement that took too long: come again.
        return Unavailable(part="database")
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated:
        return Unavailable(part="database")
    return None


def to_refusal(error: AppError, domain: str) -> refusal_pb2.Refusal:
    """`error` as one item's outcome in the answer to a batch."""
    return refusal_pb2.Refusal(
        code=code_pb2.Code.Value(error.code), reason=error.reason, domain=error.domain or domain,
        message=str(error), metadata=error.metadata,
    )  # fmt: skip


def from_refusal(refusal: refusal_pb2.Refusal) -> Refused:
    """One item's refusal as an error to raise."""
    return Refused(
        code=code_pb2.Code.Name(refusal.code), reason=refusal.reason, domain=refusal.domain,
        message=refusal.message, metadata=dict(refusal.metadata),
    )  # fmt: skip


def from_rpc_error(error: grpc.aio.AioRpcError, part: str) -> AppError:
    """What a failed call to the service `part` means here: its own refusal, or that it is away."""
    if error.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    ):
        return Unavailable(part=part)
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            return Refused(
                code=error.code().name, reason=info.reason, domain=info.domain,
                message=error.details() or "", metadata=dict(info.metadata),
            )  # fmt: skip
    raise error
