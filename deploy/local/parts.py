"""The parts of the mesh: each process with its command, its settings, and the parts that it needs first."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from signal import SIGINT, SIGTERM, Signals

from deploy.local import files, postgres, probes, wheels
from deploy.local.location import ROOT, Site
from deploy.local.ports import HOST, SERVICES

INFRASTRUCTURE = ("postgres", "valkey", "nats", "sandbox")
EVERYTHING = (*INFRASTRUCTURE, *SERVICES, "gateway")
_RAZORPAY_KEY_ID = "rzp_test_stampede"
# The event types that payments handles; it would acknowledge and drop others.
_STRIPE_EVENTS = (
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.canceled",
    "payment_intent.amount_capturable_updated",
    "payment_intent.processing",
    "payment_intent.requires_action",
    "checkout.session.completed",
    "checkout.session.expired",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "charge.refunded",
    "charge.refund.updated",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.closed",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the mesh, or one task that runs once and must succeed."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    ports: tuple[int, ...] = ()
    after: tuple[str, ...] = ()
    """Parts that must be ready before this one starts."""
    tier: int = 0
    """Parts of a higher tier are stopped first."""
    ready: probes.Probe | None = None
    """Asks whether the part is ready. A part without a probe runs once."""
    prepare: Callable[[], None] | None = None
    """Called before each start."""
    needed: Callable[[], bool] | None = None
    """For tasks: whether there is anything to do; a task that is not needed counts as done."""
    stop_signal: Signals = SIGTERM
    user: str | None = None
    timeout_seconds: float = 300
    """A slow machine takes long; a part that cannot start ends, and is noticed at once."""


def topology(site: Site) -> tuple[Part, ...]:
    """All parts of the mesh, infrastructure first and the gateway last."""
    return (*_infrastructure(site), _databases(site), *_services(site), _gateway(site))


def select(parts: tuple[Part, ...], names: tuple[str, ...]) -> tuple[Part, ...]:
    """The named parts, with the tasks that prepare PostgreSQL if it is among them."""
    wanted = set(names)
    if "postgres" in wanted:
        wanted |= {"initdb", "databases"}
    return tuple(part for part in parts if part.name in wanted)


def _infrastructure(site: Site) -> Iterator[Part]:
    ports = site.ports
    yield Part(
        name="initdb",
        command=postgres.initdb(site),
        user=wheels.other_user(),
        needed=lambda: not (site.data / "postgres/PG_VERSION").exists(),
        prepare=lambda: postgres.before_initdb(site),
    )
    yield Part(
        name="postgres",
        command=postgres.serve(site),
        user=wheels.other_user(),
        ports=(ports.postgres,),
        after=("initdb",),
        ready=probes.postgres(ports.postgres, site.password("postgres")),
        prepare=lambda: postgres.before_start(site),
        stop_signal=SIGINT,  # a fast shutdown: ends sessions, then writes a checkpoint
    )
    valkey_config = site.run / "valkey.conf"
    yield Part(
        name="valkey",
        command=(str(wheels.valkey()), str(valkey_config)),
        ports=(ports.valkey,),
        ready=probes.valkey(ports.valkey, site.secrets["valkey"]),
        prepare=lambda: files.valkey(site, valkey_config),
    )
    nats_config = site.run / "nats.conf"
    yield Part(
        name="nats",
        command=(str(wheels.nats()), "--config", str(nats_config)),
        ports=(ports.nats, ports.nats_monitor),
        ready=probes.http(ports.nats_monitor, "/healthz"),
        prepare=lambda: files.nats(site, nats_config),
    )
    yield Part(
        name="sandbox",
        command=(sys.executable, "-m", "sandbox"),
        environment=_python()
        | {
            "SANDBOX_LISTEN": f"{HOST}:{ports.sandbox}",
            "SANDBOX_STATE": str(site.data / "sandbox/journal.jsonl"),
            "SANDBOX_WEBHOOK_URL": f"{site.url}/v1/webhooks/stripe",
            "SANDBOX_WEBHOOK_SECRET": site.secrets["stripe/webhook"],
            "SANDBOX_API_KEY": site.secrets["stripe/key"],
            "SANDBOX_WEBHOOK_EVENTS": ",".join(_STRIPE_EVENTS),
            "SANDBOX_RAZORPAY_KEY_ID": _RAZORPAY_KEY_ID,
            "SANDBOX_RAZORPAY_KEY_SECRET": site.secrets["razorpay/key"],
            "SANDBOX_RAZORPAY_WEBHOOK_URL": f"{site.url}/v1/webhooks/razorpay",
            "SANDBOX_RAZORPAY_WEBHOOK_SECRET": site.secrets["razorpay/webhook"],
        },
        ports=(ports.sandbox,),
        ready=probes.http(ports.sandbox, "/healthz"),
        prepare=lambda: (site.data / "sandbox").mkdir(mode=0o700, exist_ok=True),
    )


def _databases(site: Site) -> Part:
    return Part(
        name="databases",
        command=postgres.make_roles(site),
        environment=postgres.role_passwords(site),
        after=("postgres",),
    )


def _services(site: Site) -> Iterator[Part]:
    for name in SERVICES:
        yield Part(
            name=name,
            # `up` migrates first. In deployment, a job of its own does, with credentials that the service never has.
            command=(sys.executable, "-m", f"services.{name}", "up"),
            environment=service_environment(site, name),
            ports=(site.ports.grpc(name), site.ports.http(name), site.ports.metrics(name)),
            after=("databases",),
            tier=1,
            ready=probes.grpc_health(site.ports.grpc(name)),
        )


def _gateway(site: Site) -> Part:
    # Needs no part first: Envoy finds the services by itself, and is ready when they are.
    return Part(
        name="gateway",
        command=(
            str(wheels.envoy()),
            "--config-path",
            str(site.run / "envoy.yaml"),
            # One worker leaves the second core to the services.
            "--concurrency",
            os.environ.get("STAMPEDE_GATEWAY_WORKERS") or "1",
            "--log-level",
            "warning",
            "--use-dynamic-base-id",
            "--drain-time-s",
            "2",
        ),
        ports=(site.ports.gateway, site.ports.admin),
        tier=2,
        ready=probes.http(site.ports.gateway, "/readyz"),
        prepare=lambda: files.envoy(site),
    )


def service_environment(site: Site, name: str) -> dict[str, str]:
    """The settings of one service, as environment variables."""
    common = _python() | {
        "ENVIRONMENT": "local",
        "LISTEN": site.target(name),
        "HTTP_LISTEN": f"{HOST}:{site.ports.http(name)}",
        "METRICS_LISTEN": f"{HOST}:{site.ports.metrics(name)}",
        "DATABASE_URL": site.database_url(name),
        "MIGRATION_DATABASE_URL": site.database_url(name, f"{name}_owner"),
        "NATS_URL": site.nats_url,
        "VALKEY_URL": site.valkey_url,
        "MESH_SECRET": site.secrets["mesh"],
        "PAGE_SECRET": site.secrets["pages"],
        **{f"{other.upper()}_TARGET": site.target(other) for other in SERVICES},
    }
    own = {
        "identity": {
            "ADMIN_PASSWORD": site.secrets["admin"],
            "KEY_SECRET": site.secrets["keys"],
            "PASSWORD_ROUNDS": "8",
        },
        "payments": {
            "STRIPE_API_KEY": site.secrets["stripe/key"],
            "STRIPE_WEBHOOK_SECRET": site.secrets["stripe/webhook"],
            "STRIPE_API_BASE": site.sandbox_url,
            "RAZORPAY_KEY_ID": _RAZORPAY_KEY_ID,
            "RAZORPAY_KEY_SECRET": site.secrets["razorpay/key"],
            "RAZORPAY_WEBHOOK_SECRET": site.secrets["razorpay/webhook"],
            "RAZORPAY_API_BASE": f"{site.sandbox_url}/razorpay",
            "RAZORPAY_CALLS_PER_SECOND": "0",
            "PROVIDER_CALLS_PER_SECOND": "0",  # no limit: the sandbox has none
        },
    }
    return common | own.get(name, {})


def _python() -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos/gen'}", "PYTHONUNBUFFERED": "1"}
