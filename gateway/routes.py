"""Envoy's route table, derived from the routes of the contract: cluster, time limits, and required token."""

import json
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.contract import Route

CALL_SECONDS = 15
# `prefer_wait` is at most 20 s, in addition to the call itself.
WAIT_SECONDS = CALL_SECONDS + 20
# The service gets an earlier deadline, so its own answer arrives before the gateway's.
GRACE_SECONDS = 1
STREAM_IDLE_SECONDS = 300
STREAM_SECONDS = 3600
# Matched first, because almost every request in a flash sale is this one.
HOT = ("POST", "/v1/orders")
STICKY = frozenset({"orders"})
"""Services whose replicas each serve the same customers. A repeat of an order then reaches the process that placed it,
which remembers it when the sale has sold out."""

Config = dict[str, Any]

_TOKEN_REQUIRED: Config = {
    "envoy.filters.http.jwt_authn": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig",
        "requirement_name": "signed-in",
    }
}


def table(routes: Iterable[Route], pages: Mapping[str, Path]) -> list[Config]:
    """Return the route table: own pages, REST routes, and 405 for other methods of known paths.

    Envoy answers 404 to all other paths.
    """
    ordered = sorted(routes, key=_rank)
    return [
        _page("/healthz", {"inline_string": json.dumps({"status": "alive"})}, "application/json"),
        *(_page(path, {"filename": str(file)}, _content_type(file)) for path, file in pages.items()),
        *map(_rest, ordered),
        *_method_not_allowed(ordered),
    ]


def _rank(route: Route) -> tuple[bool, int, int]:
    """Sort the hot route first, then paths without variables, then longer patterns before shorter ones.

    `/v1/orders/{id}` also matches `/v1/orders/7:ship`, so the longer pattern must be first.
    """
    return (route.verb, route.path) != HOT, route.variables, -len(route.pattern)


def _rest(route: Route) -> Config:
    config: Config = {
        "name": route.method,
        "match": {**_path(route), "headers": [_verb(route.verb)]},
        "route": {"cluster": cluster_of(route), **_limits(route)},
    }
    if route.owner in STICKY:
        config["route"]["hash_policy"] = [{"header": {"header_name": "authorization"}}]
    if not route.streams:
        config["request_headers_to_add"] = [_deadline(route)]
    if route.signed_in:
        config["typed_per_filter_config"] = _TOKEN_REQUIRED
    return config


def cluster_of(route: Route) -> str:
    """Return the cluster of a route. The transcoder ends an `HttpBody` only at trailers, which need gRPC itself."""
    return f"{route.owner}-grpc" if route.is_body else route.owner


def _path(route: Route) -> Config:
    if route.variables:
        return {"safe_regex": {"regex": route.pattern}}
    return {"path": route.path}


def _verb(verb: str) -> Config:
    return {"name": ":method", "string_match": {"exact": verb}}


def _seconds(route: Route) -> int:
    return WAIT_SECONDS if route.waits else CALL_SECONDS


def _limits(route: Route) -> Config:
    if route.streams:
        # A watch has no timeout of its own; the client reconnects after an hour.
        return {
            "timeout": "0s",
            "idle_timeout": f"{STREAM_IDLE_SECONDS}s",
            "max_stream_duration": {"max_stream_duration": f"{STREAM_SECONDS}s"},
        }
    # The idle timeout must be longer than the call, or it would end a call that waits.
    return {"timeout": f"{_seconds(route)}s", "idle_timeout": f"{_seconds(route) + GRACE_SECONDS}s"}


def _deadline(route: Route) -> Config:
    return {
        "header": {"key": "grpc-timeout", "value": f"{_seconds(route) - GRACE_SECONDS}S"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def _method_not_allowed(routes: Sequence[Route]) -> list[Config]:
    verbs: dict[str, list[Route]] = {}
    for route in routes:
        verbs.setdefault(route.pattern, []).append(route)
    return [
        {
            "match": _path(same[0]),
            "direct_response": {"status": 405},
            "response_headers_to_add": [_header("allow", ", ".join(sorted({r.verb for r in same})))],
        }
        for same in verbs.values()
    ]


def _page(path: str, body: Config, content_type: str) -> Config:
    return {
        "match": {"path": path, "headers": [_verb("GET")]},
        "direct_response": {"status": 200, "body": body},
        "response_headers_to_add": [_header("content-type", content_type)],
    }


def _header(name: str, value: str) -> Config:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _content_type(file: Path) -> str:
    return mimetypes.guess_type(file.name)[0] or "application/octet-stream"
