"""Every page of the console, and how to reach each in a platform with a fleet: for what is asked of all pages in a browser.

A page that is added has its row in :data:`PAGES`, or its reason in :data:`ELSEWHERE`; a test holds the routes and the navigation
against both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from app.auth.service import Role
from app.db.session import Database
from app.main import create_app
from app.settings import Settings
from benchmarks.console_fleet import Maker, Size, write_metrics
from tests.page_clusters import UID
from tests.page_containers import container_id

ADMIN_KEY = "irca_test_" + "k" * 40
FLEET = Size(
    servers=12, docker_hosts=2, clusters=1, pods_of_cluster=3, groups=3, events=400, webhooks=2, deliveries=80, audit=60, cluster_pods=40
)
SEED = 5
"""One with which the servers are healthy, degraded and offline."""


@dataclass(frozen=True, slots=True)
class RegisteredPage:
    """A page: the name of its picture, its address with names that the fleet gives its ids, and the least role that sees it."""

    name: str
    address: str
    role: Role | None = Role.VIEWER
    """None for who is not signed in."""


PAGES = (
    RegisteredPage("overview", "/"),
    RegisteredPage("agents", "/agents"),
    RegisteredPage("agent", "/agents/{server_agent}"),
    RegisteredPage("agent-configuration", "/agents/{server_agent}/configuration"),
    RegisteredPage("agent-configuration-edit", "/agents/{server_agent}/configuration/edit", Role.OPERATOR),
    RegisteredPage("instance-server", "/instances/{server}"),
    RegisteredPage("instance-docker", "/instances/{docker}"),
    RegisteredPage("instance-kubernetes", "/instances/{cluster_leader}"),
    RegisteredPage("instance-configuration", "/instances/{server}/configuration"),
    RegisteredPage("instance-events", "/instances/{server}/events"),
    RegisteredPage("container", "/instances/{docker}/containers/{container}"),
    RegisteredPage("clusters", "/clusters"),
    RegisteredPage("cluster", "/clusters/{cluster}"),
    RegisteredPage("cluster-workload", "/clusters/{cluster}/workloads/deployment/team-00/service-0000"),
    RegisteredPage("explore", "/explore"),
    RegisteredPage("explore-metric", "/explore?scope=instance:{server}&metric=system.cpu.utilization&compare=previous"),
    RegisteredPage("event", "/events/{event}"),
    RegisteredPage("connect", "/connect", Role.OPERATOR),
    RegisteredPage("connect-server", "/connect/server", Role.OPERATOR),
    RegisteredPage("connect-progress", "/connect/agents/{server_agent}"),
    RegisteredPage("groups", "/groups"),
    RegisteredPage("group", "/groups/{group}"),
    RegisteredPage("group-new", "/groups/new", Role.OPERATOR),
    RegisteredPage("group-edit", "/groups/{group}/edit", Role.OPERATOR),
    RegisteredPage("group-configuration", "/groups/{group}/configuration", Role.OPERATOR),
    RegisteredPage("maintenance", "/maintenance"),
    RegisteredPage("webhooks", "/webhooks"),
    RegisteredPage("webhook", "/webhooks/{webhook}"),
    RegisteredPage("webhook-new", "/webhooks/new", Role.ADMIN),
    RegisteredPage("webhook-edit", "/webhooks/{webhook}/edit", Role.ADMIN),
    RegisteredPage("webhook-delivery", "/webhooks/{webhook}/deliveries/{dead_delivery}"),
    RegisteredPage("access", "/access", Role.ADMIN),
    RegisteredPage("access-key-new", "/access/keys/new", Role.ADMIN),
    RegisteredPage("access-key", "/access/keys/{key}", Role.ADMIN),
    RegisteredPage("access-tokens", "/access/tokens", Role.ADMIN),
    RegisteredPage("access-token", "/access/tokens/{token}", Role.ADMIN),
    RegisteredPage("audit", "/audit", Role.ADMIN),
    RegisteredPage("settings", "/settings", Role.ADMIN),
    RegisteredPage("about", "/about"),
    RegisteredPage("sign-in", "/sign-in", None),
    RegisteredPage("sign-in-link", "/sign-in/link/{link}", None),
)
ELSEWHERE = {
    "/sign-in/oidc": "leads to the provider",
    "/sign-in/oidc/callback": "comes from the provider",
    "/instances/{instance_id}/containers": "is a part of the instance's page",
    "/instances/{instance_id}/host": "is a part of the instance's page",
    "/clusters/{uid}/objects": "is a part of the cluster's page",
    "/groups/preview": "is a part of the group's form",
}
"""Routes that are no pages to look at, and why."""


@dataclass
class Console:
    """A platform with a fleet on loopback, a browser, and somebody signed in for each role."""

    url: str
    ids: dict[str, str]
    browser: Browser
    sessions: dict[Role, str]

    def address(self, page: RegisteredPage) -> str:
        """Where the page is on this platform."""
        return self.url + page.address.format(**self.ids)

    def context(self, role: Role | None, width: int = 1280, height: int = 900, theme: str = "light", **options: bool) -> BrowserContext:
        """A browser of its own for somebody of this role; every page in it shows ``theme``."""
        made = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            locale="en-GB",
            timezone_id="UTC",
            reduced_motion="reduce",
            **options,
        )
        made.set_default_timeout(15_000)
        if role is not None:
            made.add_cookies([{"name": "irca_session", "value": self.sessions[role], "url": self.url}])
        return made


@contextlib.contextmanager
def console(folder: Path, now: float | None = None) -> Iterator[Console]:
    """The platform with its fleet, whose clock stands still at ``now``, and a browser."""
    moment = time.time() if now is None else now
    settings = Settings(data_dir=folder, public_url="http://127.0.0.1", admin_api_key=ADMIN_KEY)
    asyncio.run(_migrated(settings))
    fleet = Maker(folder / "state.db", FLEET, moment, SEED).write()
    app = create_app(settings, lambda: moment)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1))
        loops: list[asyncio.AbstractEventLoop] = []

        async def run() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve([listener])

        thread = threading.Thread(target=lambda: asyncio.run(run()), name="registered-pages")
        thread.start()
        try:
            _until_started(server, thread)
            metrics = write_metrics(app.state.platform.metrics, fleet, moment, FLEET.cluster_pods)
            asyncio.run_coroutine_threadsafe(metrics, loops[0]).result(60)
            names = {key: value for key, value in vars(fleet).items() if isinstance(value, str)}
            keys = {role: _ask(url, "/api/v1/api-keys", {"name": f"{role.name.lower()}s", "role": role.name.lower()}) for role in Role}
            link = _ask(url, "/api/v1/sign-in-links", {})["url"].rpartition("/")[2]
            ids = {**names, "cluster": UID, "container": container_id("shop-checkout-1"), "key": keys[Role.VIEWER]["id"], "link": link}
            with _chromium() as browser:
                yield Console(url, ids, browser, {role: _session(browser, url, made["key"]) for role, made in keys.items()})
        finally:
            server.should_exit = True
            thread.join(30)


@contextlib.contextmanager
def _chromium() -> Iterator[Browser]:
    program = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def _session(browser: Browser, url: str, key: str) -> str:
    context = browser.new_context()
    context.request.post(f"{url}/sign-in", form={"api_key": key}, headers={"Origin": url})
    [session] = [cookie["value"] for cookie in context.cookies() if cookie["name"] == "irca_session"]
    context.close()
    return session


async def _migrated(settings: Settings) -> None:
    database = Database(settings.resolved_database_url())
    await database.open()
    await database.close()


def _until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + 30
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the platform does not start")
        time.sleep(0.02)


def _ask(url: str, path: str, body: dict[str, object]) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN_KEY}"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.loads(answer.read()))
