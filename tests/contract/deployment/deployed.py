"""Reads what Compose and Kubernetes deploy, for the tests beside this module."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from gateway.contract import read
from services.chassis.settings import ServiceSettings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
BASE, DEV = DEPLOY / "k8s/base", DEPLOY / "k8s/overlays/dev"
OVERLAYS = (BASE, DEV)
BIN = Path(sys.executable).parent
SERVICES = ("catalog", "identity", "inventory", "orders", "payments")
STORES = ("postgres", "valkey", "nats")
HTTP, GRPC, METRICS = 8000, 50051, 9090
Object = dict[str, Any]


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)


def variables(text: str) -> dict[str, str]:
    """Return the variables of an env file."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


@cache
def secrets() -> dict[str, str]:
    """Return the variables of compose.env.example, filled in by the command that the README gives."""
    readme = (DEPLOY / "README.md").read_text()
    command = re.search(r"^python3 -c .*?compose\.env\.example", readme, re.M | re.S)
    assert command, "README.md has no command that makes the secrets"
    made = run("bash", "-c", command[0], cwd=ROOT)
    assert made.returncode == 0, made.stderr
    return variables(made.stdout)


def settings(service: str) -> type[ServiceSettings]:
    kind: type[ServiceSettings] = importlib.import_module(f"services.{service}.settings").Settings
    return kind


def grpc_owners() -> set[str]:
    """Return the services that the gateway calls over gRPC, for answers with a body of their own."""
    return {route.owner for route in read(ROOT / "protos/gen/gateway.binpb") if route.is_body}


# -- Compose -----------------------------------------------------------------------------------------------------------


@cache
def compose() -> Object:
    loaded: Object = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def compose_environment(part: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return a container's environment as Compose fills it in. Raises `KeyError` for a missing variable."""

    def value(match: re.Match[str]) -> str:
        name, operator, default = match[1], match[2], match[3]
        found = given.get(name, "")
        if not found and operator == ":?":
            raise KeyError(name)
        return found or (default if operator == ":-" else "")

    environment = compose()["services"][part].get("environment", {})
    return {name: re.sub(r"\$\{(\w+)(:\?|:-|-)?([^}]*)\}", value, text) for name, text in environment.items()}


# -- Kubernetes --------------------------------------------------------------------------------------------------------


@cache
def built(folder: Path) -> tuple[Object, ...]:
    """Return the objects that `kubectl kustomize` makes of the folder, without the hashes in names of ConfigMaps."""
    made = run(BIN / "kubectl", "kustomize", folder)
    assert made.returncode == 0, made.stderr
    return tuple(yaml.load_all(re.sub(r"\b(settings|nats)-[a-z0-9]{10}\b", r"\1", made.stdout), yaml.CSafeLoader))


def find(kind: str, name: str, folder: Path = BASE) -> Object:
    (found,) = (each for each in built(folder) if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def containers(each: Object) -> list[Object]:
    spec = each.get("spec", {}).get("template", {}).get("spec", {})
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


def pods(folder: Path) -> dict[str, Object]:
    """Return the workloads by name."""
    return {each["metadata"]["name"]: each for each in built(folder) if containers(each)}


def pod_labels(folder: Path) -> dict[str, dict[str, str]]:
    return {name: each["spec"]["template"]["metadata"]["labels"] for name, each in pods(folder).items()}


def pod_environment(workload: Object, container: Object, given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return a container's environment as the kubelet fills it in. Raises `KeyError` for a missing value."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= find("ConfigMap", source["configMapRef"]["name"], folder)["data"]
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            assert source["secretKeyRef"]["name"] == "stampede"
            found[variable["name"]] = given[source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            label = re.fullmatch(r"metadata\.labels\['(.*)'\]", source["fieldRef"]["fieldPath"])
            assert label
            found[variable["name"]] = workload["spec"]["template"]["metadata"]["labels"][label[1]]
        else:
            found[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], variable.get("value", ""))
    return found


# -- both --------------------------------------------------------------------------------------------------------------


@cache
def environments(service: str) -> tuple[tuple[str, dict[str, str], dict[str, str]], ...]:
    """Return (place, environment of the migration, environment of the service) for every place of deployment."""

    def places() -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
        yield (
            f"{service} in compose",
            compose_environment(f"{service}-migrate", secrets()),
            compose_environment(service, secrets()),
        )
        for folder in OVERLAYS:
            workload = find("Deployment", service, folder)
            migrate, serve = (pod_environment(workload, each, secrets(), folder) for each in containers(workload))
            yield f"{service} in {folder.name}", migrate, serve

    return tuple(places())


def all_environments() -> Iterator[tuple[str, str, dict[str, str], dict[str, str]]]:
    """Yield (service, place, environment of the migration, environment of the service)."""
    for service in SERVICES:
        for place, migrate, serve in environments(service):
            yield service, place, migrate, serve
