from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents_in_memory import agent, everybody, with_instance
from console_client import BEARER, console, provision, sign_in
from platform_fixtures import START
from starlette.testclient import TestClient

from app.errors import InvalidRequestError
from app.fleet.listing import AgentFilter, Sort, encode_cursor, list_agents
from app.fleet.registry import Agent
from app.fleet.views import Status
from app.web.agents_routes import labels_of


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with console(tmp_path / "data") as made:
        sign_in(made)
        yield made


def fleet() -> list[Agent]:
    made = [
        agent("prod-a", team="payments", tier="1"),
        agent("prod-b", "docker", team="search"),
        agent("lab", team="payments"),
        agent("new"),
    ]
    with_instance(made[0], version="0.9.1", silence=30)
    with_instance(made[1], Status.DEGRADED, version="0.10.0", silence=5)
    with_instance(made[2], Status.OFFLINE, version="0.2.0", silence=900)
    return made


def names(page) -> list[str]:
    return [a.environment_name for a in page.items]


def listed(wanted: AgentFilter | None = None, sort: Sort = Sort.STATUS, *, descending: bool = False, cursor: str | None = None, limit=50):
    return list_agents(fleet(), wanted or AgentFilter(), sort, descending=descending, cursor=cursor, limit=limit)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (AgentFilter(version="0.10.0"), ["prod-b"]),
        (AgentFilter(labels=("team=payments",)), ["lab", "prod-a"]),
        (AgentFilter(labels=("team=payments", "tier")), ["prod-a"]),
        (AgentFilter(labels=("team=pay",)), []),
        (AgentFilter(search="TEAM=S"), ["prod-b"]),
        (AgentFilter(search="lab-1"), ["lab"]),
        (AgentFilter(status=Status.PENDING), ["new"]),
        (AgentFilter(agent_type="docker", environment_name="prod-b"), ["prod-b"]),
        (AgentFilter(sees=lambda name: name.startswith("prod")), ["prod-b", "prod-a"]),
    ],
)
def test_filters_are_met_together(wanted, found):
    assert names(listed(wanted)) == found


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (Sort.STATUS, ["lab", "prod-b", "new", "prod-a"]),
        (Sort.ENVIRONMENT, ["lab", "new", "prod-a", "prod-b"]),
        (Sort.TYPE, ["prod-b", "lab", "new", "prod-a"]),
        (Sort.VERSION, ["new", "lab", "prod-a", "prod-b"]),
        (Sort.LAST_SEEN, ["new", "lab", "prod-a", "prod-b"]),
    ],
)
@pytest.mark.parametrize("descending", [False, True])
def test_every_order_can_be_turned_round_and_walked_page_by_page(sort, order, descending):
    expected = order[::-1] if descending else order
    assert names(listed(sort=sort, descending=descending)) == expected
    made, walked, cursor = fleet(), [], None
    while True:
        page = list_agents(made, AgentFilter(sees=everybody), sort, descending=descending, cursor=cursor, limit=1)
        walked += names(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert walked == expected


@pytest.mark.parametrize("sort", Sort)
@pytest.mark.parametrize("cursor", ["x", encode_cursor((None, "a", "b", "c")), encode_cursor((True, "a", "b", "c")), encode_cursor((1,))])
def test_a_cursor_of_another_list_is_refused(sort, cursor):
    with pytest.raises(InvalidRequestError):
        listed(sort=sort, cursor=cursor)


def test_a_cursor_of_another_order_is_refused():
    with pytest.raises(InvalidRequestError):
        listed(sort=Sort.VERSION, cursor=listed(limit=1).next_cursor)


def test_a_label_filter_is_read_as_it_is_typed():
    assert labels_of(" team=payments , tier,") == ("team=payments", "tier")
    assert labels_of("") == ()


def rows(page: str) -> list[str]:
    return re.findall(r"data-row>([^<]+)</a>", page)


def test_the_page_filters_sorts_and_keeps_both_in_every_link(client):
    for name, labels in (("alpha", {"team": "a"}), ("beta", {"team": "b"}), ("gamma", {"team": "a"})):
        provision(client, name, labels=labels)
    page = client.get("/agents?label=team%3Da&sort=environment&order=desc").text
    assert rows(page) == ["gamma", "alpha"]
    assert 'aria-sort="descending"><a href="/agents?label=team%3Da&amp;sort=environment">Environment</a>' in page
    assert 'href="/agents?label=team%3Da&amp;sort=last_seen&amp;order=desc">Last seen</a>' in page
    assert 'href="/agents?label=team%3Da&amp;sort=environment&amp;order=desc&amp;status=pending"' in page
    assert 'name="label" value="team=a"' in page
    assert '<input type="hidden" name="order" value="desc">' in page
    assert rows(client.get("/agents?sort=bogus&order=up").text) == ["alpha", "beta", "gamma"]
    assert "No agent matches" in client.get("/agents?version=9.9").text


def test_pages_follow_one_another_in_the_chosen_order(client, monkeypatch):
    monkeypatch.setattr("app.web.agents_routes.PAGE_SIZE", 2)
    for number in range(5):
        provision(client, f"env-{number}")
    url, seen = "/agents?sort=environment&order=desc", []
    while url:
        page = client.get(url).text
        seen += rows(page)
        following = re.search(r'href="([^"]+)" rel="next"', page)
        url = html.unescape(following[1]) if following else ""
    assert seen == [f"env-{n}" for n in (4, 3, 2, 1, 0)]
    assert client.get("/agents?cursor=nonsense").status_code == 422


def test_the_api_filters_and_sorts_likewise(client):
    for name, labels in (("alpha", {"team": "a"}), ("beta", {"team": "b"}), ("gamma", {"team": "a"})):
        provision(client, name, labels=labels)
    found = client.get("/api/v1/agents?label=team%3Da&label=team&sort=environment&order=desc", headers=BEARER).json()["items"]
    assert [a["environment_name"] for a in found] == ["gamma", "alpha"]
    assert client.get("/api/v1/agents?version=9", headers=BEARER).json()["items"] == []
    assert client.get("/api/v1/agents?sort=luck", headers=BEARER).status_code == 422


def test_ten_thousand_agents_are_listed_without_a_query_for_any_of_them():
    made = [agent(f"env-{number:05}", team=f"t{number % 7}") for number in range(10_000)]
    for one in made:
        with_instance(one, silence=(hash(one.id) % 60))
    page = list_agents(made, AgentFilter(labels=("team=t3",), search="env-0"), Sort.LAST_SEEN, descending=True, cursor=None, limit=50)
    assert len(page.items) == 50
    assert page.items[0].last_seen_at.timestamp() <= START
