"""Sends traces to OpenTelemetry, when the standard variables say where: `OTEL_EXPORTER_OTLP_ENDPOINT` and its kin.

It needs the extra `otel` (`pip install 'fleet[otel]'`): the SDK comes with Ray, the exporter does not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from fleet.models import FeedItem
from fleet.observability.traces import Span, TraceBuilder

log = logging.getLogger("fleet.observability")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SERVICE = "fleet"


def wanted(environ: Mapping[str, str]) -> bool:
    """Return whether the standard variables ask for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environ.get(name) for name in ENDPOINTS)


def watcher(environ: Mapping[str, str]) -> Callable[[FeedItem], None] | None:
    """Return what takes the feed and sends traces; None when none are wanted or the exporter is not installed."""
    if not wanted(environ):
        return None
    try:
        exporter = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter()
    except ImportError:
        log.warning("traces off: OTEL_* names an endpoint, but the exporter is missing; pip install 'fleet[otel]'")
        return None
    sender = Sender(exporter, environ)
    builder = TraceBuilder()

    def take(item: FeedItem) -> None:
        for trace in builder.take(item):
            sender.send(trace)

    return take


class Sender:
    """Sends traces by an exporter of OpenTelemetry, in batches, from a thread of its own.

    Args:
        exporter: a `SpanExporter`.
        environ: the variables, for the service's name.
    """

    def __init__(self, exporter: Any, environ: Mapping[str, str]) -> None:
        resources = import_module("opentelemetry.sdk.resources")
        sdk = import_module("opentelemetry.sdk.trace")
        export = import_module("opentelemetry.sdk.trace.export")
        # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME are read by Resource.create itself.
        own = {} if "OTEL_SERVICE_NAME" in environ else {"service.name": SERVICE}
        # Not the process's global provider: Ray has its own use for that.
        self._provider = sdk.TracerProvider(resource=resources.Resource.create(own))
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE)

    def send(self, span: Span, parent: Any = None) -> None:
        """Hand a trace over; it is sent soon."""
        trace = import_module("opentelemetry.trace")
        context = (
            trace.set_span_in_context(parent)
            if parent is not None
            else import_module("opentelemetry.context").Context()
        )
        made = self._tracer.start_span(
            span.name, context=context, start_time=_ns(span.start), attributes=span.attributes
        )
        for child in span.children:
            self.send(child, made)
        if span.error is not None:
            made.set_status(trace.StatusCode.ERROR, span.error)
        made.end(end_time=_ns(span.end))

    def close(self) -> None:
        """Send what waits and end."""
        self._provider.shutdown()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
