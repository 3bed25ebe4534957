"""The call being answered: who calls, under which request id, and until when."""

import hashlib
import time
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class Caller:
    """A signed-in user, or a service of the mesh. `service` is empty for users."""

    user_id: uuid.UUID | None = None
    roles: frozenset[str] = frozenset()
    service: str = ""

    @property
    def is_staff(self) -> bool:
        return not self.roles.isdisjoint(("staff", "admin"))


ANONYMOUS = Caller()
Metadata = Mapping[str, str | bytes]
"""What came with a call: gRPC's metadata, or HTTP's headers, by lower-case name."""


@dataclass(slots=True)
class Call:
    """What the guard knows of the call that the current task answers."""

    method: str
    request_id: str
    """The id that ties log lines together across services; not the client's idempotency key."""
    caller: Caller = ANONYMOUS
    deadline: float | None = None
    """On the monotonic clock, in seconds."""
    traceparent: str = ""
    metadata: Metadata = field(default_factory=dict, repr=False)

    def seconds_left(self) -> float | None:
        return None if self.deadline is None else self.deadline - time.monotonic()


_current: ContextVar[Call | None] = ContextVar("call", default=None)
enter = _current.set


def current() -> Call:
    """The call being answered; one without a caller outside of any, as in a worker."""
    return _current.get() or Call(method="", request_id=str(uuid.uuid4()))


def is_answering() -> bool:
    """Whether the current task answers a call, or a batch of them, rather than working in the background."""
    return _current.get() is not None


def request_id() -> str:
    """The request id of the current call; empty outside of any."""
    call = _current.get()
    return call.request_id if call else ""


def user_id() -> uuid.UUID:
    """The signed-in user of the current call. Only for methods whose access demands one."""
    user = current().caller.user_id
    assert user is not None, "the method's access lets callers in who are not signed in"
    return user


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What makes a repeat of a mutation recognisable: the same caller, method and request id."""

    caller: str
    method: str
    request_id: uuid.UUID
    digest: bytes
    """Over the request's content, to tell a repeat from another request under the same id."""


def request_key(request: Message) -> RequestKey | None:
    """The key of the current call, or None where the client gave none and cannot repeat safely."""
    text: str = request.request_id  # type: ignore[attr-defined]  # declared by every mutation's request
    if not text:
        return None
    call = current()
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    digest = hashlib.sha256(content.SerializeToString(deterministic=True)).digest()
    who = str(call.caller.user_id or call.caller.service)
    return RequestKey(who, call.method, uuid.UUID(text), digest)
