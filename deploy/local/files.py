"""Writes the configuration files of Valkey, NATS and Envoy. Files with secrets are private."""

from pathlib import Path

from deploy.local.location import ROOT, Site, write_private
from deploy.local.ports import HOST, SERVICES
from gateway.render import Address, Gateway, render, write


def valkey(site: Site, path: Path) -> None:
    """Writes the configuration of Valkey, which stores nothing on disk: the gate is rebuilt from PostgreSQL."""
    folder = site.data / "valkey"
    folder.mkdir(mode=0o700, exist_ok=True)
    lines = (
        f"bind {HOST}",
        f"port {site.ports.valkey}",
        f"requirepass {site.secrets['valkey']}",
        f"dir {_quoted(folder)}",
        'save ""',
        "appendonly no",
        "maxmemory 256mb",
        "maxmemory-policy noeviction",
    )
    write_private(path, "\n".join(lines) + "\n")


def _quoted(path: Path) -> str:
    """The path as Valkey and NATS read it: it may contain spaces and quotes."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def nats(site: Site, path: Path) -> None:
    """Writes the configuration of NATS: JetStream on disk, one user, loopback only."""
    write_private(
        path,
        f"""\
listen: "{HOST}:{site.ports.nats}"
http: "{HOST}:{site.ports.nats_monitor}"
jetstream {{ store_dir: {_quoted(site.data / "nats")}, max_memory_store: 64MB, max_file_store: 2GB, sync_interval: 1s }}
authorization {{ user: "stampede", password: "{site.secrets["nats"]}" }}
""",
    )


def envoy(site: Site) -> None:
    """Writes the gateway's configuration, from the template that Compose and Kubernetes use, too."""
    gateway = Gateway(
        descriptor=ROOT / "protos/gen/gateway.binpb",
        listen=Address(HOST, site.ports.gateway),
        admin_port=site.ports.admin,
        targets={name: Address(HOST, site.ports.http(name)) for name in SERVICES},
        grpc_targets={name: Address(HOST, site.ports.grpc(name)) for name in SERVICES},
    )
    write(render(gateway), site.run).chmod(0o600)
