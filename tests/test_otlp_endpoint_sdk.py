"""The OpenTelemetry SDK's own exporters, over HTTP."""

from __future__ import annotations

import threading
import time

import pytest
import uvicorn
from otlp_platform import Platform


@pytest.fixture
def platform():
    return Platform()


@pytest.fixture
def served(platform):
    """The platform under uvicorn on loopback: its base URL."""
    server = uvicorn.Server(uvicorn.Config(platform.endpoint, host="127.0.0.1", port=0, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.sockets
@pytest.mark.parametrize("compression", ["NoCompression", "Gzip", "Deflate"])
def test_the_opentelemetry_sdks_metrics_arrive(platform, served, compression, monkeypatch):
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource

    monkeypatch.setattr(platform.endpoint._signals[0][1].ingest, "_clock", time.time)
    exporter = OTLPMetricExporter(
        f"{served}/v1/metrics", headers={"Authorization": "Bearer enrolment"}, compression=Compression[compression], timeout=10
    )
    provider = MeterProvider(
        [PeriodicExportingMetricReader(exporter, export_interval_millis=600_000)], Resource({"host.name": "sdk", "service.version": "9"})
    )
    meter = provider.get_meter("test")
    counter = meter.create_counter("jobs", "{job}")
    histogram = meter.create_histogram("latency", "s")
    for n in range(3):
        counter.add(2, {"queue": "a"})
        histogram.record(0.3)
        assert provider.force_flush(10_000)
        assert len(platform.store.schemas) >= 1, n
    provider.shutdown()
    stored = {}
    for (labels, _), value in platform.store.samples.items():
        found = dict(labels)
        assert found["instance"] == "i-sdk"
        assert "service.version" not in found
        stored.setdefault(found["__name__"], []).append(value)
    assert sorted(set(stored["jobs"])) == [2.0, 4.0, 6.0]
    assert max(stored["latency_count"]) == 3
    assert "latency_bucket" in stored


@pytest.mark.sockets
def test_the_opentelemetry_sdks_logs_and_events_arrive(platform, served, monkeypatch):
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
    from opentelemetry.sdk.resources import Resource

    monkeypatch.setattr(platform.endpoint._signals[1][1].ingest, "_clock", time.time)
    exporter = OTLPLogExporter(f"{served}/v1/logs", headers={"Authorization": "Bearer credential"}, timeout=10)
    provider = LoggerProvider(Resource({"host.name": "sdk"}))
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = provider.get_logger("test")
    logger.emit(
        LogRecord(
            timestamp=time.time_ns(), severity_number=SeverityNumber.WARN, body={"k": [1]}, attributes={"a": True}, event_name="deploy"
        )
    )
    provider.shutdown()
    (event,) = platform.events.values()
    assert (event.name, event.severity, event.body) == ("deploy", 13, '{"k":[1]}')
    assert event.attributes == {"a": True}
    assert event.resource["host.name"] == "sdk"


@pytest.mark.sockets
def test_a_refused_sdk_does_not_try_again(platform, served, caplog):
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs.export import LogRecordExportResult

    exporter = OTLPLogExporter(f"{served}/v1/logs", headers={"Authorization": "Bearer expired"}, timeout=10)
    assert exporter.export([]) is LogRecordExportResult.FAILURE
    exporter.shutdown()
