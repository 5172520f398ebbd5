from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import promql_parser
import pytest
from starlette.testclient import TestClient

from app.auth.service import SESSION_COOKIE, Role
from app.fleet.listing import Sort
from app.fleet.views import Status
from app.telemetry.promql.names import prometheus_name
from app.web import formats
from app.web.agents_routes import STATUS_ORDER
from app.web.charts import CHARTS, DEFAULT_RANGE, RANGES, Condition, queries
from app.web.latest import charts_for, latest_rows, legend, read_latest
from app.web.rendering import SECURITY_HEADERS, local_path
from connectors.agent_factory import AgentFactory
from tests.page_platform import KEY, FakeMetrics, PagePlatform, identifier, make_agents, make_app

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PAGES = ("/agents", f"/agents/{identifier('agent prod-web')}", f"/instances/{identifier('web-1')}")


@pytest.fixture
def platform(tmp_path: Path) -> PagePlatform:
    return PagePlatform(tmp_path)


@pytest.fixture
def visitor(platform: PagePlatform) -> Iterator[TestClient]:
    with TestClient(make_app(platform), follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def viewer(visitor: TestClient) -> TestClient:
    answer = visitor.post("/sign-in", data={"api_key": f" {KEY} "})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return visitor


def _text(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.mark.parametrize("path", PAGES)
def test_a_page_sends_whoever_is_not_signed_in_to_sign_in_and_back(visitor, path):
    answer = visitor.get(path + "?range=1h")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/sign-in?next=%2F")
    visitor.cookies.set(SESSION_COOKIE, "made-up")
    assert visitor.get(path).status_code == 303


def test_a_refresh_without_session_tells_the_page_where_to_go(visitor):
    answer = visitor.get("/agents?status=offline", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/sign-in?next=%2Fagents%3Fstatus%3Doffline")


def test_signing_in_sets_a_cookie_that_scripts_and_other_sites_cannot_use(visitor):
    assert visitor.get("/sign-in?next=/agents/x").status_code == 200
    answer = visitor.post("/sign-in", data={"api_key": KEY, "next": "/agents/x?a=b"})
    cookie = answer.headers["set-cookie"]
    assert answer.headers["location"] == "/agents/x?a=b"
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    assert "secure" not in cookie.lower()
    assert visitor.get("/").status_code == 200
    assert visitor.get("/sign-in?next=/agents/x").headers["location"] == "/agents/x"


def test_behind_https_the_cookie_is_secure(tmp_path):
    platform = PagePlatform(tmp_path)
    with TestClient(make_app(platform), base_url="https://testserver", follow_redirects=False) as client:
        assert "secure" in client.post("/sign-in", data={"api_key": KEY}).headers["set-cookie"].lower()


def test_a_wrong_key_is_refused_with_the_reason_and_without_a_session(visitor):
    answer = visitor.post("/sign-in", data={"api_key": "irca_nonsense", "next": "/agents/x"})
    assert answer.status_code == 401
    assert "This API key is not known to the platform." in _text(answer.text)
    assert 'value="/agents/x"' in answer.text
    assert "irca_nonsense" not in answer.text
    assert "set-cookie" not in answer.headers


def test_signing_out_ends_the_session_on_the_platform_too(viewer):
    token = viewer.cookies[SESSION_COOKIE]
    assert viewer.post("/sign-out").headers["location"] == "/sign-in"
    viewer.cookies.set(SESSION_COOKIE, token)
    assert viewer.get("/").status_code == 303
    viewer.cookies.clear()
    assert viewer.post("/sign-out").status_code == 303


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"}],
    ids=lambda h: next(iter(h.values())),
)
@pytest.mark.parametrize("path", ["/sign-in", "/sign-out"])
def test_a_form_sent_by_another_site_is_refused(viewer, path, headers):
    answer = viewer.post(path, data={"api_key": KEY}, headers=headers)
    assert answer.status_code == 403
    assert "another site" in answer.text
    assert viewer.get("/").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://testserver"}, {"Origin": "http://localhost:8000"}],
    ids=lambda h: next(iter(h.values())),
)
def test_a_form_of_our_own_page_is_taken_under_either_of_our_names(visitor, headers):
    assert visitor.post("/sign-in", data={"api_key": KEY}, headers=headers).status_code == 303


def test_a_form_larger_than_any_of_ours_is_refused(visitor):
    assert visitor.post("/sign-in", data={"api_key": "x" * 20_000}).status_code == 413


@pytest.mark.parametrize(
    "target", [None, "", "https://evil.example", "//evil.example", "/\\evil.example", "/a\r\nb", "javascript:alert(1)"]
)
def test_nobody_is_sent_to_another_site_after_signing_in(target):
    assert local_path(target) == "/"


@pytest.mark.parametrize("path", [*PAGES, "/sign-in", "/agents/none", "/instances/none"])
def test_every_page_carries_the_security_headers_and_no_inline_script_or_style(viewer, visitor, path):
    viewer.cookies.clear()
    for answer in (visitor.get(path), viewer.post("/sign-in", data={"api_key": KEY}), viewer.get(path)):
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:|hx-on", answer.text)
        assert not re.search(r"""(?:src|href|action)=["'](?:https?:)?//""", answer.text)


def test_the_static_files_of_a_page_are_there(viewer):
    page = viewer.get(PAGES[2]).text
    names = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert len(names) == 8
    for name in names:
        if "/vendor/" not in name:  # those are fetched by `make install`
            assert viewer.get(name).status_code == 200, name
        assert "?v=" in name


def test_the_fleet_shows_every_agent_with_status_reason_version_and_exact_times(viewer, platform):
    page = viewer.get("/agents").text
    text = _text(page)
    assert "10 all" in text
    assert "2 degraded" in text
    for agent in platform.fleet.agents:
        assert f'href="/agents/{agent.id}"' in page
        assert agent.status_reason in text
        if agent.last_seen_at:
            assert f'datetime="{formats.instant(agent.last_seen_at)}"' in page
    assert "3 instances (1 not healthy)" in text
    assert f'href="/instances/{identifier("web-1")}"' in page
    assert "team=payments" in text


UNORDERED = {"version": None, "labels": (), "sort": Sort.STATUS, "descending": False}


def test_filters_are_deep_links_that_reach_the_fleet_service(viewer, platform):
    page = viewer.get("/agents?status=degraded&agent_type=docker&environment_name=staging-docker&search=staging")
    assert platform.fleet.calls[-1] == {
        "cursor": None,
        "limit": 50,
        "status": Status.DEGRADED,
        "agent_type": "docker",
        "environment_name": "staging-docker",
        "search": "staging",
        **UNORDERED,
    }
    assert page.text.count('<tr id="agent-') == 1
    assert '<option value="docker" selected>' in page.text
    assert 'name="search" value="staging"' in page.text
    assert "/agents?agent_type=docker&amp;environment_name=staging-docker&amp;search=staging&amp;status=offline" in page.text


def test_an_unknown_status_and_blank_filters_filter_nothing(viewer, platform):
    assert viewer.get("/agents?status=bogus&agent_type=+&search=").status_code == 200
    assert platform.fleet.calls[-1] == {
        "cursor": None,
        "limit": 50,
        "status": None,
        "agent_type": None,
        "environment_name": None,
        "search": None,
        **UNORDERED,
    }


def test_a_filter_that_nothing_meets_says_so_and_leads_back(viewer):
    page = viewer.get("/agents?search=nowhere").text
    assert "No agent matches" in page
    assert "Show all 10 agents" in page


def test_what_a_person_typed_is_shown_as_text(viewer):
    page = viewer.get("/agents", params={"search": '"><script>alert(1)</script>'}).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_an_empty_fleet_shows_how_to_connect_the_first_environment(tmp_path):
    with TestClient(make_app(PagePlatform(tmp_path, agents=[]))) as client:
        page = html.unescape(client.post("/sign-in", data={"api_key": KEY}).text)
    assert "incident-rca provision --type server --environment my-host" in page
    assert "curl -X POST http://localhost:8000/api/v1/agent/provision" in page
    for name in AgentFactory.supported_types():
        assert f"<code>{name}</code>" in page


def test_a_long_fleet_is_shown_page_by_page(tmp_path):
    platform = PagePlatform(tmp_path, agents=make_agents(NOW, count=120))
    with TestClient(make_app(platform)) as client:
        page, seen = client.post("/sign-in", data={"api_key": KEY, "next": "/agents?agent_type=server"}).text, []
        while True:
            seen += re.findall(r'<tr id="agent-([^"]+)"', page)
            following = re.search(r'href="([^"]+)" rel="next"', page)
            if not following:
                break
            assert "agent_type=server" in following[1]
            page = client.get(html.unescape(following[1])).text
    assert seen == [a.id for a in platform.fleet.agents]
    assert "First page" in page


def test_an_agent_shows_its_instances_problems_first_its_configuration_and_events(viewer):
    page = viewer.get(f"/agents/{identifier('agent prod-cluster')}").text
    text = _text(page)
    assert text.index("node-a") < text.index("node-b") < text.index("node-c")
    assert "Collector kubernetes.nodes failed" in text
    assert "collect_interval 10" in text
    assert "Nothing has happened here yet." in _text(viewer.get(f"/agents/{identifier('agent checkout')}").text)
    assert "web-1 made first contact." in _text(viewer.get(PAGES[1]).text)


def test_an_agent_without_instances_says_what_it_waits_for(viewer):
    assert "No instance has made contact yet" in viewer.get(f"/agents/{identifier('agent edge-berlin')}").text


def test_an_instance_shows_status_host_components_configuration_events_and_latest_values(viewer):
    text = _text(viewer.get(PAGES[2]).text)
    for wanted in (
        "web-1 healthy since 7 d ago",
        "Environment prod-web",
        "OS name Debian GNU/Linux",
        "cloud.region eu-west-1",
        'filesystem_exclude_mounts ["/proc", "/sys"]',
        "warn web-1 is degraded",
        "user 31 % system 8 %",
        "used 3.03 GiB",
        "receive 2 MiB/s",
        "/ 62 %",
        "1 min 1.25",
        "irca.system.load.1m",
    ):
        assert wanted in text


def test_a_component_that_fails_is_named_with_its_error(viewer):
    text = _text(viewer.get(f"/instances/{identifier('pay-db-1')}").text)
    assert "filesystem /mnt/backup: Permission denied" in text


def test_metrics_that_cannot_be_read_do_not_hide_the_rest(viewer, platform):
    platform.metrics.broken = True
    answer = viewer.get(PAGES[2])
    assert answer.status_code == 200
    assert "The metrics cannot be read now: the disk is full" in _text(answer.text)
    assert "Debian GNU/Linux" in answer.text


@pytest.mark.parametrize("path", ["/agents/none", "/instances/none"])
def test_what_does_not_exist_gets_a_page_that_says_so(viewer, path):
    answer = viewer.get(path)
    assert answer.status_code == 404
    assert "Not found" in answer.text
    assert "Back to the fleet" in answer.text


def test_a_fault_of_ours_gets_a_page_without_its_details(viewer, platform, monkeypatch):
    async def fail(**_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(platform.fleet, "list_agents", fail)
    answer = viewer.get("/agents")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert "Internal error" in answer.text
    assert answer.headers["content-security-policy"] == SECURITY_HEADERS["Content-Security-Policy"]


async def test_a_viewer_may_look_and_a_revoked_key_ends_the_session(tmp_path):
    platform = PagePlatform(tmp_path)
    await platform.open()
    row, text = await platform.auth.create_key("reader", Role.VIEWER)
    token, _ = await platform.auth.open_session(text)
    await platform.close()
    with TestClient(make_app(platform), cookies={SESSION_COOKIE: token}, follow_redirects=False) as client:
        assert "reader" in client.get("/").text
        client.portal.call(platform.auth.revoke_key, row.id)
        assert client.get("/").status_code == 303


def test_every_status_has_its_place_and_its_own_shape(viewer):
    assert set(STATUS_ORDER) == set(Status)
    page = viewer.get("/agents").text
    shapes = dict(re.findall(r'<span class="status is-(\w+)">(<svg.*?</svg>)', page, re.DOTALL))
    assert len(set(shapes.values())) == len(shapes) == 5


@pytest.mark.parametrize("span", RANGES.values(), ids=RANGES.keys())
@pytest.mark.parametrize("agent_type", AgentFactory.supported_types())
def test_every_agent_type_has_charts_whose_queries_are_promql_about_one_instance(agent_type, span):
    charts = charts_for(agent_type, [])
    assert charts == CHARTS[agent_type]
    assert len(charts) >= 4
    assert span.seconds / span.step <= 400
    assert span.window >= 2 * span.step
    for chart in charts:
        for query in queries(chart, 'a"b\\c', span.window):
            promql_parser.parse(query.promql)
            assert 'instance="a\\"b\\\\c"' in query.promql


def test_the_server_charts_ask_for_what_the_server_agent_sends():
    agent = AgentFactory.create_agent("server", "http://localhost:8000", "token")
    sent: set[tuple[str, str, str]] = set()
    for _ in range(50):  # a utilization needs the processors' clocks to have moved between two rounds
        sent |= {(m.name, m.unit, m.kind.value) for r in agent.collect_metrics().resources for m in r.metrics}
        if "system.cpu.utilization" in {name for name, _, _ in sent}:
            break
        time.sleep(0.1)
    asked = {(m.metric, m.unit, m.kind) for chart in CHARTS["server"] for m in chart.measures}
    assert {a for a in asked if a[0] in {s[0] for s in sent}} <= sent
    assert {"system.cpu.utilization", "system.memory.usage", "irca.system.load.1m", "system.network.io"} <= {s[0] for s in sent & asked}


def test_the_cpu_query_reads_as_prometheus_would_write_it():
    [query] = queries(CHARTS["server"][0], "i1", 60)
    assert query.promql == 'avg by (cpu_mode) (system_cpu_utilization_ratio{instance="i1",cpu_mode!~"idle|iowait"})'
    [network] = queries(next(c for c in CHARTS["server"] if c.title == "Network"), "i1", 60)
    assert network.promql == (
        'sum by (network_io_direction) (rate(system_network_io_bytes_total{instance="i1",network_interface_name!~"lo[0-9]*"}[60s]))'
    )


def test_a_range_in_the_url_chooses_step_and_queries_and_an_unknown_one_is_the_default(viewer):
    day = viewer.get(PAGES[2] + "?range=24h").text
    assert 'data-seconds="86400" data-step="300"' in day
    assert "[600s]" in day
    assert f'data-seconds="{DEFAULT_RANGE.seconds}"' in viewer.get(PAGES[2] + "?range=decade").text


def test_the_queries_in_the_page_are_json(viewer):
    found = re.findall(r'data-queries="([^"]*)"', viewer.get(PAGES[2]).text)
    assert len(found) == len(CHARTS["server"])
    for text in found:
        assert {"promql", "by", "label"} == set(json.loads(html.unescape(html.unescape(text)))[0])


async def test_a_type_without_charts_gets_them_from_what_it_sends_split_by_what_differs():
    series = await read_latest(FakeMetrics(), "i1", 1_800_000_000_000)
    charts = charts_for("mainframe", series)
    assert [c.title for c in charts][:2] == ["irca.system.load.1m", "system.cpu.utilization"]
    assert charts[1].measures[0].by == ("cpu.mode",)
    assert [line.label for line in legend(charts[1], series)] == ["idle", "user", "system"]
    assert {c.unit for c in charts} == {"number", "ratio", "bytes", "bytes/s"}
    assert charts_for("mainframe", []) == ()


async def test_latest_values_leave_out_what_the_page_says_anyway_and_count_the_rest():
    series = await read_latest(FakeMetrics(), "i1", 1_800_000_000_000)
    rows, left_out = latest_rows(series, {"host.name": "web-1"}, limit=3)
    assert left_out == 7
    assert (rows[0].metric, rows[0].attributes, rows[0].value) == ("irca.system.load.1m", "", "1.25 thread")
    assert rows[1].attributes == "cpu.mode=idle"


async def test_a_counter_that_starts_anew_does_not_make_a_negative_rate():
    store = FakeMetrics()
    [series] = [s for s in await read_latest(store, "i1", 1_800_000_000_000) if s.labels.get("network.interface.name") == "eth0"]
    series.values[:] = 0
    series.values[-2:] = 100, 50
    network = next(c for c in CHARTS["server"] if c.title == "Network")
    assert legend(network, [series])[0].value == "0.88 B/s"
    series.values[-1] = float("nan")
    assert legend(network, [series]) == []


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (Condition("a", "=", "x"), True),
        (Condition("a", "!=", "x"), False),
        (Condition("a", "=~", "x|y"), True),
        (Condition("a", "!~", "x"), False),
        (Condition("b", "=", ""), True),
        (Condition("a", "=~", "xx?y"), False),
    ],
)
def test_a_condition_means_what_it_means_in_promql(condition, holds):
    assert condition.holds({"a": "x"}) is holds


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.314, "ratio", "31.4 %"),
        (1, "ratio", "100 %"),
        (0, "bytes", "0 B"),
        (1536, "bytes", "1.5 KiB"),
        (-2048, "bytes", "-2 KiB"),
        (5 * 1024**6, "bytes", "5 120 PiB"),
        (2_411_724, "bytes/s", "2.3 MiB/s"),
        (12_345, "number", "12 345"),
        (12.34, "number", "12.3"),
        (0.5, "number", "0.5"),
        (float("nan"), "bytes", "-"),
    ],
)
def test_values_read_well(value, unit, text):
    assert formats.format_value(value, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "now"), (12, "12 s ago"), (200, "3 min ago"), (20_000, "5 h ago"), (200_000, "2 d ago"), (-30, "now")]
)
def test_times_read_well(seconds, text):
    assert formats.ago(NOW - timedelta(seconds=seconds), NOW) == text
    assert formats.ago(None, NOW) == "never"
    assert formats.instant(NOW) == "2026-03-01T12:00:00.000Z"
    assert formats.exact(NOW) == "2026-03-01 12:00:00 UTC"


def test_otel_units_become_words():
    assert formats.format_otel(2048, "By") == "2 KiB"
    assert formats.format_otel(3, "{pod}") == "3 pod"
    assert formats.format_otel(0.25, "1") == "0.25"
    assert prometheus_name("irca.system.load.1m", "{thread}", "gauge") == "irca_system_load_1m"
