from __future__ import annotations

import html
import json
import re
import time
import urllib.parse
import uuid
from collections import Counter
from datetime import UTC, datetime

import pytest
from console_client import BEARER, console, sign_in, statements, text_of
from explored_platform import EVENTS, server_series, write_events, write_samples
from opamp_client import OpampAgent

from app.errors import StorageError
from app.events.views import EventView
from app.telemetry.store import MetricMetadata
from app.web.explore import SPANS, Asked, Metric, Scope, around, expression, grouping, plan, span_between
from app.web.explore_chart import Track, axis_of, change, drawing, marks, top, with_figures
from app.web.explore_chart import text_of as writer_of
from app.web.explore_metrics import describe, group_of, grouped

NOW = 1_800_000_000.0
CPU = Metric("system.cpu.utilization", "1", "gauge")
DISK = Metric("system.disk.io", "By", "counter", "bytes", ("system.device", "disk.io.direction"))
HERE = Scope("instance", "i-1")


class Explored:
    """A platform with two servers in prod and one in team-a; the first has samples of two hours and events."""

    def __init__(self, client) -> None:
        self.client = client
        self.platform = client.app.state.platform
        self.ids, self.agents = {}, {}
        for host, environment in (("web-1", "prod"), ("web-2", "prod"), ("team-1", "team-a")):
            if environment not in self.agents:
                body = {"agent_type": "server", "environment_name": environment, "token_max_uses": 3}
                given = client.post("/api/v1/agent/provision", json=body, headers=BEARER).json()
                self.agents[environment] = given["agent_id"]
            agent = OpampAgent(host=host, fingerprint=f"machine of {host}")
            headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {given['agent_token']}"}
            answer = client.post("/v1/opamp", content=agent.beat(full=True, healthy=True), headers=headers)
            assert answer.status_code == 200, answer.text
            agent.read(answer.content)
            self.ids[host] = str(agent.uid)
        now = time.time()
        for host in ("web-1", "web-2"):
            self.samples(host, now - 7200, now)
        self.samples("team-1", now - 26 * 3600, now - 25 * 3600)
        self.call(write_events, self.platform, self.ids["web-1"], self.agents["prod"], "prod", EVENTS)

    def call(self, function, *arguments):
        return self.client.portal.call(function, *arguments)

    def samples(self, host, start, end, devices=2) -> None:
        environment = "team-a" if host == "team-1" else "prod"
        series = server_series(self.ids[host], self.agents[environment], environment, host, devices)
        self.call(write_samples, self.platform, series, start, end)

    def url(self, host="web-1", *pairs, **single) -> str:
        return "/explore?" + urllib.parse.urlencode([("scope", f"instance:{self.ids[host]}"), *pairs, *single.items()])

    def page(self, host="web-1", *pairs, **single) -> str:
        answer = self.client.get(self.url(host, *pairs, **single))
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    with console(tmp_path_factory.mktemp("explorer")) as client:
        made = Explored(client)
        sign_in(client)
        yield made


def plots(page: str) -> list[dict]:
    return [json.loads(html.unescape(found)) for found in re.findall(r'data-plot="([^"]*)"', page)]


def error_at(page: str, name: str) -> str:
    found = re.search(rf'id="error-{name}">([^<]*)<', page)
    return html.unescape(found[1]) if found else ""


def test_an_instances_metric_is_drawn_as_svg_and_listed_in_a_table(explored):
    page = explored.page(metric="system.cpu.utilization")
    [plot] = plots(page)
    assert {line["label"] for line in plot["lines"]} == {"user", "system", "idle"}
    assert plot["unit"] == "ratio"
    assert page.count('class="line series-') == 3
    text = text_of(page)
    assert "Last Min Avg Max" in text
    assert "rate(" not in text
    assert f'avg by (cpu_mode) (system_cpu_utilization_ratio{{instance="{explored.ids["web-1"]}"}})' in text
    assert "Share of each mode since the round before" in text
    assert "/prometheus/api/v1/query_range?query=" in page


def test_counters_are_shown_as_rates_and_long_ranges_do_not_miss_what_lies_between_points(explored):
    page = explored.page(metric="system.disk.io")
    assert "sum by (disk_io_direction) (rate(system_disk_io_bytes_total{" in text_of(page)
    assert {line["label"] for line in plots(page)[0]["lines"]} == {"read", "write"}
    assert "avg_over_time(queue_depth{" in text_of(explored.page(metric="queue.depth", range="24h"))
    assert "max_over_time(queue_depth{" in text_of(explored.page(metric="queue.depth", range="24h", agg="max"))


def test_lines_can_be_grouped_filtered_and_aggregated_by_the_url(explored):
    by_device = explored.page(metric="system.disk.io", by="system.device")
    assert [line["label"] for line in plots(by_device)[0]["lines"]] == ["sd1", "sd0"], "the greatest first"
    one = explored.page(
        "web-1", ("metric", "system.disk.io"), ("by", "none"), ("where", "disk.io.direction=read"), ("where", "system.device!~sd1")
    )
    assert len(plots(one)[0]["lines"]) == 1
    assert 'disk_io_direction="read",system_device!~"sd1"' in text_of(one)
    assert "Remove the condition disk.io.direction=read" in one


def test_more_than_ten_lines_are_cut_to_the_greatest_and_the_others_counted(explored):
    explored.samples("web-2", time.time() - 600, time.time(), devices=14)
    page = explored.page("web-2", metric="system.disk.io", by="system.device", range="15m")
    assert len(plots(page)[0]["lines"]) == 10
    assert plots(page)[0]["lines"][0]["label"] == "sd13"
    assert "4 others are not shown" in text_of(page)


def test_a_whole_agent_and_a_whole_environment_have_a_line_for_each_instance(explored):
    for scope in (f"agent:{explored.agents['prod']}", "environment:prod"):
        page = explored.client.get("/explore", params={"scope": scope, "metric": "queue.depth"}).text
        assert {line["label"] for line in plots(page)[0]["lines"]} == {"web-1", "web-2"}
    assert 'environment="prod"' in text_of(page)
    assert "openssl was upgraded" in page


def test_the_previous_period_is_laid_beneath_and_compared(explored):
    page = explored.page(metric="queue.depth", range="1h", compare="previous")
    [line] = plots(page)[0]["lines"]
    assert sum(value is not None for value in line["before"]) > 200
    assert page.count("is-before") == 1
    assert "Avg before Change" in text_of(page)


def test_another_instance_is_compared_by_the_labels_of_the_lines(explored):
    page = explored.page(metric="system.memory.usage", compare=f"instance:{explored.ids['web-2']}")
    assert all(line["before"] for line in plots(page)[0]["lines"])
    assert "Avg there" in text_of(page)
    refused = explored.client.get(
        "/explore", params={"scope": "environment:prod", "metric": "queue.depth", "compare": f"instance:{explored.ids['web-2']}"}
    )
    assert "only an instance" in error_at(refused.text, "compare")


def test_events_of_the_range_stand_beside_and_as_marks_and_lead_to_their_pages(explored):
    page = explored.page(metric="queue.depth", range="1h")
    text = text_of(page)
    assert "openssl was upgraded" in text
    assert "htop was installed" not in text, "that was before the range"
    assert "exit code &lt;1&gt;" in page
    told = json.loads(html.unescape(re.search(r'data-marks="([^"]*)"', page)[1]))
    assert told[0]["severity"] == "error"
    assert sum(one["count"] for one in told) == page.count('<li class="event')
    assert "and 1 more" in " ".join(one["title"] for one in told)
    link = html.unescape(re.search(r'href="(/events/[^"]+)">openssl', page)[1])
    with statements(explored.client) as made:
        event = explored.client.get(link)
    assert len(made) == 2, "the session's, and the event's"
    assert event.status_code == 200
    assert "irca.package.name" in event.text
    assert "Metrics around it" in event.text
    around_it = html.unescape(re.search(r'class="button" href="(/explore[^"]+)"', event.text)[1])
    assert "What there is in this range" in explored.client.get(around_it).text
    warned = text_of(explored.page(metric="queue.depth", range="1h", severity="error"))
    assert "nightly-backup.service failed" in warned
    assert "openssl was upgraded" not in warned
    assert "What happened" not in text_of(explored.page(metric="queue.depth", severity="none"))


def test_without_a_metric_the_page_tells_what_there_is(explored):
    text = text_of(explored.page())
    for expected in (
        "What there is in this range",
        "Host",
        "system.memory.usage",
        "memory by use",
        "Agent",
        "irca.agent.spool.size",
        "Custom",
        "queue.depth",
    ):
        assert expected in text
    assert "Choose where to look" in text_of(explored.client.get("/explore").text)
    assert f"instance:{explored.ids['web-1']}" in explored.client.get("/explore", params={"find": "prod"}).text
    assert "Nothing of that name" in text_of(explored.client.get("/explore", params={"find": "zzz"}).text)


def test_an_empty_range_says_when_the_last_sample_was_and_leads_there(explored):
    page = explored.page("team-1", metric="queue.depth", range="1h")
    assert "No samples in this range; the last sample was 1 d ago" in text_of(page)
    there = html.unescape(re.search(r'href="([^"]+)">Show the range around it', page)[1])
    assert len(plots(explored.client.get(there).text)) == 1
    assert "nor in the month before it" in text_of(
        explored.page("team-1", metric="queue.depth", **{"from": "2020-01-01", "to": "2020-01-02"})
    )


@pytest.mark.parametrize(
    ("pairs", "field", "said"),
    [
        ([("metric", "no.such.metric")], "metric", "there is no metric no.such.metric"),
        ([("metric", f"m{n}") for n in range(9)], "metric", "m0"),
        ([("from", "2026-02-01"), ("to", "2026-01-01")], "from", "before the end"),
        ([("from", "yesterday")], "from", "must be a time such as"),
        ([("to", "9999-01-01")], "to", "must be a time such as"),
        ([("from", "2099-01-01"), ("to", "2099-01-02")], "from", "future"),
        ([("range", "3y")], "range", "must be one of"),
        ([("where", "cpu.mode")], "where", "is no condition"),
        ([("where", "cpu.mode=~(")], "where", "is no condition"),
        ([("where", "colour=red")], "where", "no series here has the attribute colour"),
        ([("by", "colour")], "by", "no series here has the attribute colour"),
        ([("agg", "median")], "agg", "must be one of"),
        ([("severity", "loud")], "severity", "must be"),
        ([("compare", "tomorrow")], "compare", "must be an instance"),
        ([("compare", "instance:nobody")], "compare", "there is no instance nobody"),
    ],
)
def test_bad_input_is_an_error_at_its_field_and_the_page_stays_useful(explored, pairs, field, said):
    page = explored.page("web-1", ("metric", "queue.depth"), *pairs)
    assert said in error_at(page, field)
    assert len(plots(page)) == 1


def test_a_place_that_is_not_there_is_an_error_at_its_field(explored):
    for scope in ("nonsense", "instance:nobody", "agent:nobody", "environment:nowhere"):
        page = explored.client.get("/explore", params={"scope": scope}).text
        assert error_at(page, "scope")
        assert "Choose where to look" in page


def test_too_many_samples_are_refused_at_the_range(explored, monkeypatch):
    monkeypatch.setattr("app.web.explore_routes.MAX_SAMPLES", 100)
    page = explored.page(metric="system.cpu.utilization")
    assert "too many samples" in error_at(page, "range")
    assert "more than 100 samples" in page


def test_a_store_in_trouble_is_told_and_the_events_stay(explored, monkeypatch):
    async def broken(*_arguments, **_options):
        raise StorageError("the disk is full")

    monkeypatch.setattr(explored.platform.metrics, "select", broken)
    assert "the disk is full" in explored.page(metric="queue.depth")
    monkeypatch.setattr(explored.platform.metrics, "metadata", broken)
    page = explored.page(metric="queue.depth")
    assert "The metrics cannot be read now: the disk is full" in page
    assert "openssl was upgraded" in page


def test_texts_from_the_url_cannot_leave_the_query_or_the_page(explored):
    nasty = 'cpu.mode=a"} or vector(1) or x{a="<script>'
    page = explored.page("web-1", ("metric", "system.cpu.utilization"), ("where", nasty), ("find", "<script>"))
    assert "<script>" not in page
    assert plots(page) == []
    assert 'cpu_mode="a\\"} or vector(1)' in html.unescape(page)


def test_the_number_of_statements_and_of_store_reads_does_not_grow_with_lines_or_events(explored, monkeypatch):
    counts: Counter[str] = Counter()
    store = explored.platform.metrics
    for name in ("select", "metadata", "label_names", "label_values", "series"):
        real = getattr(store, name)

        def counted(*arguments, _real=real, _name=name, **options):
            counts[_name] += 1
            return _real(*arguments, **options)

        monkeypatch.setattr(store, name, counted)

    def made(host):
        explored.page(host, metric="system.disk.io", by="system.device")  # the catalogue of names is kept for some seconds
        counts.clear()
        with statements(explored.client) as selects:
            explored.page(host, ("metric", "system.disk.io"), ("metric", "queue.depth"), by="system.device", compare="previous")
        return len(selects), sum(counts.values())

    few = made("web-1")
    explored.samples("web-2", time.time() - 900, time.time(), devices=40)
    explored.call(
        write_events,
        explored.platform,
        explored.ids["web-2"],
        explored.agents["prod"],
        "prod",
        [(1.0 + n / 9, 9, "irca.x", "x") for n in range(300)],
    )
    assert made("web-2") == few
    assert few[0] == 2
    assert few[1] <= 10


def test_limited_keys_see_the_instances_of_their_environments_only(explored):
    client = explored.client
    try:
        sign_in(client, "viewer", ("team-*",))
        page = explored.page("web-1", metric="queue.depth")
        assert "there is no instance" in error_at(page, "scope")
        assert plots(page) == []
        assert "prod" not in text_of(page)
        for scope in (f"agent:{explored.agents['prod']}", "environment:prod"):
            assert error_at(client.get("/explore", params={"scope": scope, "metric": "queue.depth"}).text, "scope")
        mine = explored.page("team-1", metric="queue.depth", range="30d", compare=f"instance:{explored.ids['web-1']}")
        assert "there is no instance" in error_at(mine, "compare")
        assert len(plots(mine)) == 1
        assert "/prometheus/" not in mine, "that API is closed to them"
        event = next(e for e in client.get("/api/v1/events", headers=BEARER).json()["items"] if e["environment_name"] == "prod")
        assert client.get(f"/events/{event['id']}").status_code == 404
        assert client.get(f"/instances/{explored.ids['web-1']}/events").status_code == 404
        assert client.get(f"/instances/{explored.ids['team-1']}/events").status_code == 200
    finally:
        sign_in(client)


def test_the_instances_page_leads_to_the_explorer_and_to_all_events_of_its_life(explored):
    page = explored.client.get(f"/instances/{explored.ids['web-1']}?range=1h").text
    links = [html.unescape(found) for found in re.findall(r'class="explore-link" href="([^"]+)"', page)]
    assert len(links) == 6
    cpu = explored.client.get(links[0]).text
    assert {line["label"] for line in plots(cpu)[0]["lines"]} == {"user", "system"}, "idle is not on the chart either"
    assert f"/instances/{explored.ids['web-1']}/events" in page


def test_events_of_an_instances_life_are_filtered_by_type_severity_and_time(explored):
    base = f"/instances/{explored.ids['web-1']}/events"

    def shown(**filters):
        return text_of(explored.client.get(base, params=filters).text)

    assert "htop was installed" in shown()
    assert "htop was installed" not in shown(range="1h")
    errors = shown(severity="error")
    assert "nightly-backup.service failed" in errors
    assert "openssl was upgraded" not in errors
    assert "openssl was upgraded" in shown(name="irca.host.package.upgraded")
    assert "No event meets these filters" in shown(name="irca.nothing")
    assert "cursor is not valid" in shown(cursor="zzz")
    explored.call(
        write_events,
        explored.platform,
        explored.ids["team-1"],
        explored.agents["team-a"],
        "team-a",
        [(n, 9, "irca.x", f"thing {n}") for n in range(60)],
    )
    first = explored.client.get(f"/instances/{explored.ids['team-1']}/events", params={"name": "irca.x"}).text
    older = html.unescape(re.search(r'href="(\?[^"]+)">Older', first)[1])
    assert "thing 59" in explored.client.get(f"/instances/{explored.ids['team-1']}/events{older}").text
    assert explored.client.get("/events/nothing").status_code == 404


def test_the_state_survives_the_way_through_the_url():
    asked = Asked("instance:a", ("m", "n"), "6h", "", "", ("x",), ("a=b",), "max", PREVIOUS_TEXT, "warn", "f")
    assert Asked.read(urllib.parse.parse_qsl(urllib.parse.urlsplit(asked.url).query)) == asked
    assert Asked.read([("instance", "a"), ("by", "x,y"), ("other", "z"), ("agg", " ")]) == Asked(scope="instance:a", by=("x", "y"))
    assert Asked().url == "/explore"


PREVIOUS_TEXT = "previous"


def test_ranges_are_on_whole_steps_with_a_bounded_number_of_points():
    for name, one in SPANS.items():
        planned = plan(Asked(range=name), NOW + 7.5)
        assert (planned.span.seconds, planned.span.step) == (one.seconds, one.step)
        assert planned.span.end % one.step == 0
    for seconds in (1, 59, 3600, 86_400 * 3, 86_400 * 400, 4e9):
        span = span_between(0.0, seconds)
        assert len(span.times) <= 262
        assert span.window >= 2 * span.step or span.window == 60
    entered = plan(Asked(start="2027-01-15T00:00:00+02:00", end="2027-01-15 06:00"), NOW)
    assert (entered.span.start, entered.chosen) == (datetime(2027, 1, 14, 22, tzinfo=UTC).timestamp(), "")
    assert plan(Asked(start="2027-01-15"), NOW).span.end <= NOW
    assert around(datetime(2026, 1, 1, 12, tzinfo=UTC)) == ("2026-01-01T11:30:00Z", "2026-01-01T12:30:00Z")


def test_promql_follows_the_kind_of_the_metric_and_the_step():
    hour, week = plan(Asked(range="1h"), NOW), plan(Asked(range="7d", aggregate="min"), NOW)
    assert expression(CPU, HERE, hour, ("cpu.mode",)) == 'avg by (cpu_mode) (system_cpu_utilization_ratio{instance="i-1"})'
    assert expression(CPU, HERE, week, ()) == 'min (min_over_time(system_cpu_utilization_ratio{instance="i-1"}[3600s]))'
    assert expression(DISK, HERE, hour, ()) == 'sum (rate(system_disk_io_bytes_total{instance="i-1"}[60s]))'
    count = Metric("http.duration_count", "s", "histogram")
    assert "rate(" in expression(count, HERE, hour, ())
    assert not Metric("http.duration", "s", "summary").rated


def test_grouping_is_chosen_by_the_chart_of_the_page_or_by_the_documentation():
    held = ["cpu.mode", "system.device", "disk.io.direction", "host.name", "container.name"]
    assert grouping(CPU, Asked(), HERE, held) == ("cpu.mode",)
    assert grouping(Metric("custom", "1", "gauge"), Asked(), HERE, ["host.name"]) == ()
    assert grouping(Metric("container.x", "1", "gauge", "", ("a",)), Asked(), HERE, [*held, "a"]) == ("container.name", "a")
    assert grouping(CPU, Asked(), Scope("agent", "a"), held) == ("instance",)
    assert grouping(CPU, Asked(by=("none",)), HERE, held) == ()
    assert Scope.read("planet:earth") is None


def test_axes_have_round_ticks_and_hold_zero():
    assert axis_of([0.0, 0.37], CPU).ticks == ("40 %", "30 %", "20 %", "10 %", "0 %")
    assert axis_of([3 * 2**30], Metric("m", "By", "gauge")).ticks == ("3 GiB", "2 GiB", "1 GiB", "0 B")
    assert axis_of([], CPU).high == 1.0
    below = axis_of([-3.0, 5.0], Metric("m", "", "gauge"))
    assert below.low <= -3
    assert below.high >= 5
    assert writer_of(Metric("m", "s", "counter"))(2.0) == "2 s/s"


def test_gaps_are_gaps_and_a_single_sample_is_a_dot():
    [line] = with_figures([Track("a", (1.0, 1.0, None, 2.0, None))], None, str)
    [(place, dashed, path)] = drawing([line], Metric("m", "", "gauge")).paths
    assert (place, dashed) == (1, False)
    assert path.count("M") == 2
    assert path.endswith("h1")


def test_lines_are_ranked_and_compared():
    shown, others = top([Track(f"l{n}", (float(n), None)) for n in range(12)])
    assert ([shown[0].label, shown[-1].label], others) == (["l11", "l2"], 2)
    [line, without] = with_figures([Track("a", (2.0,)), Track("b", (1.0,))], [Track("a", (1.0,))], str)
    assert (line.change, without.average_before) == ("+100 %", "\N{EN DASH}")
    assert [change(*pair) for pair in ((0, 0), (0, 1), (1, 20), (2, 1), (1, 1.001), (1, 0.999))] == [
        "±0 %",
        "new",
        "20 times",
        "\u221250 %",
        "±0 %",
        "±0 %",
    ]


def test_marks_that_would_lie_on_one_another_are_one_with_the_worst_severity():
    def event(second, severity, body=""):
        nothing = {"attributes": {}, "resource": {}, "agent_id": None, "instance_id": None, "agent_type": None, "environment_name": None}
        return EventView(id=str(uuid.uuid4()), name="n", time=datetime.fromtimestamp(second, UTC), severity=severity, body=body, **nothing)

    span = span_between(0, 3600)
    found = marks([event(3000, "info"), event(11, "error", "bad"), event(10, "info", "fine")], span)
    assert [(one.count, one.severity, one.number, one.title) for one in found] == [(2, "error", 2, "bad and 1 more"), (1, "info", 1, "n")]
    assert 0 < found[0].x < found[1].x < 1000


def test_metrics_are_grouped_by_what_they_measure():
    names = {
        "system.cpu.time": "Host",
        "irca.engine.info": "Container",
        "irca.k8s.x": "Kubernetes",
        "irca.agent.spool.size": "Agent",
        "my.thing": "Custom",
    }
    assert {name: group_of(name) for name in names} == names
    known = describe([MetricMetadata(name, "1", "gauge") for name in names])
    assert [group.title for group in grouped([*names, "unknown"], known)] == ["Host", "Container", "Kubernetes", "Agent", "Custom"]
    assert known["system.cpu.time"].meaning == "CPU time"
