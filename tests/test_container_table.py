from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import promql_parser
import pytest
from starlette.testclient import TestClient

from app.errors import InvalidRequestError
from app.events import service as event_service
from app.events.records import EventRecord
from app.fleet.views import Status
from app.telemetry.containers import (
    ContainerFilter,
    Containers,
    ContainerSort,
    ContainerState,
    ContainerView,
    SortOrder,
    listed,
    page_of,
)
from app.web.charts import DEFAULT_RANGE, container_charts, queries
from app.web.containers import spark_path
from tests.page_containers import Made, container_id, sixty
from tests.page_platform import KEY, PagePlatform, identifier, make_app


def _event(number: int, **fields) -> EventRecord:
    return EventRecord(
        **{"id": f"e{number:03}", "name": "container.die", "time_unix_nano": number * 1_000_000_000, "instance_id": "i", **fields}
    )


async def _ids(parts, cursor=None, limit=50, **filters) -> tuple[list[str], str | None]:
    page = await parts.events.list_events(cursor, limit, **filters)
    return [e.id for e in page.items], page.next_cursor


async def test_events_are_found_by_the_container_that_their_resource_or_attributes_name(parts):
    await parts.events.record(
        [
            _event(1, resource={"container.id": "c1", "container.name": "web"}),
            _event(2, attributes={"container.id": "c1"}),
            _event(3, resource={"container.id": "c2", "container.name": "web"}),
            _event(4, resource={"container.id": "c1"}, instance_id="other"),
            _event(5),
            _event(6, resource={"container.id": ["c1"], "container": {"id": "c1"}}),
        ]
    )
    assert (await _ids(parts, container_id="c1"))[0] == ["e004", "e002", "e001"]
    assert (await _ids(parts, container_id="c1", instance_id="i"))[0] == ["e002", "e001"]
    assert (await _ids(parts, container_id="c1", container_name="web", instance_id="i"))[0] == ["e003", "e002", "e001"]
    assert (await _ids(parts, container_id='c1"')) == ([], None)


async def test_a_page_looks_through_a_bounded_number_of_events_for_a_container_and_the_next_goes_on_from_there(parts, monkeypatch):
    monkeypatch.setattr(event_service, "CONTAINER_SCAN", 10)
    await parts.events.record([_event(n, resource={"container.id": "c1" if n % 8 == 0 else "c2"}) for n in range(32)])
    pages, cursor = [], None
    while True:
        found, cursor = await _ids(parts, cursor, 1, container_id="c1", instance_id="i")
        pages.append(found)
        if cursor is None:
            break
    assert [one for page in pages for one in page] == ["e024", "e016", "e008", "e000"]
    assert len(pages) < 8


DOCKER = identifier("staging-1")
PAGE = f"/instances/{DOCKER}"
HTMX = {"HX-Request": "true"}


@pytest.fixture
async def platform(tmp_path: Path):
    made = PagePlatform(tmp_path)
    await made.open()
    yield made
    await made.close()


async def _read(platform: PagePlatform, *made: Made, **told) -> Containers:
    platform.metrics.containers = list(made)
    return await platform.containers.read(DOCKER, **{"last_seen_at": datetime.now(UTC), "interval": 10, **told})


def _names(containers) -> list[str]:
    return [one.name for one in containers]


def _before(seconds: float) -> float:
    return (time.time() - seconds) * 1000


async def test_a_container_is_shown_as_its_agent_last_measured_it(platform):
    made = Made("api", "registry.example.com/api", health="healthy", cpu=0.5, memory=100, limit=200, restarts=3)
    [one] = (await _read(platform, made)).items
    assert (one.id, one.name, one.image_name, one.state, one.health) == (
        container_id("api"),
        "api",
        "registry.example.com/api",
        "running",
        "healthy",
    )
    assert 0.1 < one.cpu_usage < 1
    assert one.memory_limit == 200 * 1024**2
    assert one.memory_working_set < one.memory_usage < one.memory_limit
    assert (one.restart_count, one.recent_restarts, one.problem, one.exit_code) == (3, 0, "", None)
    assert one.uptime_seconds > 0
    assert one.process_count == 12


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (Made("a", state="exited", exit_code=0), ""),
        (Made("a", state="exited", exit_code=3), "exit code 3"),
        (Made("a", state="dead"), "could not be removed"),
        (Made("a", state="restarting"), "restarting"),
        (Made("a", health="unhealthy"), "health check fails"),
        (Made("a", health="starting"), ""),
        (Made("a", state="created"), ""),
        (Made("a", state="paused"), ""),
    ],
    ids=lambda value: value.state if isinstance(value, Made) else value,
)
async def test_what_is_wrong_with_a_container_is_said(platform, made, problem):
    [one] = (await _read(platform, made)).items
    assert one.problem == problem


async def test_a_container_that_restarts_again_and_again_is_a_problem_even_while_it_runs(platform):
    [one] = (await _read(platform, Made("a", looping=True, health="unhealthy"))).items
    assert one.problem in ("health check fails, restarted 2 times in 15 min", "health check fails, restarted 3 times in 15 min")


async def test_running_out_of_memory_is_told_by_an_event_and_shown_at_the_container(platform):
    now = time.time_ns()
    await platform.events.record(
        [
            EventRecord(
                "o1", "irca.docker.container.oom", now - 60 * 10**9, resource={"container.id": container_id("a")}, instance_id=DOCKER
            ),
            EventRecord(
                "o2", "irca.docker.container.oom", now - 7200 * 10**9, attributes={"container.id": container_id("b")}, instance_id=DOCKER
            ),
            EventRecord(
                "o3", "irca.docker.container.oom", now - 7200 * 10**9, attributes={"container.id": container_id("c")}, instance_id=DOCKER
            ),
        ]
    )
    found = await _read(platform, Made("a"), Made("b", state="exited", exit_code=137), Made("c"))
    assert {one.name: one.problem for one in found.items} == {
        "a": "out of memory in the last 15 min",
        "b": "exit code 137, out of memory",
        "c": "",
    }


async def test_a_container_without_sample_for_three_intervals_is_gone_and_a_stopped_one_stays(platform):
    found = await _read(
        platform, Made("a"), Made("late", until_ms=_before(15)), Made("gone", until_ms=_before(45)), Made("b", state="exited")
    )
    assert sorted(_names(found.items)) == ["a", "b", "late"]
    assert "gone" in _names((await _read(platform, Made("a"), Made("gone", until_ms=_before(45)), interval=30.0)).items)
    assert "gone" not in _names((await _read(platform, Made("a"), Made("gone", until_ms=_before(45)), interval="often")).items)


async def test_what_an_agent_reported_before_it_fell_silent_stays(platform):
    made = [Made("a", until_ms=_before(4000)), Made("b", until_ms=_before(4000))]
    silent = await _read(platform, *made, last_seen_at=datetime.now(UTC) - timedelta(seconds=3990))
    assert sorted(_names(silent.items)) == ["a", "b"]
    assert datetime.now(UTC) - silent.newest > timedelta(hours=1)
    assert await _read(platform, *made) == Containers((), None)
    assert len((await _read(platform, Made("a"), last_seen_at=None)).items) == 1


async def test_a_renamed_container_is_listed_once_under_its_new_name_with_all_of_its_history(platform, monkeypatch):
    monkeypatch.setattr("tests.page_containers.container_id", lambda name: "c" * 64)
    found = await _read(platform, Made("old", until_ms=_before(25)), Made("new", since_ms=_before(25)))
    assert _names(found.items) == ["new"]
    history = await platform.containers.cpu_history(DOCKER, found.items, found.newest)
    assert sum(value is not None for value in history["c" * 64]) > 25


async def test_the_number_of_queries_does_not_grow_with_the_number_of_containers(platform):
    asked = []
    for made in ([Made("a")], sixty()):
        before = platform.metrics.selects
        found = await _read(platform, *made)
        assert len(await platform.containers.cpu_history(DOCKER, found.items, found.newest)) >= 1
        asked.append(platform.metrics.selects - before)
    assert asked[0] == asked[1] <= 5
    assert await platform.containers.cpu_history(DOCKER, [], found.newest) == {}


async def test_containers_of_other_instances_are_not_shown(platform):
    found = await platform.containers.read('another"} or vector(1) #', last_seen_at=None)
    assert found.items == ()


def _view(name: str, **fields) -> ContainerView:
    nothing = dict.fromkeys(ContainerView.model_fields)
    told = {"id": f"id-{name}", "name": name, "image_name": "", "state": "running", "problem": "", "recent_restarts": 0, **fields}
    return ContainerView.model_validate({**nothing, "sampled_at": datetime.now(UTC), **told})


VIEWS = [
    _view("idle", cpu_usage=0.0, image_name="nginx"),
    _view("ended", state="exited", restart_count=9),
    _view("busy", cpu_usage=1.5, image_name="app"),
    _view("failed", state="exited", problem="exit code 1", exit_code=1),
    _view("sick", cpu_usage=0.5, problem="health check fails", health="unhealthy"),
    _view("new", health="starting"),
]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (ContainerFilter(), ["sick", "failed", "new", "busy", "idle", "ended"]),
        (ContainerFilter(problems_only=True), ["sick", "failed"]),
        (ContainerFilter(state=ContainerState.EXITED), ["failed", "ended"]),
        (ContainerFilter(search="NGI"), ["idle"]),
        (ContainerFilter(search="id-b"), ["busy"]),
        (ContainerFilter(sort=ContainerSort.CPU), ["busy", "sick", "idle", "ended", "failed", "new"]),
        (ContainerFilter(sort=ContainerSort.CPU, order=SortOrder.ASCENDING), ["idle", "sick", "busy", "ended", "failed", "new"]),
        (ContainerFilter(sort=ContainerSort.NAME, order=SortOrder.DESCENDING), ["sick", "new", "idle", "failed", "ended", "busy"]),
        (ContainerFilter(sort=ContainerSort.HEALTH), ["sick", "new", "busy", "ended", "failed", "idle"]),
        (ContainerFilter(sort=ContainerSort.PROBLEM, order=SortOrder.DESCENDING), ["ended", "busy", "idle", "new", "failed", "sick"]),
        (ContainerFilter(sort=ContainerSort.IMAGE), ["busy", "idle", "ended", "failed", "new", "sick"]),
    ],
)
def test_containers_are_filtered_and_sorted_with_what_is_unknown_last(wanted, names):
    assert _names(listed(VIEWS, wanted)) == names


def test_a_list_is_read_page_by_page_and_a_made_up_cursor_is_refused():
    seen, cursor = [], None
    while True:
        page = page_of(VIEWS, cursor, 4)
        seen += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == VIEWS
    for made_up in ("x", "!", "LTE", "é", "OTk5OTk5OTk5OTk5"):
        with pytest.raises(InvalidRequestError):
            page_of(VIEWS, made_up, 4)


def test_a_sparkline_breaks_where_there_was_no_sample_and_an_idle_container_is_a_flat_line():
    assert spark_path([0.0, None, 1.0, 0.5], 30, 10) == "M0.0 9.0M20.0 1.0L30.0 5.0"
    assert spark_path([0.001, 0.001], 10, 10) == "M0.0 8.9L10.0 8.9"
    assert spark_path([None, 1.0]) == spark_path([]) == ""


def test_the_queries_of_a_container_are_promql_about_that_container():
    for chart in container_charts('c"1'):
        for query in queries(chart, "i", DEFAULT_RANGE.window):
            promql_parser.parse(query.promql)
            assert 'container_id="c\\"1"' in query.promql


@pytest.fixture
def site(tmp_path: Path) -> PagePlatform:
    return PagePlatform(tmp_path)


@pytest.fixture
def viewer(site: PagePlatform) -> Iterator[TestClient]:
    with TestClient(make_app(site), follow_redirects=False, raise_server_exceptions=False) as client:
        assert client.post("/sign-in", data={"api_key": KEY}).status_code == 303
        yield client


def _text(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def _shown(page: str) -> list[str]:
    return re.findall(r'id="link-[^>]+>([^<]+)</a>', page)


def test_the_page_of_a_docker_host_lists_its_containers_problems_first_beside_its_changes(viewer):
    page = viewer.get(PAGE).text
    names = _shown(page)
    assert len(names) == 60
    assert names[:2] == ["old-proxy", "shop-canary-kafka-1"]
    assert "60 all" in _text(page)
    assert "8 with problems" in _text(page)
    assert page.count('class="spark"') == 53
    assert "health check fails" in page
    assert 'data-samples="' + PAGE + '/containers"' in page
    changes = page[page.index('id="changes"') :]
    assert f'href="{PAGE}/containers/{container_id("shop-payments-1")}"' in changes
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", page)


def test_the_page_of_another_type_of_agent_has_no_container_table(viewer):
    assert 'id="containers"' not in viewer.get(f"/instances/{identifier('web-1')}").text


def test_filters_and_order_are_deep_links(viewer):
    assert _shown(viewer.get(PAGE + "?state=exited").text)[0] == "nightly-report-28311"
    assert len(_shown(viewer.get(PAGE + "?problems=1").text)) == 8
    page = viewer.get(PAGE + "?sort=cpu&search=shop-&range=1h").text
    assert all("shop-" in name for name in _shown(page))
    assert 'aria-sort="descending"' in page
    assert f"{PAGE}?search=shop-&amp;sort=cpu&amp;order=asc&amp;range=1h#containers" in page
    assert "?search=shop-&amp;sort=cpu&amp;range=24h" in page
    assert 'value="cpu" selected' in page
    assert _shown(viewer.get(PAGE + "?sort=shoe-size&state=melted&order=up&cursor=x").text) == _shown(viewer.get(PAGE).text)
    assert "None of the 60 containers meets these filters" in _text(viewer.get(PAGE + "?search=nowhere").text)


def test_a_hundred_containers_are_on_a_page(viewer, site):
    site.metrics.containers = [Made(f"c-{n:03}") for n in range(130)]
    first = viewer.get(PAGE + "?sort=name").text
    assert len(_shown(first)) == 100
    following = html.unescape(re.search(r'href="([^"]+)" rel="next"', first).group(1))
    second = viewer.get(following.partition("#")[0]).text
    assert _shown(second) == [f"c-{n:03}" for n in range(100, 130)]
    assert "First page" in second


def test_the_table_alone_is_for_the_pages_refresh(viewer):
    part = viewer.get(PAGE + "/containers?state=exited", headers=HTMX)
    assert part.text.lstrip().startswith('<div id="containers"')
    assert len(_shown(part.text)) == 4
    whole = viewer.get(PAGE + "/containers?state=exited")
    assert (whole.status_code, whole.headers["location"]) == (303, PAGE + "?state=exited#containers")
    assert viewer.get("/instances/none/containers", headers=HTMX).status_code == 404


def test_a_metric_store_in_trouble_and_a_host_without_containers_are_told(viewer, site):
    site.metrics.containers = []
    assert "No containers yet" in viewer.get(PAGE).text
    site.metrics.broken = True
    page = viewer.get(PAGE)
    assert page.status_code == 200
    assert "The containers cannot be read now: the disk is full" in _text(page.text)
    broken = viewer.get(f"{PAGE}/containers/{container_id('shop-checkout-1')}")
    assert broken.status_code == 200
    assert "The metrics cannot be read now: the disk is full" in _text(broken.text)


def test_the_containers_of_a_silent_host_are_shown_as_last_reported(viewer, site):
    instance = next(a for a in site.fleet.agents if a.environment_name == "staging-docker").instances[0]
    instance.status = Status.OFFLINE
    assert "As last reported" in viewer.get(PAGE).text


def test_a_container_has_a_page_with_charts_changes_and_facts(viewer):
    page = viewer.get(f"{PAGE}/containers/{container_id('shop-checkout-1')}?range=6h")
    text = _text(page.text)
    assert page.status_code == 200
    for expected in ("shop-checkout-1", "Block I/O", "2.4.1", "Compose service checkout", "Created 20", "irca.docker.container.create"):
        assert expected in text
    assert "became unhealthy" not in text
    assert page.text.count('class="panel chart"') == 6
    assert 'data-seconds="21600"' in page.text
    assert "will come" not in text
    plain = _text(viewer.get(f"{PAGE}/containers/{container_id('demo-nginx-1')}").text)
    assert "Tags, digest and labels come with its next event." in plain
    ended = _text(viewer.get(f"{PAGE}/containers/{container_id('nightly-report-28311')}").text)
    assert "Exit code 137, out of memory" in ended


def test_a_container_that_is_gone_keeps_its_page_while_metrics_or_events_know_it(viewer, site):
    site.metrics.containers = [Made("a"), Made("gone", until_ms=_before(3600))]
    page = _text(viewer.get(f"{PAGE}/containers/{container_id('gone')}").text)
    assert "staging-1 no longer reports this container" in page
    page = _text(viewer.get(f"{PAGE}/containers/{container_id('shop-mailer-1')}").text)
    assert "shop-mailer-1 started." in page
    missing = viewer.get(f"{PAGE}/containers/{'0' * 64}")
    assert missing.status_code == 404
    assert "There is no container" in missing.text


def test_the_api_lists_containers_in_the_usual_envelope(viewer):
    path = f"/api/v1/instances/{DOCKER}/containers"
    first = viewer.get(path, params={"limit": 40}).json()
    assert len(first["items"]) == 40
    assert first["items"][0]["problem"] == "could not be removed"
    rest = viewer.get(path, params={"limit": 40, "cursor": first["next_cursor"]}).json()
    assert (len(rest["items"]), rest["next_cursor"]) == (20, None)
    found = viewer.get(path, params={"state": "exited", "search": " REPORT ", "sort": "name", "order": "desc"}).json()
    assert [one["name"] for one in found["items"]] == ["nightly-report-28312", "nightly-report-28311"]
    assert len(viewer.get(path, params={"problems_only": True}).json()["items"]) == 8
    assert viewer.get(path, params={"state": "melted"}).status_code == 422
    assert viewer.get(path, params={"cursor": "x"}).json()["code"] == "invalid-request"
    assert viewer.get("/api/v1/instances/none/containers").status_code == 404
    document = viewer.get("/openapi.json").json()
    answer = document["paths"]["/api/v1/instances/{instance_id}/containers"]["get"]["responses"]["200"]
    assert answer["content"]["application/json"]["schema"]["$ref"].endswith("Page_ContainerView_")
    viewer.cookies.clear()
    assert viewer.get(path).status_code == 401


def test_the_api_finds_the_events_of_a_container(viewer):
    found = viewer.get("/api/v1/events", params={"container_id": container_id("shop-mailer-1")}).json()
    assert [one["body"] for one in found["items"]] == ["shop-mailer-1 started."]
    assert found["next_cursor"] is None
