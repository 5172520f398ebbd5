"""Server time of every page and of the main lists of the API with 10,000 instances, 100 groups and 1,000,000 events in SQLite.

The application runs in this process, and requests reach it without a socket: what is measured is routing, services, SQL and templates. Each
page is asked for once to warm up and then ``--rounds`` times. The fleet's clock stands still, so that nobody falls silent meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import httpx2  # noqa: E402 - the path above comes first
from console_fleet import SMALL, Fleet, Maker, Size, write_metrics  # noqa: E402
from fastapi.routing import APIRoute  # noqa: E402
from sqlalchemy import event as sa_event  # noqa: E402

from app.db.session import Database  # noqa: E402
from app.main import create_app  # noqa: E402
from app.memory import spare_the_long_lived  # noqa: E402
from app.settings import Settings  # noqa: E402
from app.web.rendering import PageRoute  # noqa: E402
from tests.page_clusters import UID  # noqa: E402
from tests.page_containers import container_id  # noqa: E402

REQUIRED_MS = 200.0
ROUNDS = 20
FULL = Size()
KEY = "irca_bench_" + "k" * 40
HTMX = {"HX-Request": "true"}
DEEP = 40
"""Pages of a list that are turned before the one that is measured."""
STALL_MS = 100.0
STALL = "a group's configuration is changed: longest stall of the event loop"
_statements: ContextVar[list[str] | None] = ContextVar("statements", default=None)
"""The SQL of the request that is under way; what jobs do meanwhile is not its."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that is measured.

    ``deep`` asks for a page far down the list, ``first`` each time for what nobody has looked at lately: what is kept of large clusters
    is let go of. ``method`` and ``body`` are for what only a POST shows.
    """

    path: str
    headers: tuple[tuple[str, str], ...] = ()
    deep: bool = False
    first: bool = False
    method: str = "GET"
    body: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """How a request fared: milliseconds, SQL statements, bytes of the answer."""

    ask: str
    status: int
    median_ms: float
    p95_ms: float
    statements: int
    size: int

    @property
    def kept(self) -> bool:
        """Whether it was answered, and in time."""
        return self.status == 200 and self.median_ms < (STALL_MS if self.ask == STALL else REQUIRED_MS)

    def text(self) -> str:
        """The row as printed."""
        told = "kept" if self.kept else f"NOT YET ({self.status})" if self.status != 200 else "NOT YET"
        return f"{self.ask[:92]:<92} {self.median_ms:>8.1f} {self.p95_ms:>8.1f} {self.statements:>4} {self.size / 1024:>8.1f}  {told}"


def pages(fleet: Fleet) -> list[Ask]:
    """Every page, its filters, and places far down its list."""
    cluster, docker = f"/clusters/{UID}", f"/instances/{fleet.docker}"
    return [
        Ask("/sign-in", (("Cookie", "irca_session=nobody"),)),
        *_asks("/", "/about", "/settings", "/connect", "/connect/server", "/connect/docker", f"/connect/agents/{fleet.server_agent}"),
        *_asks(
            "/agents", "/agents?status=degraded", "/agents?search=prod-1", "/agents?search=nothing-like-it", "/agents?label=team=team-03"
        ),
        *_asks("/agents?agent_type=kubernetes", "/agents?version=0.1.0", "/agents?sort=last_seen&order=desc", "/agents?sort=version"),
        *_asks(f"/agents?environment_name={fleet.environment}"),
        Ask("/agents", deep=True),
        *(Ask(f"/agents/{agent}") for agent in (fleet.server_agent, fleet.docker_agent, fleet.cluster_agent)),
        *_asks(f"/agents/{fleet.cluster_agent}?replaced=1", f"/agents/{fleet.cluster_agent}/configuration"),
        *_asks(f"/agents/{fleet.server_agent}/configuration", f"/agents/{fleet.server_agent}/configuration/edit"),
        *(Ask(f"/instances/{one}") for one in (fleet.server, fleet.docker, fleet.cluster_leader)),
        *_asks(
            f"/instances/{fleet.server}?range=7d",
            f"/instances/{fleet.server}?history=90d",
            f"{docker}/containers/{container_id('shop-checkout-1')}",
        ),
        *_asks(
            "/explore", f"/events/{fleet.event}", f"/instances/{fleet.server}/events", f"/instances/{fleet.docker}/events?severity=error"
        ),
        Ask(f"{docker}/containers", tuple(HTMX.items())),
        Ask(f"/instances/{fleet.server}/host", tuple(HTMX.items())),
        *_asks(f"/instances/{fleet.server}/configuration", f"/instances/{fleet.server}/configuration?every=1"),
        *_asks(
            "/clusters",
            cluster,
            f"{cluster}?view=nodes",
            f"{cluster}?view=namespaces",
            f"{cluster}?problems=1",
            f"{cluster}?search=service-01",
        ),
        Ask(f"{cluster}/objects", tuple(HTMX.items())),
        Ask(cluster, first=True),
        Ask(f"{cluster}/workloads/deployment/team-00/service-0000"),
        *_asks("/access", "/access/keys/new", "/access/tokens", "/access/tokens?search=prod-1", "/access/tokens?search=nothing-like-it"),
        *_asks(f"/access/tokens?environment_name={fleet.environment}", "/access/tokens?state=expired", f"/access/tokens/{fleet.token}"),
        Ask("/access/tokens", deep=True),
        *_asks("/groups", "/groups?search=group-01", "/groups/new", "/groups/preview?selector=team%3Dteam-01", "/groups/preview"),
        *_asks(f"/groups/{fleet.group}", f"/groups/{fleet.group}?status=pending", f"/groups/{fleet.group}/edit"),
        *_asks(f"/groups/{fleet.group}/configuration", "/maintenance"),
        *_asks("/webhooks", "/webhooks/new", f"/webhooks/{fleet.webhook}", f"/webhooks/{fleet.webhook}?status=dead"),
        Ask(f"/webhooks/{fleet.webhook}", deep=True),
        *_asks(f"/webhooks/{fleet.webhook}/edit", f"/webhooks/{fleet.webhook}/deliveries/{fleet.delivery}"),
        *_asks("/audit", "/audit?search=person-7", "/audit?search=nothing-like-it", "/audit?action=token.revoke", "/audit?outcome=refused"),
        *_asks(f"/audit?environment_name={fleet.environment}", "/audit?day=2026-06-01"),
        Ask("/audit", deep=True),
    ]


def lists(fleet: Fleet) -> list[Ask]:
    """The main lists of the API."""
    api, events = "/api/v1", "/api/v1/events"
    return [
        *_asks(f"{api}/agents", f"{api}/agents?limit=500", f"{api}/agents?status=offline", f"{api}/agents?search=prod-1"),
        Ask(f"{api}/agents", deep=True),
        *_asks(
            f"{api}/instances",
            f"{api}/instances?limit=500",
            f"{api}/instances?status=degraded",
            f"{api}/agents/{fleet.server_agent}/tokens",
        ),
        Ask(f"{api}/instances", deep=True),
        *_asks(events, f"{events}?limit=500", f"{events}?instance_id={fleet.server}", f"{events}?agent_id={fleet.cluster_agent}"),
        *_asks(
            f"{events}?name=irca.docker.container.die",
            f"{events}?name=irca.no.such.event",
            f"{events}?environment_name={fleet.environment}",
        ),
        *_asks(f"{events}?environment_name=no-such", f"{events}?severity=error", f"{events}?severity=fatal"),
        *_asks(f"{events}?name=irca.agent.gap&environment_name={fleet.environment}"),
        *_asks(f"{events}?severity=error&environment_name={fleet.environment}"),
        *_asks(f"{events}?container_id={7:064x}&instance_id={fleet.docker}", f"{events}?container_id={7:064x}"),
        *_asks(f"{events}?start=2026-01-01T00:00:00Z&end=2026-09-01T00:00:00Z", f"{events}/{fleet.event}"),
        Ask(events, deep=True),
        *_asks(f"{api}/instances/{fleet.server}/history", f"{api}/agents/{fleet.cluster_agent}/availability"),
        *_asks(f"{api}/groups", f"{api}/groups?limit=100", f"{api}/groups/{fleet.group}/instances", f"{api}/maintenance-windows"),
        Ask(f"{api}/groups/preview", method="POST", body={"selector": {"matchLabels": {"agent_type": "server"}}}),
        *_asks(
            f"{api}/webhooks",
            f"{api}/webhook-deliveries",
            f"{api}/webhook-deliveries?status=dead",
            f"{api}/webhook-deliveries?event_id=no-such",
        ),
        Ask(f"{api}/webhook-deliveries", deep=True),
        *_asks(f"{api}/enrolment-tokens", f"{api}/enrolment-tokens?search=nothing-like-it", f"{api}/audit?search=nothing-like-it"),
        *_asks(f"{api}/audit", f"{api}/api-keys", f"{api}/clusters", f"{api}/clusters/{UID}/workloads", f"{api}/clusters/{UID}/nodes"),
        *_asks(f"{api}/clusters/{UID}/namespaces", f"{api}/clusters/{UID}/pods", f"{api}/clusters/{UID}/pods?search=service-01"),
        *_asks(f"{api}/instances/{fleet.docker}/containers", f"{api}/instances/{fleet.server}/host", "/metrics", "/readyz"),
    ]


def _asks(*paths: str) -> Iterator[Ask]:
    return (Ask(path) for path in paths)


@contextlib.asynccontextmanager
async def fleet_at_scale(folder: Path, size: Size) -> AsyncIterator[tuple[Any, httpx2.AsyncClient, Fleet]]:
    """The application over a fleet of this size in a folder that exists, and a client that is signed in to it as an admin."""
    now = time.time()
    settings = Settings(data_dir=folder, public_url="http://testserver", admin_api_key=KEY)
    database = Database(settings.resolved_database_url())
    await database.open()
    await database.close()
    started = time.perf_counter()
    fleet = Maker(folder / "state.db", size, now).write()
    told = f"{size.instances:,} instances, {size.groups} groups, {size.events:,} events"
    print(
        f"{told}, {size.deliveries:,} deliveries, {size.audit:,} audit rows: written in {time.perf_counter() - started:.0f} s", flush=True
    )
    app = create_app(settings, lambda: now)
    started = time.perf_counter()
    async with app.router.lifespan_context(app):
        print(f"start of the platform: {time.perf_counter() - started:.1f} s", flush=True)
        series = await write_metrics(app.state.platform.metrics, fleet, now, size.cluster_pods)
        print(f"{series:,} series, those of a cluster of {size.cluster_pods:,} pods among them", flush=True)
        engine = app.state.platform.database._engine.sync_engine  # noqa: SLF001 - where statements pass
        sa_event.listen(engine, "before_cursor_execute", _note)
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://testserver", timeout=60) as client:
            answer = await client.post("/sign-in", data={"api_key": KEY})
            if answer.status_code != 303:
                raise RuntimeError(f"signing in answered {answer.status_code}")
            yield app, client, fleet


async def measure(folder: Path, size: Size, rounds: int = ROUNDS, only: str = "", show: Any = None) -> list[Measured]:
    """Every request that contains ``only``; each is handed to ``show`` as soon as it has been measured."""
    found: list[Measured] = []
    async with fleet_at_scale(folder, size) as (app, client, fleet):
        spare_the_long_lived()
        asks = [ask for ask in (*pages(fleet), *lists(fleet)) if only in ask.path]
        for ask in asks:
            found.append(await _measure(client, ask, rounds, app.state.platform.clusters.forget))
            if show:
                show(found[-1])
        if not only:
            stalls = [await stall_of_a_change(client, fleet) for _ in range(5)]
            found.append(Measured(STALL, 200, statistics.median(stalls), max(stalls), 0, 0))
            if show:
                show(found[-1])
            for path in sorted(unmeasured(app, asks)):
                print(f"NOT MEASURED: {path}", flush=True)
    return found


async def stall_of_a_change(client: httpx2.AsyncClient, fleet: Fleet) -> float:
    """The longest that the event loop stands still, in milliseconds, while a group's configuration is changed and its page is shown."""
    longest, ended = 0.0, asyncio.Event()

    async def tick() -> None:
        nonlocal longest
        while not ended.is_set():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, (time.perf_counter() - before) * 1000 - 1)

    ticking = asyncio.create_task(tick(), name="irca-bench-ticks")
    path = f"/api/v1/groups/{fleet.group}/configuration"
    current = (await client.get(path)).json()["config"]
    config = {**current, "collect_interval": 10 + (current["collect_interval"] + 1) % 50}
    answer = await client.put(path, json={"config": config}, headers={"Authorization": f"Bearer {KEY}"})
    if answer.status_code != 200:
        raise RuntimeError(f"the change was answered with {answer.status_code}: {answer.text[:200]}")
    for page in (f"/groups/{fleet.group}", "/groups"):
        await client.get(page)
    ended.set()
    await ticking
    return longest


def page_routes(app: Any) -> list[APIRoute]:
    """The routes of the application that answer with a page."""
    waiting, found = list(app.routes), []
    while waiting:
        route = waiting.pop()
        waiting += getattr(getattr(route, "original_router", None), "routes", [])
        if isinstance(route, PageRoute) and "GET" in route.methods:
            found.append(route)
    return found


def unmeasured(app: Any, asks: Sequence[Ask]) -> set[str]:
    """Paths of page routes that none of the requests is for."""
    return {route.path for route in page_routes(app) if not any(route.path_regex.match(ask.path.partition("?")[0]) for ask in asks)}


async def _measure(client: httpx2.AsyncClient, ask: Ask, rounds: int, forget: Callable[[], None]) -> Measured:
    path, name = ask.path, f"{ask.method if ask.method != 'GET' else ''} {ask.path}".strip()
    if ask.deep:
        path, turned = await _turned(client, path)
        name = f"{ask.path} (page {turned})"
    elif ask.first:
        name = f"{ask.path} (first look)"
    times: list[float] = []
    for place in range(rounds + 1):
        if ask.first:
            forget()
        started = time.perf_counter()
        with statements() as made:
            answer = await client.request(ask.method, path, headers=dict(ask.headers), json=ask.body)
        if place:
            times.append((time.perf_counter() - started) * 1000)
    times.sort()
    p95 = times[min(len(times) - 1, round(0.95 * len(times)))]
    name = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{40,}", "…", name)
    return Measured(name, answer.status_code, statistics.median(times), p95, len(made), len(answer.content))


async def _turned(client: httpx2.AsyncClient, path: str) -> tuple[str, int]:
    """The path of a page far down the list, and which one it is."""
    current = path
    for number in range(1, DEEP + 1):
        text = (await client.get(current)).text
        cursor = re.search(r'(?:"next_cursor":"|[?&;]cursor=)([A-Za-z0-9_%-]+)', text)
        if cursor is None:
            return current, number
        current = f"{path}{'&' if '?' in path else '?'}cursor={cursor[1]}"
    return current, DEEP + 1


@contextlib.contextmanager
def statements() -> Iterator[list[str]]:
    """The SQL statements of the requests that this task makes while the block runs."""
    made: list[str] = []
    before = _statements.set(made)
    try:
        yield made
    finally:
        _statements.reset(before)


def _note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
    made = _statements.get()
    if made is not None:
        made.append(statement)


def worst(size: Size = FULL, rounds: int = ROUNDS) -> tuple[Measured, Measured, Measured]:
    """The slowest page, the slowest answer of the API, and the stall of a change; measured in a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="irca-bench-"))
    try:
        found = asyncio.run(measure(folder, size, rounds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    [stall] = [one for one in found if one.ask == STALL]
    api = [one for one in found if re.match(r"(POST )?/(api|metrics|readyz)", one.ask)]
    pages_of = [one for one in found if one is not stall and one not in api]
    page, answer = (max(some, key=lambda one: (not one.kept, one.median_ms)) for some in (pages_of, api))
    return page, answer, stall


def main() -> None:
    """Measure and print; the exit code does not judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", help="only requests whose path contains this")
    parser.add_argument("--small", action="store_true", help="a small fleet: for trying the benchmark out")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()
    print(f"{'what':<92} {'median':>8} {'p95':>8} {'SQL':>4} {'KiB':>8}  required: median < {REQUIRED_MS:.0f} ms")
    folder = Path(tempfile.mkdtemp(prefix="irca-bench-"))
    try:
        size = SMALL if given.small else FULL
        found = asyncio.run(measure(folder, size, given.rounds, given.only, lambda one: print(one.text(), flush=True)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    kept = sum(one.kept for one in found)
    slowest = max(found, key=lambda one: one.median_ms)
    print(f"{kept} of {len(found)} kept; slowest {slowest.ask} with {slowest.median_ms:.0f} ms")
    if given.json:
        given.json.write_text(json.dumps([asdict(one) | {"kept": one.kept} for one in found], indent=1))


if __name__ == "__main__":
    main()
