from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents_in_memory import agent, everybody, with_instance
from console_client import console, provision, sign_in, statements, text_of
from platform_fixtures import START
from starlette.testclient import TestClient

from app.events.records import EventRecord
from app.fleet.listing import overview
from app.fleet.views import Status
from app.web.about import browser_libraries, python_libraries
from app.web.rendering import NAVIGATION, static_directory


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with console(tmp_path / "data") as made:
        sign_in(made)
        yield made


def told(client: TestClient, name: str, severity: int, body: str, environment: str = "prod", hours: float = 1.0) -> None:
    record = EventRecord(str(uuid.uuid4()), name, int((time.time() - hours * 3600) * 1e9), severity, body, environment_name=environment)
    client.portal.call(client.app.state.platform.events.record, [record])


def test_problems_come_worst_first_and_counts_are_of_all():
    well, bad, gone, new = agent("a"), agent("b"), agent("c"), agent("d")
    with_instance(well)
    with_instance(bad, Status.DEGRADED, reason="Collector cpu failed", version="0.1.0")
    with_instance(gone, Status.OFFLINE, silence=900, version="0.10.0")
    seen = overview([well, bad, gone, new], everybody, START, 10)
    assert [a.environment_name for a in seen.problems] == ["c", "b"]
    assert seen.problems[1].status_reason == "Collector cpu failed"
    assert (seen.total, seen.statuses[Status.HEALTHY], seen.statuses[Status.PENDING]) == (4, 1, 1)
    assert seen.versions == [("0.10.0", 1), ("0.2.0", 1), ("0.1.0", 1)]
    assert [a.environment_name for a in seen.awaited] == ["d"]
    short = overview([well, bad, gone, new], everybody, START, 1)
    assert ([a.environment_name for a in short.problems], short.quiet_total) == (["c"], 1)


def test_gone_quiet_is_who_was_not_heard_of_in_time_latest_first_and_not_who_says_that_it_is_unwell():
    fleet = agent("fleet")
    with_instance(fleet)
    late = with_instance(fleet, Status.DEGRADED, silence=80)
    gone = with_instance(fleet, Status.OFFLINE, silence=900)
    with_instance(fleet, Status.DEGRADED, silence=3, reason="Collector cpu failed")
    with_instance(fleet, Status.OFFLINE, silence=900).said_goodbye = True
    assert [q.id for q in overview([fleet], everybody, START, 10).quiet] == [late.id, gone.id]


def test_a_pod_that_was_replaced_has_not_gone_quiet():
    cluster = agent("k", "kubernetes")
    with_instance(cluster)
    with_instance(cluster, Status.OFFLINE, silence=900)
    assert overview([cluster], everybody, START, 10).quiet == []


def test_what_may_not_be_seen_is_not_counted():
    mine, other = agent("team-a"), agent("prod")
    with_instance(mine)
    with_instance(other, Status.OFFLINE, silence=900)
    seen = overview([mine, other], lambda name: name.startswith("team-"), START, 10)
    assert (seen.total, seen.problems, seen.quiet) == (1, [], [])


def test_the_page_shows_events_of_severity_warn_and_above_gaps_apart_and_who_is_awaited(client):
    provision(client, "prod")
    told(client, "irca.docker.container.die", 17, "shop-db died with exit code 1.")
    told(client, "irca.docker.container.start", 9, "shop-db started.")
    told(client, "irca.agent.gap", 13, "42 data points were dropped.")
    told(client, "irca.agent.gap", 13, "An old gap.", hours=30)
    told(client, "irca.docker.container.die", 17, "An old death.", hours=24 * 8)
    page = text_of(client.get("/").text)
    warnings, rest = page.split("Gone quiet")
    assert "shop-db died with exit code 1." in warnings
    assert "42 data points" not in warnings
    assert "42 data points were dropped." in rest
    for left_out in ("shop-db started", "An old gap", "An old death"):
        assert left_out not in page
    assert "Waiting for first contact prod server" in rest
    assert "1 pending" in page


def test_an_empty_fleet_leads_an_operator_to_connect_and_tells_a_viewer_who_can(client):
    assert 'href="/connect"' in client.get("/").text
    sign_in(client, "viewer")
    page = client.get("/").text
    assert 'href="/connect"' not in page
    assert "An operator can connect one." in page


def test_a_limited_viewer_sees_events_of_its_environments_only(client):
    for name in ("team-a", "secret"):
        provision(client, name)
        told(client, "irca.docker.container.die", 17, f"something in {name} died.", name)
        told(client, "irca.agent.gap", 13, f"a gap in {name}.", name)
    sign_in(client, "viewer", ("team-*",))
    page = client.get("/").text
    assert "something in team-a died." in page
    assert "a gap in team-a." in page
    assert "secret" not in page


def test_former_links_to_the_list_lead_to_where_it_is(client):
    answer = client.get("/?status=degraded&search=a+b&agent_type=docker")
    assert (answer.status_code, answer.headers["location"]) == (307, "/agents?status=degraded&search=a+b&agent_type=docker")
    assert client.get("/?utm=x").status_code == 200


def test_the_number_of_statements_does_not_grow_with_the_fleet(client):
    counts = []
    for round_ in range(2):
        for number in range(1 + 30 * round_):
            provision(client, f"env-{round_}-{number}")
            told(client, "irca.docker.container.die", 17, "died.", f"env-{round_}-{number}")
        for path in ("/", "/agents"):
            with statements(client) as made:
                assert client.get(path).status_code == 200
            counts.append(len([s for s in made if "webhook" not in s]))
    assert counts[:2] == counts[2:]
    assert counts[0] - counts[1] == 2  # events and gaps; the fleet itself is in memory


@pytest.mark.parametrize(("role", "sections"), [("viewer", {"Overview", "Agents", "About"}), ("operator", {"Overview", "Connect"})])
def test_the_navigation_shows_what_the_role_may_open_and_where_one_is(client, role, sections):
    sign_in(client, role)
    page = client.get("/agents").text
    shown = {s.title for s in NAVIGATION if f'<a href="{s.path}"' in page.split("</nav>")[0]}
    assert sections <= shown
    assert ("Connect" in shown) is (role == "operator")
    assert '<a href="/agents" aria-current="page">Agents</a>' in page
    assert '<a href="/" aria-current' not in page


def test_the_theme_is_kept_in_a_cookie_and_the_page_comes_in_it(client):
    assert "data-theme" not in client.get("/").text
    answer = client.post("/theme", data={"theme": "dark", "next": "/agents?status=offline"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/agents?status=offline")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("irca_theme=dark;")
    assert "HttpOnly" in cookie
    page = client.get("/about").text
    assert '<html lang="en" data-theme="dark">' in page
    assert '<meta name="color-scheme" content="dark">' in page
    assert 'value="dark" aria-pressed="true"' in page
    client.post("/theme", data={"theme": ""})
    assert "data-theme" not in client.get("/").text


def test_the_theme_is_nobody_elses_to_choose_and_leads_nowhere_else(client):
    assert client.post("/theme", data={"theme": "dark"}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post("/theme", data={"theme": "dark", "next": "https://evil.example"}).headers["location"] == "/"
    client.cookies.set("irca_theme", '"><script>', domain="testserver.local")
    assert "<script>" not in client.get("/about").text.replace("<script src", "")
    client.cookies.clear()
    assert client.post("/theme", data={"theme": "light"}).status_code == 303  # on the sign-in page, too


def test_about_names_every_shipped_library_with_its_licence(client):
    page = text_of(client.get("/about").text)
    for library in (*python_libraries(), *browser_libraries(static_directory())):
        assert f"{library.name} {library.version}" in page
    named = {library.name.lower(): library.licence for library in python_libraries()}
    assert named["fastapi"] == "MIT"
    assert named["psutil"] == "BSD-3-Clause"
    assert "pytest" not in named
    assert "Apache-2.0" in page
    assert browser_libraries(Path("nowhere")) == ()
