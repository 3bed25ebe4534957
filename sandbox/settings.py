"""The sandbox's options, from the command line or from the environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_KEY = "sk_test_sandbox"
DEFAULT_RAZORPAY = ("rzp_test_sandbox", "secret_of_the_sandbox")
LATENCY_MS_MAX = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the webhooks of one protocol go."""

    url: str
    secret: str
    events: tuple[str, ...] = ("*",)

    def wants(self, event_type: str) -> bool:
        """Whether a webhook is sent for events of this type."""
        return "*" in self.events or event_type in self.events


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of one sandbox. The publishable key is derived from the secret key."""

    host: str = "127.0.0.1"
    port: int = 0
    state: Path
    api_key: str = DEFAULT_KEY
    razorpay_key_id: str = DEFAULT_RAZORPAY[0]
    razorpay_key_secret: str = DEFAULT_RAZORPAY[1]
    webhooks: Mapping[str, Target] = field(default_factory=dict)
    """By the name of the protocol. Events of a protocol without one are stored, not sent."""
    public_url: str = ""
    """The address of the sandbox in browsers; empty if it is the one that it listens at."""
    latency_ms: int = 0

    @property
    def publishable_key(self) -> str:
        return "pk_" + self.api_key.removeprefix("sk_")


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the options; exits with status 2 and a message if one is invalid."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox",
        description="A payment provider without money: Stripe's and Razorpay's protocols, with switchable faults.",
        epilog="Each option can also be set in the environment; the help of the option has the name.",
    )

    def option(flag: str, variable: str, text: str, default: str | None = None) -> None:
        shown = "" if default is None else f", default {default or 'none'}"
        parser.add_argument(flag, default=environ.get(variable, default), help=f"{text} ({variable}{shown})")

    option("--listen", "SANDBOX_LISTEN", "address and port, port 0 for any free one", "127.0.0.1:12111")
    option("--state", "SANDBOX_STATE", "file that stores everything across restarts")
    option("--api-key", "SANDBOX_API_KEY", "secret key sk_…; the publishable key is pk_…", DEFAULT_KEY)
    option("--webhook-url", "SANDBOX_WEBHOOK_URL", "URL that events are sent to", "")
    option("--webhook-secret", "SANDBOX_WEBHOOK_SECRET", "secret that signs the events, whsec_…", "")
    option("--webhook-events", "SANDBOX_WEBHOOK_EVENTS", "event types to send, separated by commas", "*")
    option("--razorpay-key-id", "SANDBOX_RAZORPAY_KEY_ID", "key id rzp_test_…", DEFAULT_RAZORPAY[0])
    option("--razorpay-key-secret", "SANDBOX_RAZORPAY_KEY_SECRET", "its secret", DEFAULT_RAZORPAY[1])
    option("--razorpay-webhook-url", "SANDBOX_RAZORPAY_WEBHOOK_URL", "URL that Razorpay's events are sent to", "")
    option("--razorpay-webhook-secret", "SANDBOX_RAZORPAY_WEBHOOK_SECRET", "secret that signs them", "")
    option("--razorpay-webhook-events", "SANDBOX_RAZORPAY_WEBHOOK_EVENTS", "event types to send", "*")
    option("--public-url", "SANDBOX_PUBLIC_URL", "address of its pages, if browsers need another one", "")
    option("--latency-ms", "SANDBOX_LATENCY_MS", "delay of every answer in milliseconds", "0")
    given = parser.parse_args(argv)

    host, _, port = str(given.listen).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65_535:
        parser.error("--listen must be ADDRESS:PORT")
    if not given.state:
        parser.error("--state is required: the file that stores the payments")
    if not str(given.api_key).startswith("sk_test_"):
        parser.error("--api-key must start with sk_test_: the sandbox takes no live key")
    if not str(given.razorpay_key_id).startswith("rzp_test_"):
        parser.error("--razorpay-key-id must start with rzp_test_: the sandbox takes no live key")
    if given.public_url and urlsplit(given.public_url).scheme not in ("http", "https"):
        parser.error("--public-url must be an http or https URL")
    if not str(given.latency_ms).isdigit() or int(given.latency_ms) > LATENCY_MS_MAX:
        parser.error(f"--latency-ms must be a number from 0 to {LATENCY_MS_MAX}")
    stripe = _target(parser, "--webhook", given.webhook_url, given.webhook_secret, given.webhook_events)
    razorpay = _target(
        parser, "--razorpay-webhook", given.razorpay_webhook_url, given.razorpay_webhook_secret,
        given.razorpay_webhook_events,
    )  # fmt: skip
    return Settings(
        host=host,
        port=int(port),
        state=Path(given.state),
        api_key=given.api_key,
        razorpay_key_id=given.razorpay_key_id,
        razorpay_key_secret=given.razorpay_key_secret,
        webhooks={name: target for name, target in (("stripe", stripe), ("razorpay", razorpay)) if target},
        public_url=str(given.public_url).rstrip("/"),
        latency_ms=int(given.latency_ms),
    )


def _target(parser: argparse.ArgumentParser, option: str, url: str, secret: str | None, events: str) -> Target | None:
    """Reads where webhooks go, from three options whose names begin with `option`."""
    if not url:
        return None
    if urlsplit(url).scheme not in ("http", "https"):
        parser.error(f"{option}-url must be an http or https URL")
    if not secret:
        parser.error(f"{option}-secret is required with {option}-url")
    return Target(url=url, secret=secret, events=tuple(part.strip() for part in events.split(",") if part.strip()))
