from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from app.events.stream import LiveMessage
from app.fleet.funnel import DeploymentStep, ToldStep
from tests.e2e.test_pages_in_a_browser import PHONE, browser, served, visit  # noqa: F401 - fixtures
from tests.page_host import host_changes, host_shapes, process_shapes, unit_shapes
from tests.page_platform import PagePlatform, identifier

pytestmark = pytest.mark.requires("chromium")

WEB = f"/instances/{identifier('web-1')}"
AGENT = f"/agents/{identifier('agent edge-berlin')}"


@pytest.fixture(autouse=True)
def host(served):  # noqa: F811 - the fixture imported above
    platform: PagePlatform = served.platform
    platform.metrics.shapes = [*host_shapes(), *unit_shapes(nightly_backup="failed", nginx="active"), *process_shapes(arguments=True)]
    served.call(lambda: _record(platform))


def _record(platform):
    platform.recording = asyncio.ensure_future(platform.events.record(host_changes(identifier("agent prod-web"), identifier("web-1"))))


def _told(minutes, step, **more):
    return ToldStep(step, "edge-1", datetime.now(UTC) - timedelta(minutes=minutes), **more)


def _photograph(page, name):
    if folder := os.environ.get("IRCA_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["wide", "phone"])
def test_the_host_page_has_no_accessibility_violations_and_does_not_scroll_sideways(visit, scheme, size):  # noqa: F811 - likewise
    options = {"viewport": PHONE} if size == "phone" else {}
    opened = visit(WEB, color_scheme=scheme, bypass_csp=True, **options)
    page = opened.page
    expect(page.get_by_role("heading", name="Resources")).to_be_visible()
    expect(page.locator("#changes").get_by_text("openssl was upgraded")).to_be_visible()
    page.locator("#changes summary").click()
    _photograph(page, f"host-{size}-{scheme}")
    violations = Axe().run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_funnel_has_no_accessibility_violations(visit, served, scheme):  # noqa: F811 - likewise
    served.platform.fleet.told = [
        _told(4, DeploymentStep.DOWNLOADED),
        _told(3, DeploymentStep.FAILED, check="preflight systemd", reason="this host has neither systemd nor OpenRC"),
    ]
    page = visit(AGENT, color_scheme=scheme, bypass_csp=True).page
    expect(page.get_by_text("this host has neither systemd nor OpenRC")).to_be_visible()
    _photograph(page, f"funnel-{scheme}")
    violations = Axe().run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in violations] == []


def test_new_samples_reach_the_page_by_themselves(visit, served):  # noqa: F811 - likewise
    page = visit(WEB).page
    expect(page.locator("#host").get_by_text("62.5 %")).to_be_visible()
    expect(page.locator("#live")).to_have_text("Live")
    served.platform.metrics.shapes = [s if s[0] != "system.process.count" else (*s[:4], 333.0) for s in host_shapes()]
    message = LiveMessage("samples", {"instance_id": identifier("web-1"), "agent_id": identifier("agent prod-web")})
    served.call(served.platform.live.publish, message)
    expect(page.locator("#host").get_by_text("333")).to_be_visible(timeout=15_000)


def test_a_step_of_a_deployment_reaches_the_page_by_itself(visit, served):  # noqa: F811 - likewise
    page = visit(AGENT).page
    funnel = page.locator("#funnel")
    expect(funnel.get_by_text("waiting")).to_have_count(4)
    expect(page.locator("#live")).to_have_text("Live")
    served.platform.fleet.told = [_told(0, DeploymentStep.DOWNLOADED)]
    served.call(served.platform.live.publish, LiveMessage("agent", {"agent_id": identifier("agent edge-berlin")}))
    expect(funnel.get_by_text("waiting")).to_have_count(3)
