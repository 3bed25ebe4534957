"""Traces for OpenTelemetry."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from services.chassis import request_context


def start(service: str) -> None:
    """Exports traces to OTEL_EXPORTER_OTLP_ENDPOINT."""
    # Imported here because it takes half a second, and most processes export no traces.
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    ratio = float(os.environ.get("OTEL_TRACES_SAMPLER_ARG", "0.01"))
    provider = TracerProvider(
        resource=Resource.create({"service.name": service}), sampler=ParentBased(TraceIdRatioBased(ratio))
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _State.tracer = trace.get_tracer("stampede")


class _State:
    """The tracer; None until `start`."""

    tracer: Any = None


def traced(method: str, behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wraps `behavior` in a span, a child of the caller's. Returns `behavior` itself if no traces are exported."""
    tracer = _State.tracer
    if tracer is None:
        return behavior
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    async def inside(request: Any, context: Any) -> Any:
        call = request_context.current()
        parent = propagator.extract({"traceparent": call.traceparent})
        # The text of an exception may hold values that must not appear in a trace.
        with tracer.start_as_current_span(method, context=parent, kind=SpanKind.SERVER, record_exception=False) as span:
            span.set_attribute("stampede.request_id", call.request_id)
            carrier: dict[str, str] = {}
            propagator.inject(carrier)
            call.traceparent = carrier.get("traceparent", "")
            return await behavior(request, context)

    return inside
