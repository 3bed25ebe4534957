"""Network policies and Compose networks allow exactly the connections that the contract needs."""

import importlib
from pathlib import Path

from stampede.access.v1 import access_pb2
from tests.contract.deployment.deployed import (
    BASE,
    DEV,
    GRPC,
    HTTP,
    OVERLAYS,
    ROOT,
    SERVICES,
    STORES,
    Object,
    built,
    compose,
    grpc_owners,
    pod_labels,
    pods,
    settings,
)


def callers() -> set[tuple[str, str]]:
    """Return (caller, service) for every method that another service may call."""
    found = set()
    for path in (ROOT / "protos/gen/stampede").rglob("*_service_pb2.py"):
        module = importlib.import_module(".".join(path.relative_to(ROOT / "protos/gen").with_suffix("").parts))
        for service in module.DESCRIPTOR.services_by_name.values():
            owner = service.full_name.split(".")[1]
            for method in service.methods:
                found |= {(caller, owner) for caller in method.GetOptions().Extensions[access_pb2.callers]}
    return found


def may_connect(source: str, target: str, port: int, folder: Path) -> bool:
    """Return whether the policies let one pod of the namespace connect to another."""
    labels = pod_labels(folder)

    def allows(direction: str, pod: str, peer: str) -> bool:
        rules_key, peers_key = direction.lower(), "from" if direction == "Ingress" else "to"
        policies = [
            each["spec"] for each in built(folder) if each["kind"] == "NetworkPolicy"
            and direction in each["spec"]["policyTypes"]
            and each["spec"]["podSelector"].get("matchLabels", {}).items() <= labels[pod].items()
        ]  # fmt: skip
        assert policies, f"{pod} has no policy that denies by default"
        return any(
            any(each["port"] == port for each in rule["ports"])
            and (peers_key not in rule or any(matches(selector, peer) for selector in rule[peers_key]))
            for policy in policies
            for rule in policy.get(rules_key, [])
        )

    def matches(selector: Object, name: str) -> bool:
        return "podSelector" in selector and selector["podSelector"]["matchLabels"].items() <= labels[name].items()

    return allows("Egress", source, target) and allows("Ingress", target, source)


def test_policies_allow_exactly_the_calls_of_the_contract() -> None:
    """In addition every service asks identity for its keys, and the gateway calls each service over HTTP."""
    asks_for_keys = {(service, "identity") for service in SERVICES if service != "identity"}
    expected = {
        HTTP: {("gateway", service) for service in SERVICES},
        GRPC: callers() | asks_for_keys | {("gateway", owner) for owner in grpc_owners()},
    }
    for folder in OVERLAYS:
        for port, pairs in expected.items():
            possible = {
                (source, target)
                for source in pods(folder)
                for target in SERVICES
                if source != target and may_connect(source, target, port, folder)
            }
            assert possible == pairs, (folder.name, port)


def test_services_can_reach_the_targets_in_their_settings() -> None:
    unreachable = [
        f"{service} to {target}"
        for service in SERVICES
        for name in settings(service).model_fields
        for target in [name.removesuffix("_target")]
        if target not in (name, service) and not may_connect(service, target, GRPC, BASE)
    ]
    assert not unreachable


def test_stores_are_reachable_only_by_their_users() -> None:
    users = {
        ("postgres", 5432): {*SERVICES, "roles"},
        ("nats", 4222): set(SERVICES),
        ("valkey", 6379): {"inventory"},
        ("sandbox", 12111): {"payments"},
    }
    for (store, port), expected in users.items():
        assert {name for name in pods(DEV) if name != store and may_connect(name, store, port, DEV)} == expected


def test_compose_publishes_only_the_gateway_and_on_loopback() -> None:
    published = {name: part["ports"] for name, part in compose()["services"].items() if "ports" in part}
    assert published == {"gateway": ["127.0.0.1:${STAMPEDE_PORT:-8080}:8080"]}


def test_compose_separates_stores_from_the_gateway_and_from_outside() -> None:
    networks = {name: set(part["networks"]) for name, part in compose()["services"].items()}
    assert {name: networks[name] for name in (*STORES, "roles")} == {name: {"data"} for name in (*STORES, "roles")}
    assert compose()["networks"]["data"] == compose()["networks"]["mesh"] == {"internal": True}
    assert {name for name in networks if "edge" in networks[name]} == {"gateway", "payments", "sandbox"}
