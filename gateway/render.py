"""Render Envoy's configuration: one template, filled in from the contract.

The local mesh passes loopback addresses. Compose and Kubernetes use the defaults: service names and container ports.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from gateway import replies, routes
from gateway.contract import Route, read

HERE = Path(__file__).parent
SERVICES = ("catalog", "identity", "inventory", "orders", "payments")

Config = dict[str, Any]

_PATHS = (":path", "x-envoy-original-path")
_SIGN = "(?:%20|[+._ -])"
# Thirteen digits, or groups as on a card, before the query string. Envoy allows short patterns only.
_LONG_NUMBERS = (
    "[^?]*[0-9]{13}.*",
    f"[^?]*[0-9]{{4}}{_SIGN}[0-9]{{4}}{_SIGN}[0-9]{{4}}{_SIGN}[0-9].*",
    f"[^?]*[0-9]{{4}}{_SIGN}[0-9]{{6}}{_SIGN}[0-9]{{5}}.*",
)


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"expected host:port, not {text!r}")
        return cls(host.strip("[]"), int(port))


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The differences between deployments. The defaults suit containers."""

    descriptor: Path
    listen: Address = Address("0.0.0.0", 8080)  # noqa: S104 - a container answers on all of its addresses
    admin_port: int = 9901
    targets: Mapping[str, Address] = field(default_factory=lambda: {name: Address(name, 8000) for name in SERVICES})
    grpc_targets: Mapping[str, Address] = field(
        default_factory=lambda: {name: Address(name, 50051) for name in SERVICES}
    )
    """Addresses for methods with a body of their own; see `routes.cluster_of`."""
    descriptor_at: str = ""
    """The path of the descriptor set in the container, if it differs."""
    issuer: str = "https://stampede.local"
    audience: str = "stampede"
    trusted_hops: int = 0
    """Number of proxies in front of the gateway whose `X-Forwarded-For` is trusted."""
    body_bytes_max: int = 1 << 20
    log: str = "all"
    """The requests that are logged: `all`, `errors` (5xx) or `none`."""
    pages: Mapping[str, Path] = field(default_factory=dict)
    """Files that the gateway serves, by path: `/openapi.json`, `/docs`."""


def render(gateway: Gateway) -> Config:
    """Return the whole configuration. Raises `ValueError` if the contract has a service without a target."""
    contract = read(gateway.descriptor)
    if unknown := {route.owner for route in contract} - gateway.targets.keys():
        raise ValueError(f"no --target for {', '.join(sorted(unknown))}")
    return _fill(
        "envoy.yaml",
        {
            "LISTEN_HOST": gateway.listen.host,
            "LISTEN_PORT": gateway.listen.port,
            "ADMIN_PORT": gateway.admin_port,
            "BODY_BYTES_MAX": gateway.body_bytes_max,
            "TRUSTED_HOPS": gateway.trusted_hops,
            "ISSUER": gateway.issuer,
            "AUDIENCE": gateway.audience,
            "DESCRIPTOR": gateway.descriptor_at or str(gateway.descriptor.resolve()),
            "SERVICES": json.dumps(sorted({route.service for route in contract})),
            "ROUTES": json.dumps(routes.table(contract, gateway.pages)),
            "LOCAL_REPLIES": json.dumps(replies.mappers()),
            "READY_CLUSTERS": json.dumps({name: {"value": 100} for name in gateway.targets}),
            "READY_PATH": json.dumps(replies.READY_PATH),
            "ACCESS_LOG": json.dumps(access_log(gateway.log)),
            "CLUSTERS": json.dumps([*_clusters(gateway, contract), _self(gateway)]),
        },
    )


def bare(descriptor: Path, listen: Address, target: Address, services: Iterable[str]) -> Config:
    """Return a minimal gateway, with transcoder and router only, with which the bench compares the full one."""
    return _fill(
        "bare.yaml",
        {
            "LISTEN_HOST": listen.host,
            "LISTEN_PORT": listen.port,
            "DESCRIPTOR": str(descriptor.resolve()),
            "SERVICES": json.dumps(sorted(services)),
            "HOST": target.host,
            "PORT": target.port,
        },
    )


def _clusters(gateway: Gateway, contract: Iterable[Route]) -> Iterator[Config]:
    """Yield a cluster per service, and one per gRPC port that a route needs."""
    for name, target in gateway.targets.items():
        policy = "MAGLEV" if name in routes.STICKY else "LEAST_REQUEST"
        yield _fill("cluster.yaml", {"NAME": name, "HOST": target.host, "PORT": target.port, "POLICY": policy})
    for owner in sorted({route.owner for route in contract if route.is_body}):
        target = gateway.grpc_targets[owner]
        yield _fill("cluster_grpc.yaml", {"NAME": f"{owner}-grpc", "HOST": target.host, "PORT": target.port})


def access_log(which: str) -> list[Config]:
    """Return the log to standard output: JSON lines without query strings and without secret headers.

    A path with a number as long as a card's is left out.
    """
    if which == "none":
        return []
    ordinary, masked = _fill("access_log.yaml", {}), _fill("access_log.yaml", {})
    masked["typed_config"]["log_format"]["json_format"]["path"] = "left out, because of a long number"
    tests = [(header, pattern) for header in _PATHS for pattern in _LONG_NUMBERS]
    long_number = {"or_filter": {"filters": [_matches(*test) for test in tests]}}
    others = {"and_filter": {"filters": [_matches(*test, invert=True) for test in tests]}}
    for log, chosen in ((ordinary, others), (masked, long_number)):
        log["filter"] = chosen
        if which == "errors":
            at_least = {"default_value": 500, "runtime_key": "access_log.min_status"}
            failed = {"status_code_filter": {"comparison": {"op": "GE", "value": at_least}}}
            log["filter"] = {"and_filter": {"filters": [failed, chosen]}}
    return [ordinary, masked]


def _matches(header: str, regex: str, *, invert: bool = False) -> Config:
    return {
        "header_filter": {
            "header": {
                "name": header,
                "string_match": {"safe_regex": {"regex": regex}},
                "treat_missing_header_as_empty": True,
                "invert_match": invert,
            }
        }
    }


def _self(gateway: Gateway) -> Config:
    """Return a cluster of the gateway itself, for the fetch of identity's keys."""
    address = {"address": "127.0.0.1", "port_value": gateway.listen.port}
    endpoint = {"endpoint": {"address": {"socket_address": address}}}
    return {
        "name": routes.SELF,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": routes.SELF, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _fill(template: str, values: Mapping[str, object]) -> Config:
    text = Template((HERE / template).read_text(encoding="utf-8")).substitute(values)
    config: Config = yaml.safe_load(text)
    return config


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text!r}")
    return name, value


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gateway.render", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for envoy.yaml")
    parser.add_argument(
        "--descriptor",
        type=Path,
        default=HERE.parent / "protos/gen/gateway.binpb",
        help="descriptor set to derive from (default: %(default)s)",
    )
    parser.add_argument("--descriptor-at", default="", metavar="PATH", help="path of the descriptor set for Envoy")
    parser.add_argument("--listen", type=Address.parse, default=Gateway.listen, metavar="HOST:PORT")
    parser.add_argument("--admin-port", type=int, default=Gateway.admin_port, help="always on 127.0.0.1")
    parser.add_argument(
        "--target",
        type=_pair,
        action="append",
        default=[],
        metavar="SERVICE=HOST:PORT",
        help="HTTP address of a service (default: SERVICE:8000); repeatable",
    )
    parser.add_argument(
        "--grpc-target",
        type=_pair,
        action="append",
        default=[],
        metavar="SERVICE=HOST:PORT",
        help="gRPC address of a service (default: SERVICE:50051); repeatable",
    )
    parser.add_argument(
        "--page", type=_pair, action="append", default=[], metavar="PATH=FILE", help="serve FILE at PATH"
    )
    parser.add_argument("--issuer", default=Gateway.issuer, help="issuer of tokens (default: %(default)s)")
    parser.add_argument("--audience", default=Gateway.audience, help="audience of tokens (default: %(default)s)")
    parser.add_argument("--trusted-hops", type=int, default=0, help="trusted proxies in front (default: none)")
    parser.add_argument("--log", choices=("all", "errors", "none"), default=Gateway.log)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _arguments(arguments)
    config = render(
        Gateway(
            descriptor=options.descriptor,
            descriptor_at=options.descriptor_at,
            listen=options.listen,
            admin_port=options.admin_port,
            targets=_with(Gateway(descriptor=options.descriptor).targets, options.target),
            grpc_targets=_with(Gateway(descriptor=options.descriptor).grpc_targets, options.grpc_target),
            issuer=options.issuer,
            audience=options.audience,
            trusted_hops=options.trusted_hops,
            log=options.log,
            pages={path: Path(file) for path, file in options.page},
        )
    )
    write(config, options.out)


def _with(targets: Mapping[str, Address], options: Iterable[tuple[str, str]]) -> dict[str, Address]:
    return {**targets, **{name: Address.parse(address) for name, address in options}}


def write(config: Config, directory: Path) -> Path:
    """Write `envoy.yaml` into the directory and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "envoy.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, width=120), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
