from __future__ import annotations

import asyncio
from dataclasses import asdict

from app.web.rendering import NAVIGATION
from benchmarks.console import HTMX, fleet_at_scale, page_routes, statements
from benchmarks.console_fleet import Fleet, Size
from tests.page_clusters import UID
from tests.page_containers import container_id

PAGES = {
    # a page, with the names that the fleet gives its ids: SQL statements, the session's own one included
    "/": 3,
    "/about": 1,
    "/access": 2,
    "/access/keys/new": 1,
    "/access/keys/{key}": 2,
    "/access/tokens": 3,
    "/access/tokens/{token}": 3,
    "/agents": 1,
    "/agents?status=degraded&search=prod&sort=version": 1,
    "/agents/{server_agent}": 3,
    "/agents/{cluster_agent}?replaced=1": 3,
    "/agents/{server_agent}/configuration": 2,
    "/agents/{server_agent}/configuration/edit": 1,
    "/audit": 2,
    "/audit?search=person&outcome=done": 2,
    "/clusters": 1,
    "/clusters/{cluster}": 2,
    "/clusters/{cluster}?view=namespaces": 2,
    "/clusters/{cluster}/objects": 1,
    "/clusters/{cluster}/workloads/deployment/team-00/service-0000": 2,
    "/connect": 1,
    "/connect/agents/{server_agent}": 2,
    "/connect/server": 1,
    "/events/{event}": 2,
    "/explore": 1,
    "/explore?scope=instance:{server}&metric=system.cpu.utilization&compare=previous": 2,
    "/groups": 1,
    "/groups/new": 1,
    "/groups/preview?selector=agent_type%3Dserver": 1,
    "/groups/{group}": 2,
    "/groups/{group}/configuration": 1,
    "/groups/{group}/edit": 1,
    "/instances/{server}": 4,
    "/instances/{docker}": 4,
    "/instances/{server}/events": 2,
    "/instances/{cluster_leader}": 3,
    "/instances/{server}/configuration": 1,
    "/instances/{server}/events?severity=warn": 2,
    "/instances/{docker}/containers": 2,
    "/instances/{docker}/containers/{container}": 4,
    "/instances/{server}/host": 2,
    "/maintenance": 1,
    "/settings": 5,
    "/sign-in": 1,
    "/webhooks": 2,
    "/webhooks/new": 1,
    "/webhooks/{webhook}": 4,
    "/webhooks/{webhook}?status=dead": 4,
    "/webhooks/{webhook}/deliveries/{delivery}": 4,
    "/webhooks/{webhook}/edit": 2,
}
ELSEWHERE = {
    "/events/{event_id:path}": "reads one event by its id; counted in test_metrics_explorer.py",
    "/sign-in/link/{token}": "is for somebody who is not signed in, and looks for one link",
    "/sign-in/oidc": "leads to the provider",
    "/sign-in/oidc/callback": "comes from the provider",
}
"""Page routes that are counted nowhere, and why."""
SMALL = Size(
    servers=6, docker_hosts=2, clusters=1, pods_of_cluster=3, groups=2, events=300, webhooks=2, deliveries=60, audit=80, cluster_pods=20
)
TEN_TIMES = Size(**{name: 10 * count for name, count in asdict(SMALL).items()})


def address(page: str, fleet: Fleet, key: str) -> str:
    return page.format(**{**vars(fleet), "cluster": UID, "container": container_id("shop-checkout-1"), "key": key})


async def counted(folder, size: Size) -> dict[str, tuple[int, int]]:
    """The status and the number of statements of every page of a fleet of this size."""
    found = {}
    async with fleet_at_scale(folder, size) as (_app, client, fleet):
        key = (await client.get("/api/v1/api-keys")).json()["items"][0]["id"]
        for page in PAGES:
            headers = HTMX if page.endswith(("/objects", "/containers", "/host")) else {}
            with statements() as made:
                answer = await client.get(address(page, fleet, key), headers=headers)
            found[page] = answer.status_code, len(made)
    return found


def test_every_page_makes_exactly_as_many_statements_as_ever_whatever_there_is(tmp_path):
    for name in ("few", "many"):
        (tmp_path / name).mkdir()
    few = asyncio.run(counted(tmp_path / "few", SMALL))
    many = asyncio.run(counted(tmp_path / "many", TEN_TIMES))
    assert {page: status for page, (status, _) in few.items() if status not in (200, 303)} == {}
    assert {page: count for page, (_, count) in few.items()} == PAGES
    assert many == few


async def test_no_page_is_left_out(tmp_path):
    async with fleet_at_scale(tmp_path, SMALL) as (app, _client, fleet):
        addresses = [address(page, fleet, "a-key").partition("?")[0] for page in PAGES]
        missing = {route.path for route in page_routes(app) if not any(route.path_regex.match(path) for path in addresses)}
    assert missing - set(ELSEWHERE) == set(), "enter these pages, with the number of their statements, in the table above"
    assert {section.path for section in NAVIGATION} <= set(PAGES)
