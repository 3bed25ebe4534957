"""What Envoy itself answers: always `google.rpc.Status` JSON, never its own words.

Envoy's own texts name upstream addresses and transport failures. Only its
complaints about the request (400) are passed on: they tell a client what to mend.
"""

from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]
DOMAIN = "gateway.stampede"
RETRY_SECONDS = 1


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One HTTP status and the `google.rpc.Status` it carries."""

    http: int
    code: int
    reason: str | None
    message: str
    retry: bool = False
    challenge: bool = False
    """Whether the caller is told how to sign in."""


_SIGN_IN = Reply(http=401, code=16, reason="UNAUTHENTICATED", message="Sign in to call this method.", challenge=True)
_UNREADABLE = Reply(http=400, code=3, reason=None, message="%LOCAL_REPLY_BODY%")
_NO_KEYS = Reply(
    http=503,
    code=14,
    reason="UNAVAILABLE",
    message="Sign-in cannot be checked right now.",
    retry=True,
    # Replaces Envoy's "invalid_token": the token may well be good.
    challenge=True,
)
_REPLIES = (
    Reply(http=400, code=3, reason=None, message="The request is malformed."),
    _SIGN_IN,
    Reply(http=404, code=5, reason="NOT_FOUND", message="There is nothing at this address."),
    Reply(http=405, code=12, reason="METHOD_NOT_ALLOWED", message="This address does not take this method."),
    Reply(http=408, code=4, reason="DEADLINE_EXCEEDED", message="The request did not arrive in time."),
    Reply(http=413, code=3, reason="REQUEST_TOO_LARGE", message="The request body is too large."),
    Reply(http=415, code=3, reason="UNSUPPORTED_MEDIA_TYPE", message="The content type is not understood."),
    Reply(http=426, code=3, reason="UPGRADE_REQUIRED", message="This protocol version is not served."),
    Reply(http=429, code=8, reason="RATE_LIMITED", message="Too many requests.", retry=True),
    Reply(http=431, code=3, reason="HEADERS_TOO_LARGE", message="The request headers are too large."),
    Reply(http=502, code=14, reason="UNAVAILABLE", message="A part of the shop is away.", retry=True),
    Reply(http=503, code=14, reason="UNAVAILABLE", message="A part of the shop is away.", retry=True),
    Reply(http=504, code=4, reason="DEADLINE_EXCEEDED", message="The answer took too long.", retry=True),
)
_ANYTHING_ELSE = Reply(http=500, code=13, reason="INTERNAL", message="Internal error.")


def mappers() -> list[Config]:
    """Envoy's `local_reply_config.mappers`; the first that fits is taken."""
    return [
        _ready(),
        # Not having identity's keys is our failure, not the caller's.
        _mapper(_NO_KEYS, _details(401, "emote_fetch")),
        # Envoy's only 403 is a token made for somebody else's audience.
        _mapper(_SIGN_IN, _status("EQ", 403)),
        _mapper(_UNREADABLE, _details(400, "grpc_json_transcode")),
        *(_mapper(reply, _status("EQ", reply.http)) for reply in _REPLIES),
        _mapper(_ANYTHING_ELSE, _status("GE", 500)),
    ]


def _mapper(reply: Reply, condition: Config) -> Config:
    headers = []
    if reply.retry:
        headers.append(_set("retry-after", str(RETRY_SECONDS)))
    if reply.challenge:
        headers.append(_set("www-authenticate", 'Bearer realm="stampede"'))
    return {
        "filter": condition,
        "status_code": reply.http,
        "headers_to_add": headers,
        "body_format_override": {"json_format": _body(reply), "content_type": "application/json"},
    }


def _body(reply: Reply) -> Config:
    details: list[Config] = []
    if reply.reason:
        details.append({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reply.reason, "domain": DOMAIN})
    if reply.retry:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{RETRY_SECONDS}s"})
    return {"code": reply.code, "message": reply.message, "details": details}


def _ready() -> Config:
    """The health check filter answers 200 without a body; give it one."""
    is_ready = {"header_filter": {"header": {"name": ":path", "string_match": {"exact": "/readyz"}}}}
    return {
        "filter": {"and_filter": {"filters": [_status("EQ", 200), is_ready]}},
        "body_format_override": {"json_format": {"status": "ready"}, "content_type": "application/json"},
    }


def _details(code: int, words: str) -> Config:
    """Fits when Envoy's own reason for the status contains the words."""
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": f"response.code == {code} && response.code_details.contains('{words}')",
            },
        }
    }


def _status(op: str, code: int) -> Config:
    value = {"default_value": code, "runtime_key": f"local_reply.{op.lower()}_{code}"}
    return {"status_code_filter": {"comparison": {"op": op, "value": value}}}


def _set(name: str, value: str) -> Config:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
