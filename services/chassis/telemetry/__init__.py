"""Telemetry: logs as JSON lines, metrics for Prometheus, traces for OpenTelemetry, heartbeats of background tasks."""

import os

from prometheus_client import start_http_server

from services.chassis.telemetry import logs, traces
from services.chassis.telemetry.logs import cause_of, flush, log_info
from services.chassis.telemetry.traces import traced

__all__ = ["cause_of", "flush", "log_info", "start", "traced"]


def start(service: str, *, log_level: str, metrics_listen: str) -> None:
    """Sets up logs, serves `/metrics` on `metrics_listen`, and exports traces if OTEL_EXPORTER_OTLP_ENDPOINT is set."""
    logs.start(service, log_level)
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        traces.start(service)
    host, _, port = metrics_listen.rpartition(":")
    start_http_server(int(port), host)
