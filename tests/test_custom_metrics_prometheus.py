from __future__ import annotations

import http.server
import json
import socket
import threading
import time

import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from connectors.core import wire
from connectors.core.agent_config import AgentConfig
from connectors.core.custom.assemble import make_sources
from connectors.core.custom.intake import OVER_LIMIT_EVENT, Budget, Intake, Limits, OverLimitError
from connectors.core.custom.prometheus_scrape import Endpoint, checked_endpoint, scrape
from connectors.core.errors import CollectorError, ConfigError
from connectors.core.telemetry import Kind, Metric, Point
from tests.configured_agent import APPLIED, FAILED, ConfigurationDesk, TrialAgent, options, running
from tests.fake_platform import FakePlatform

sockets = pytest.mark.sockets


# Which addresses


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:9100/metrics", Endpoint("http", "127.0.0.1", 9100, "/metrics")),
        ("http://localhost:8080/actuator/prometheus?a=b", Endpoint("http", "localhost", 8080, "/actuator/prometheus?a=b")),
        ("https://[::1]:9100", Endpoint("https", "::1", 9100, "/metrics")),
        ("http://127.8.9.10", Endpoint("http", "127.8.9.10", 80, "/metrics")),
    ],
)
def test_loopback_may_be_scraped(url, endpoint):
    assert checked_endpoint(url, ()) == endpoint


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1:9100/metrics",
        "http://metrics.example.com/metrics",
        "http://localhost.example.com/metrics",
        "http://127.0.0.1.example.com/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0.0.0.0:9100/",
        "http://[fe80::1%25lo]/",
        "http://[::ffff:10.0.0.1]/",
    ],
)
def test_nothing_else_may_unless_the_host_allows_it(url):
    with pytest.raises(ConfigError, match=r"is not on loopback|is not a URL") as caught:
        checked_endpoint(url, ("other.example.com",))
    assert caught.value.field == "custom_prometheus"


def test_the_host_allows_a_host_or_a_host_and_port():
    assert checked_endpoint("http://10.0.0.1:9100/", ("10.0.0.1",)).host == "10.0.0.1"
    assert checked_endpoint("http://10.0.0.1:9100/", ("10.0.0.1:9100",)).port == 9100
    assert checked_endpoint("http://[fd00::1]:9100/", ("[fd00::1]:9100",)).host == "fd00::1"
    with pytest.raises(ConfigError, match="is not on loopback"):
        checked_endpoint("http://10.0.0.1:9101/", ("10.0.0.1:9100",))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:9100",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http://user:pw@127.0.0.1/",
        "http://127.0.0.1/#x",
        "http://127.0.0.1/a b",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1/\r\nX: y",
        "http:///metrics",
    ],
)
def test_what_is_no_plain_url_is_refused(url):
    with pytest.raises(ConfigError):
        checked_endpoint(url, ())


# Scraping


class Handler(http.server.BaseHTTPRequestHandler):
    answer = (200, b"a 1\n", {})
    pause = 0.0

    def do_GET(self):
        status, body, headers = self.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for byte in (body[i : i + 1] for i in range(len(body))) if self.pause else [body]:
            try:
                self.wfile.write(byte)
            except OSError:
                return
            time.sleep(self.pause)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(status=200, body=b"a 1\n", headers=None, pause=0.0):
        handler = type("Once", (Handler,), {"answer": (status, body, headers or {}), "pause": pause})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return checked_endpoint(f"http://127.0.0.1:{server.server_address[1]}/metrics", ())

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@sockets
def test_an_official_clients_endpoint_is_scraped():
    registry = CollectorRegistry()
    Gauge("queue_depth", "Depth", ["queue"], registry=registry).labels("mail").set(7)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        (metric,) = scrape(checked_endpoint(f"http://localhost:{server.server_port}/metrics", ()), 5.0, ())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (metric.name, metric.points[0].value, metric.points[0].attributes) == ("queue_depth", 7.0, {"queue": "mail"})


@sockets
@pytest.mark.parametrize(
    ("served", "reason"),
    [
        ({"status": 404}, "answers with 404"),
        ({"status": 302, "headers": {"Location": "http://169.254.169.254/"}}, "answers with 302"),
        ({"body": b"<html>"}, "line 1: no metric name"),
        ({"body": b"\xff"}, "is not UTF-8"),
        ({"body": b"# \n" * 1_500_000}, "exposes more than 4194304 bytes"),
        ({"body": b"#" * 100, "pause": 0.1}, "did not answer within 0.5 s"),
    ],
)
def test_what_is_not_an_exposition_in_time_is_told(serve, served, reason):
    with pytest.raises(CollectorError, match=reason):
        scrape(serve(**served), 0.5 if served.get("pause") else 10.0, ())


@sockets
def test_where_nothing_listens_or_something_else_does_it_is_told(free_port):
    with pytest.raises(CollectorError, match="cannot be reached: Connection refused"):
        scrape(Endpoint("http", "127.0.0.1", free_port, "/"), 5.0, ())
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet():
            peer, _ = other.accept()
            with peer:
                peer.sendall(b"220 mail ready\r\n")

        threading.Thread(target=greet).start()
        with pytest.raises(CollectorError, match=r"does not speak HTTP|cannot be reached"):
            scrape(Endpoint("http", "127.0.0.1", other.getsockname()[1], "/"), 5.0, ())


@sockets
def test_a_server_that_accepts_and_says_nothing_or_no_tls_is_told(serve):
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(CollectorError, match=r"did not answer within 0\.3 s"):
        scrape(Endpoint("http", "127.0.0.1", silent.getsockname()[1], "/"), 0.3, ())
    plain = serve()
    with pytest.raises(CollectorError, match=r"TLS failed|cannot be reached"):
        scrape(Endpoint("https", plain.host, plain.port, "/"), 5.0, ())


# Limits


def gauge(name, *values):
    return Metric(name, "", Kind.GAUGE, [Point(float(n), {"n": str(n)}) for n in values])


class Desk:
    def __init__(self, series=10, size=1_000_000):
        self.payloads, self.events, self.results, self.now = [], [], [], 0.0
        self.intake = Intake(
            Limits(series, size),
            lambda signal, payload, items: self.payloads.append((signal, payload, items)),
            self.events.append,
            self.results.append,
            lambda: {"host.name": "h"},
            lambda: self.now,
        )


def test_metrics_reach_the_spool_under_the_host_with_the_name_of_their_source():
    desk = Desk()
    desk.intake.metrics("app", [gauge("depth", 1, 2)], 5)
    ((signal, payload, items),) = desk.payloads
    assert (signal, items) == ("metrics", 2)
    assert b"host.name" in payload
    assert b"irca.custom.source" in payload
    assert wire.blobs(payload)


def test_series_over_the_limit_are_lost_those_known_stay_and_an_event_tells_once():
    desk = Desk(series=3)
    for run in (1, 2):
        with pytest.raises(OverLimitError, match=r"2 series are over the limit of 3 \(custom_max_series\)") as caught:
            desk.intake.metrics("app", [gauge("depth", *(range(5) if run == 1 else reversed(range(5))))], 5)
        desk.intake.ran("app", 0.1, caught.value)
        assert desk.payloads[-1][2] == 3
        assert desk.payloads[-1][1].count(b"depth") == 1
    assert b"\x0a\x01n\x12\x03\x0a\x010" in desk.payloads[-1][1], "what was admitted first stays"
    (event,) = desk.events
    assert event.name == OVER_LIMIT_EVENT
    assert event.attributes == {
        "irca.custom.source": "app",
        "irca.custom.limit": "series",
        "irca.custom.limit.allowed": 3,
        "irca.custom.lost": 2,
    }
    assert not desk.results[-1].ok
    desk.intake.metrics("app", [gauge("depth", 1)], 6)
    desk.intake.ran("app", 0.1)
    assert desk.results[-1].ok
    desk.intake.metrics("other", [gauge("depth", 1, 2)], 6)
    with pytest.raises(OverLimitError):
        desk.intake.metrics("app", [gauge("depth", 1, 2)], 7)


def test_bytes_over_the_limit_are_lost_until_the_minute_has_room_again():
    desk = Desk(series=1000, size=2000)
    desk.intake.metrics("app", [gauge("depth", *range(20))], 5)
    with pytest.raises(OverLimitError, match=r"bytes were not taken; they are over the limit of 2000 \(custom_max_bytes\)"):
        desk.intake.metrics("app", [gauge("depth", *range(20))], 6)
    assert len(desk.payloads) == 1
    desk.now = 60.0
    desk.intake.metrics("app", [gauge("depth", *range(20))], 7)
    assert len(desk.payloads) == 2


def test_a_budget_that_keeps_counts_series_for_good():
    budget = Budget(Limits(2, 1), lambda: 0.0)
    assert budget.admitted("a", ["x"], keep=True) == (frozenset({"x"}), 0)
    assert budget.admitted("a", ["y", "z"], keep=True) == (frozenset({"x", "y"}), 1)
    assert budget.take(1)
    assert not budget.take(1)


# In a running agent


@pytest.fixture
def platform():
    made = FakePlatform()
    yield made
    made.down()


def depths(platform):
    return [key for key in platform.samples if key[1] == "queue_depth"]


@sockets
def test_an_endpoint_is_scraped_into_the_platform_and_one_that_fails_degrades_alone(platform, serve, tmp_path, free_port):
    endpoint = serve(body=b"queue_depth 4\n")
    config = options(
        tmp_path / "state",
        custom_prometheus={"app": f"{endpoint}/metrics", "gone": f"http://127.0.0.1:{free_port}/"},
        custom_interval=1,
    )
    agent = TrialAgent(platform.url, "agent_test_token", config)
    with running(agent):
        platform.wait(lambda: len(depths(platform)) >= 2)
        platform.wait(lambda: platform.values("test.value") != [])
        reasons = agent.runtime.status().reasons
    assert list(reasons) == ["collectors"]
    assert reasons["collectors"].startswith("custom/gone: ")
    (who, _name, labels, _at) = depths(platform)[0]
    assert ("host.name", "test-host") in who
    assert "app" in str(labels)


@sockets
def test_remote_configuration_adds_an_endpoint_and_is_refused_when_it_does_not_answer(platform, serve, tmp_path, free_port):
    desk = ConfigurationDesk(platform)
    with running(TrialAgent(platform.url, "agent_test_token", options(tmp_path / "state"))):
        desk.push(b"h1", {"custom_prometheus": {"app": f"{serve(body=b'queue_depth 4')}/metrics"}})
        desk.wait(b"h1", APPLIED)
        assert depths(platform) or platform.wait(lambda: depths(platform)) is None
        desk.push(b"h2", {"custom_prometheus": {"app": f"http://127.0.0.1:{free_port}/"}})
        assert "custom/app: http://127.0.0.1" in desk.wait(b"h2", FAILED)


@sockets
def test_remote_configuration_selects_a_declared_command_and_never_brings_one(platform, tmp_path, monkeypatch):
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    path, witness = folder / "commands.json", tmp_path / "witness"
    path.write_text(json.dumps({"commands": [{"name": "queue", "command": ["/bin/echo", "queue_depth 4"]}]}))
    monkeypatch.setenv("AGENT_CUSTOM_COMMANDS_FILE", str(path))
    desk = ConfigurationDesk(platform)
    with running(TrialAgent(platform.url, "agent_test_token", options(tmp_path / "state"))):
        for number, values in enumerate(
            (
                {"custom_commands": [{"name": "x", "command": ["/usr/bin/touch", str(witness)]}]},
                {"custom_exec": [{"name": "x", "command": ["/usr/bin/touch", str(witness)]}]},
                {"custom_commands": [f"/usr/bin/touch {witness}"]},
                {"custom_commands": ["queue", "undeclared"]},
            )
        ):
            digest = f"bad{number}".encode()
            desk.push(digest, values)
            desk.wait(digest, FAILED)
        desk.push(b"good", {"custom_commands": ["queue"]})
        desk.wait(b"good", APPLIED)
        platform.wait(lambda: depths(platform) != [])
    assert not witness.exists()


def test_an_agent_without_custom_metrics_has_no_sources():
    assert make_sources(AgentConfig()) == []
