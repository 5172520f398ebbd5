"""Clients that are not ours, against the platform over real sockets."""

from __future__ import annotations

import threading

import pytest
import uvicorn
from opentelemetry._opamp.agent import OpAMPAgent
from opentelemetry._opamp.callbacks import OpAMPCallbacks
from opentelemetry._opamp.client import OpAMPClient
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from waiting import eventually

from app.main import create_app
from app.settings import Settings

pytestmark = pytest.mark.sockets
KEY = "a-preset-admin-key-for-tests"


@pytest.fixture
def platform(tmp_path):
    """A platform that serves on a free port of loopback."""
    import httpx2

    server = uvicorn.Server(uvicorn.Config(create_app(Settings(data_dir=tmp_path, admin_api_key=KEY)), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, name="platform")
    thread.start()
    eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client
    server.should_exit = True
    thread.join(20)


def token_for(platform, agent_type: str = "server") -> str:
    body = {"agent_type": agent_type, "environment_name": "foreign"}
    return platform.post("/api/v1/agent/provision", json=body).json()["agent_token"]


def instances(platform) -> list[dict]:
    return platform.get("/api/v1/instances").json()["items"]


def test_the_python_opamp_client_joins_the_fleet_beats_and_says_goodbye(platform):
    client = OpAMPClient(
        endpoint=f"http://127.0.0.1:{platform.base_url.port}/v1/opamp",
        headers={"Authorization": f"Bearer {token_for(platform)}"},
        agent_identifying_attributes={"service.name": "checkout", "service.version": "2.0", "host.id": "h1"},
        agent_non_identifying_attributes={"host.name": "shop-1"},
    )

    class Silent(OpAMPCallbacks):
        pass

    agent = OpAMPAgent(interval=1, callbacks=Silent(), client=client)
    agent.start()
    try:
        (instance,) = eventually(lambda: [i for i in instances(platform) if i["status"] == "healthy"])
        assert (instance["name"], instance["version"]) == ("shop-1", "2.0")
        first = instance["last_seen_at"]
        eventually(lambda: instances(platform)[0]["last_seen_at"] > first)
    finally:
        agent.stop()
    eventually(lambda: instances(platform)[0]["status"] == "stopped")


def test_the_opentelemetry_sdk_sends_metrics_with_a_token_and_is_an_instance(platform):
    exporter = OTLPMetricExporter(
        endpoint=f"http://127.0.0.1:{platform.base_url.port}/v1/metrics", headers={"Authorization": f"Bearer {token_for(platform)}"}
    )
    resource = Resource.create({"service.name": "checkout", "service.instance.id": "one", "host.name": "shop-2"})
    provider = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=60_000)], resource=resource)
    provider.get_meter("test").create_counter("orders", unit="{order}").add(3, {"shop": "a"})
    assert provider.force_flush()
    (instance,) = eventually(lambda: instances(platform))
    assert instance["name"] == "shop-2"
    answer = platform.get("/prometheus/api/v1/query", params={"query": "orders_total"}).json()
    (sample,) = answer["data"]["result"]
    assert sample["value"][1] == "3"
    assert (sample["metric"]["shop"], sample["metric"]["instance"], sample["metric"]["environment"]) == ("a", instance["id"], "foreign")
    provider.shutdown()
