from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from app.main import create_app
from app.settings import Settings
from tests.e2e.test_pages_in_a_browser import PHONE, browser, visit  # noqa: F401 - fixtures
from tests.explored_platform import EVENTS, opamp_beat, server_series, write_events, write_samples
from tests.page_platform import KEY

pytestmark = pytest.mark.requires("chromium")


@dataclass
class Served:
    """A whole platform with a server that has two hours of samples."""

    base: str
    instance: str
    other: str
    call: Callable[..., Any]

    def url(self, *pairs: tuple[str, str]) -> str:
        return "/explore?" + urlencode([("scope", f"instance:{self.instance}"), *pairs])


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = create_app(Settings(data_dir=tmp_path_factory.mktemp("explored"), public_url=base, admin_api_key=KEY))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=3))
        loops: list[asyncio.AbstractEventLoop] = []

        async def run() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve([listener])

        thread = threading.Thread(target=lambda: asyncio.run(run()), name="explored-platform")
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.02)

            def call(function, *arguments):
                return asyncio.run_coroutine_threadsafe(function(*arguments), loops[0]).result(30)

            yield _filled(base, app.state.platform, call)
        finally:
            server.should_exit = True
            thread.join(30)


def _filled(base, platform, call) -> Served:
    body = json.dumps({"agent_type": "server", "environment_name": "prod", "token_max_uses": 2}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(f"{base}/api/v1/agent/provision", body, headers), timeout=10) as answer:
        given = json.loads(answer.read())
    now, agent = time.time(), given["agent_id"]
    found = []
    for host in ("web-1", "web-2"):
        instance = str(opamp_beat(base, given["agent_token"], host).uid)
        found.append(instance)
        call(write_samples, platform, server_series(instance, agent, "prod", host), now - 7200, now)
    call(write_events, platform, found[0], agent, "prod", EVENTS)
    return Served(base, found[0], found[1], call)


def _photograph(page, name):
    if folder := os.environ.get("IRCA_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


FULL = (("metric", "system.cpu.utilization"), ("metric", "system.disk.io"), ("compare", "previous"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["wide", "phone"])
@pytest.mark.parametrize("state", ["full", "choose", "catalogue", "errors", "empty"])
def test_the_explorer_has_no_accessibility_violations_and_does_not_scroll_sideways(visit, served, state, size, scheme):  # noqa: F811 - fixture
    pairs = {
        "full": FULL,
        "choose": (),
        "catalogue": (),
        "errors": (("metric", "queue.depth"), ("from", "2026-02-01"), ("to", "2026-01-01"), ("where", "x"), ("by", "colour")),
        "empty": (("metric", "queue.depth"), ("from", "2026-01-01"), ("to", "2026-01-02")),
    }[state]
    options = {"viewport": PHONE if size == "phone" else {"width": 1280, "height": 900}}
    opened = visit("/explore" if state == "choose" else served.url(*pairs), color_scheme=scheme, bypass_csp=True, **options)
    page = opened.page
    expect(page.get_by_role("heading", name="Explore metrics")).to_be_visible()
    expect(page.locator(".explored-plot canvas")).to_have_count({"full": 2, "errors": 1}.get(state, 0))
    _photograph(page, f"explore-{state}-{size}-{scheme}")
    violations = Axe().run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_of_events_and_of_the_instance_have_no_accessibility_violations(visit, served, scheme):  # noqa: F811 - fixture
    opened = visit(f"/instances/{served.instance}/events", color_scheme=scheme, bypass_csp=True)
    page = opened.page
    _photograph(page, f"events-{scheme}")
    violations = Axe().run(page).response["violations"]
    page.get_by_role("link", name="openssl was upgraded").click()
    expect(page.get_by_role("link", name="Metrics around it")).to_be_visible()
    _photograph(page, f"event-{scheme}")
    violations += Axe().run(page).response["violations"]
    page.get_by_role("link", name="Instance", exact=True).click()
    expect(page.locator(".plot canvas").first).to_be_visible()
    expect(page.get_by_role("link", name="Explore CPU")).to_be_visible()
    _photograph(page, f"instance-{scheme}")
    violations += Axe().run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in violations] == []
    assert opened.complaints == []


def test_without_javascript_the_chart_and_its_figures_are_there_and_the_form_works(visit, served):  # noqa: F811 - fixture
    page = visit(served.url(*FULL), java_script_enabled=False).page
    expect(page.locator(".drawn svg")).to_have_count(2)
    expect(page.locator("svg .line").first).to_be_visible()
    _photograph(page, "explore-without-js")
    page.get_by_label("Add a metric").select_option("queue.depth")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".drawn svg")).to_have_count(3)
    expect(page.get_by_role("row", name=re.compile("queue.depth"))).to_be_visible()


def test_dragging_over_a_chart_zooms_and_the_url_has_it(visit, served):  # noqa: F811 - fixture
    opened = visit(served.url(("metric", "queue.depth"), ("range", "1h")))
    page = opened.page
    box = page.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 100, steps=5)
    page.mouse.up()
    page.wait_for_url(re.compile("from="))
    assert "range=" not in page.url
    expect(page.locator(".explored-plot canvas")).to_have_count(1)
    page.get_by_role("link", name="Zoom out").click()
    page.wait_for_url(re.compile("from="))
    page.go_back()
    page.go_back()
    expect(page.locator(".ranges [aria-current]")).to_have_text("1 hour")
    assert opened.complaints == []


def test_the_cursor_tells_the_values_under_it(visit, served):  # noqa: F811 - fixture
    page = visit(served.url(("metric", "queue.depth"))).page
    expect(page.get_by_text("At cursor")).to_be_hidden()
    box = page.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 120)
    expect(page.get_by_text("At cursor")).to_be_visible()
    expect(page.locator("td.under")).to_have_text(re.compile(r"\d.* job"))


def test_a_mark_leads_to_what_happened_and_that_to_the_event(visit, served):  # noqa: F811 - fixture
    opened = visit(served.url(("metric", "queue.depth")))
    page = opened.page
    page.get_by_role("button", name="nightly-backup.service failed").click()
    entry = page.locator(".event.is-marked")
    expect(entry).to_contain_text("nightly-backup.service failed")
    expect(entry).to_be_focused()
    assert "#event-" in page.url
    entry.get_by_role("link").click()
    expect(page.get_by_role("heading", name="nightly-backup.service failed with exit code <1>.")).to_be_visible()
    assert opened.complaints == []


def test_the_query_can_be_copied_and_asked_of_the_prometheus_api(visit, served):  # noqa: F811 - fixture
    page = visit(served.url(("metric", "queue.depth")), permissions=["clipboard-read", "clipboard-write"]).page
    page.locator(".promql summary").click()
    page.get_by_role("button", name="Copy").click()
    assert "queue_depth{" in page.evaluate("navigator.clipboard.readText()")
    with page.expect_navigation():
        page.get_by_role("link", name="The same from the Prometheus API").click()
    assert '"status":"success"' in page.content().replace("&quot;", '"')


def test_what_is_left_empty_does_not_stand_in_the_url(visit, served):  # noqa: F811 - fixture
    page = visit(served.url(("metric", "queue.depth"))).page
    page.get_by_label("Compare with").select_option(f"instance:{served.other}")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile("compare="))
    assert "agg=" not in page.url
    expect(page.get_by_role("columnheader", name="Avg there")).to_be_visible()
