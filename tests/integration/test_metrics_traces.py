"""Traces leave as OTLP over HTTP, to where the standard variables say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fleet.observability import otel
from fleet.observability.traces import Span

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed (pip install 'fleet[otel]')"
)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A server of OTLP over HTTP; yields its address and what it was sent."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    sent: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            request = ExportTraceServiceRequest()
            request.ParseFromString(body)
            sent.append((self.path, request))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", sent
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_trace_arrives_with_its_tree_and_times(
    collector: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    url, sent = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
    assert otel.wanted(environ)
    sender = otel.Sender(OTLPSpanExporter(), environ)
    tool = Span(
        "tool Bash", 1_800_000_002.0, 1_800_000_003.5, {"fleet.tool": "Bash"}, "the tool answered with an error"
    )
    run = Span("run 1", 1_800_000_001.0, 1_800_000_004.0, {"fleet.turns": 3}, None, (tool,))
    sender.send(Span("task qa", 1_800_000_000.0, 1_800_000_005.0, {"fleet.task": "t-1"}, None, (run,)))
    sender.send(Span("task qa", 1_800_000_000.0, 1_800_000_005.0, {"fleet.task": "t-2"}))
    sender.close()

    assert {path for path, _ in sent} == {"/v1/traces"}
    resource = {
        attribute.key: attribute.value.string_value
        for _, request in sent
        for attribute in request.resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "fleet" and resource["deployment.environment"] == "test"
    spans = [span for _, request in sent for scope in request.resource_spans[0].scope_spans for span in scope.spans]
    by_name = {span.name: span for span in spans if span.name != "task qa"}
    first, second = [span for span in spans if span.name == "task qa"]
    assert first.trace_id != second.trace_id
    root = first if first.trace_id == by_name["run 1"].trace_id else second
    assert by_name["run 1"].parent_span_id == root.span_id
    assert by_name["tool Bash"].parent_span_id == by_name["run 1"].span_id
    assert by_name["tool Bash"].end_time_unix_nano - by_name["tool Bash"].start_time_unix_nano == 1_500_000_000
    assert by_name["tool Bash"].status.code == 2
