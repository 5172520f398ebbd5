from __future__ import annotations

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from waiting import eventually

from app.events.stream import LiveMessage
from app.fleet.views import Status
from tests.page_clusters import UID
from tests.page_containers import container_id
from tests.page_platform import KEY, PagePlatform, identifier, make_app

pytestmark = pytest.mark.requires("chromium")

ROOT = Path(__file__).resolve().parents[2]
VENDOR = ROOT / "app" / "web" / "static" / "vendor"
WEB_1 = f"/instances/{identifier('web-1')}"
DOCKER = f"/instances/{identifier('staging-1')}"
CLUSTER = f"/clusters/{UID}"
PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1440, "height": 900}


@dataclass
class Served:
    """A platform served on loopback; ``call`` runs something on its event loop."""

    base: str
    platform: PagePlatform
    call: Callable[..., Any]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    platform = PagePlatform(tmp_path)
    yield from _serve(platform)


def _serve(platform: PagePlatform) -> Iterator[Served]:
    if not (VENDOR / "manifest.json").exists():
        pytest.fail("the front-end libraries are missing: run tools/fetch_frontend.py", pytrace=False)
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve([listener])

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(platform), log_level="warning", lifespan="on", timeout_graceful_shutdown=10))
        thread = threading.Thread(target=lambda: asyncio.run(run()), name="page-server")
        thread.start()
        eventually(lambda: server.started)
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", platform, loops[0].call_soon_threadsafe)
        loops[0].call_soon_threadsafe(platform.live.close)
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@dataclass
class Visit:
    """A page in the browser, signed in, and what its console complained of."""

    page: Page
    complaints: list[str]


@pytest.fixture
def visit(browser: Browser, served: Served) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def open_page(path: str = "/", *, sign_in: bool = True, **options: Any) -> Visit:
        context = browser.new_context(base_url=served.base, **{"viewport": WIDE, "timezone_id": "Asia/Tokyo", "locale": "en-GB", **options})
        contexts.append(context)
        context.set_default_timeout(15_000)
        page, complaints = context.new_page(), []
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path)
        if sign_in:
            page.get_by_label("API key").fill(KEY)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(served.base + path)
        return Visit(page, complaints)

    yield open_page
    for context in contexts:
        context.close()


def _drawn(page: Page, count: int = 6) -> None:
    expect(page.locator(".plot canvas")).to_have_count(count)


def test_a_person_signs_in_finds_the_degraded_agent_and_its_reason_and_signs_out(visit, served):
    page = visit("/").page
    page.get_by_role("link", name="2 degraded").click()
    expect(page.get_by_role("row")).to_have_count(3)
    page.get_by_role("link", name="prod-cluster").click()
    expect(page.get_by_text("Collector kubernetes.nodes failed").first).to_be_visible()
    page.get_by_role("link", name="node-a").click()
    expect(page.get_by_text("Permission denied")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    page.goto("/")
    expect(page.get_by_label("API key")).to_be_focused()


def test_a_wrong_key_is_told_at_the_field(visit):
    page = visit("/", sign_in=False).page
    page.get_by_label("API key").fill("irca_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not known to the platform")


def test_typing_filters_the_fleet_and_the_url_follows(visit):
    opened = visit("/agents")
    page = opened.page
    page.get_by_role("searchbox", name="Search").type("prod", delay=20)
    expect(page.locator("#fleet tbody tr")).to_have_count(2)
    page.wait_for_url("**/agents?search=prod")
    page.get_by_label("Type").select_option("server")
    expect(page.locator("#fleet tbody tr")).to_have_count(1)
    page.wait_for_url("**/agents?search=prod&agent_type=server")
    page.reload()
    expect(page.locator("#fleet tbody tr")).to_have_count(1)
    expect(page.get_by_role("searchbox", name="Search")).to_have_value("prod")
    assert opened.complaints == []


def test_the_fleet_changes_as_it_happens_without_losing_what_is_typed(visit, served):
    opened = visit("/agents")
    page = opened.page
    expect(page.locator("#live")).to_have_text("Live")
    page.get_by_label("Environment").focus()
    changed = next(a for a in served.platform.fleet.agents if a.environment_name == "prod-web")
    changed.status, changed.status_reason = Status.OFFLINE, "No heartbeat for 2 min"
    served.call(served.platform.live.publish, LiveMessage("instance", {"instance_id": identifier("web-1"), "agent_id": changed.id}))
    expect(page.locator(f"#agent-{changed.id}")).to_contain_text("No heartbeat for 2 min")
    expect(page.get_by_role("link", name="2 offline")).to_be_visible()
    expect(page.get_by_label("Environment")).to_be_focused()
    assert opened.complaints == []


def test_when_the_session_ends_elsewhere_the_page_goes_to_sign_in(visit, served):
    page = visit("/").page
    expect(page.locator("#live")).to_have_text("Live")
    page.context.clear_cookies()
    served.call(served.platform.live.publish, LiveMessage("agent", {"agent_id": "x"}))
    page.wait_for_url("**/sign-in")


def test_charts_are_drawn_from_the_query_api_and_show_values_under_the_cursor(visit, served):
    opened = visit(WEB_1 + "?range=1h")
    page = opened.page
    _drawn(page)
    asked = served.platform.prometheus.asked
    assert {q["step"] for q in asked} == {"15"}
    assert {float(q["end"]) - float(q["start"]) for q in asked} == {3600.0}
    legend = page.locator(".chart").first.locator(".legend")
    expect(legend.locator("li")).to_have_count(3)
    before = legend.inner_text()
    plot = page.locator(".chart").first.locator(".u-over").bounding_box()
    page.mouse.move(plot["x"] + plot["width"] / 3, plot["y"] + 30)
    expect(legend).not_to_have_text(before)
    assert opened.complaints == []


def test_new_samples_are_appended_by_asking_for_the_end_of_the_range_only(visit, served):
    page = visit(WEB_1).page
    _drawn(page)
    expect(page.locator("#live")).to_have_text("Live")
    before = len(served.platform.prometheus.asked)
    served.call(served.platform.live.publish, LiveMessage("samples", {"instance_id": identifier("web-1")}))
    eventually(lambda: _pumped(page) and len(served.platform.prometheus.asked) >= before + 8)
    later = served.platform.prometheus.asked[before:]
    assert max(float(q["end"]) - float(q["start"]) for q in later) <= 120
    _drawn(page)


def test_samples_of_another_instance_do_not_make_the_page_ask(visit, served):
    page = visit(WEB_1).page
    _drawn(page)
    expect(page.locator("#live")).to_have_text("Live")
    before = len(served.platform.prometheus.asked)
    served.call(served.platform.live.publish, LiveMessage("samples", {"instance_id": "another"}))
    page.wait_for_timeout(6000)
    assert len(served.platform.prometheus.asked) == before


def test_a_failing_query_is_told_in_the_chart_and_can_be_tried_again(visit, served):
    served.platform.prometheus.failing = True
    page = visit(WEB_1).page
    expect(page.get_by_text("the metric store is busy").first).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_have_count(6)  # every chart's query has failed by now
    served.platform.prometheus.failing = False
    for _ in range(6):
        page.get_by_role("button", name="Try again").first.click()
    _drawn(page)


def test_a_range_without_samples_says_so(visit, served):
    served.platform.prometheus.since = time.time() + 3600
    page = visit(WEB_1).page
    expect(page.get_by_text("No data in this range")).to_have_count(6)


def test_the_instance_page_keeps_its_charts_when_the_rest_is_refreshed(visit, served):
    opened = visit(WEB_1)
    page = opened.page
    _drawn(page)
    expect(page.locator("#live")).to_have_text("Live")
    page.evaluate("document.querySelector('.plot canvas').dataset.mark = 'same'")
    changed = next(a for a in served.platform.fleet.agents if a.environment_name == "prod-web").instances[0]
    changed.status, changed.status_reason = Status.DEGRADED, "Collector filesystem failed"
    served.call(served.platform.live.publish, LiveMessage("instance", {"instance_id": changed.id}))
    expect(page.locator("#head")).to_contain_text("Collector filesystem failed")
    expect(page.locator("#details")).to_contain_text("/mnt/backup: Permission denied")
    expect(page.locator("canvas[data-mark=same]")).to_have_count(1)
    assert opened.complaints == []


def _sampled(served: Served) -> None:
    served.call(served.platform.live.publish, LiveMessage("samples", {"instance_id": identifier("staging-1")}))


def _made(served: Served, name: str) -> Any:
    return next(one for one in served.platform.metrics.containers if one.name == name)


def test_the_container_table_follows_the_samples_and_keeps_focus_scroll_and_charts(visit, served):
    opened = visit(DOCKER)
    page = opened.page
    _drawn(page, 4)
    expect(page.locator("#live")).to_have_text("Live")
    link = page.get_by_role("link", name="shop-nginx-1", exact=True)
    link.scroll_into_view_if_needed()
    link.focus()
    scrolled = page.evaluate("scrollY")
    page.evaluate("document.querySelector('.plot canvas').dataset.mark = 'same'")
    asked = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(served.base)) if "/containers" in request.url else None)
    _made(served, "shop-kafka-1").health = "unhealthy"
    for _ in range(5):
        _sampled(served)
    row = page.locator(f"#container-{container_id('shop-kafka-1')}")
    expect(row).to_contain_text("health check fails", timeout=15_000)
    assert asked == [DOCKER + "/containers"]
    expect(link).to_be_focused()
    assert page.evaluate("scrollY") > 0
    assert abs(page.evaluate("scrollY") - scrolled) < 120
    expect(page.locator("canvas[data-mark=same]")).to_have_count(1)
    assert opened.complaints == []


def test_a_removed_container_leaves_the_table(visit, served):
    page = visit(DOCKER + "?search=mailer").page
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.locator("#containers tbody tr")).to_have_count(5)
    _made(served, "shop-mailer-1").until_ms = (time.time() - 60) * 1000
    _sampled(served)
    expect(page.locator("#containers tbody tr")).to_have_count(4, timeout=15_000)


def test_typing_filters_the_containers_and_the_url_follows(visit, served):
    opened = visit(DOCKER + "?range=1h")
    page = opened.page
    page.get_by_role("searchbox", name="Search").type("payments", delay=20)
    expect(page.locator("#containers tbody tr")).to_have_count(1)
    page.wait_for_url("**/*search=payments*")
    assert "range=1h" in page.url
    _sampled(served)
    page.get_by_role("searchbox", name="Search").fill("")
    page.get_by_label("Sort by").select_option("Name")
    expect(page.locator("#containers tbody th a").first).to_have_text("demo-api-gateway-1")
    page.get_by_role("columnheader", name="Name").get_by_role("link").click()
    expect(page.get_by_role("columnheader", name="Name")).to_have_attribute("aria-sort", "descending")
    page.get_by_role("link", name="8 with problems").click()
    expect(page.locator("#containers tbody tr")).to_have_count(8)
    page.get_by_role("link", name="shop-payments-1").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("shop-payments-1")
    expect(page.get_by_text("shop-payments-1 died with exit code 1.")).to_be_visible()
    assert opened.complaints == []


def test_a_containers_page_draws_its_charts_and_follows_the_samples(visit, served):
    opened = visit(f"{DOCKER}/containers/{container_id('shop-checkout-1')}")
    page = opened.page
    _drawn(page)
    assert all(container_id("shop-checkout-1") in query["query"] for query in served.platform.prometheus.asked)
    expect(page.locator("#live")).to_have_text("Live")
    _made(served, "shop-checkout-1").state = "paused"
    _sampled(served)
    expect(page.locator("#head .status")).to_have_text("paused", timeout=15_000)
    assert opened.complaints == []


def test_without_javascript_containers_can_be_searched_and_sorted(visit):
    page = visit(DOCKER, java_script_enabled=False).page
    page.get_by_role("searchbox", name="Search").fill("kafka")
    page.get_by_label("Sort by").select_option("CPU, in cores")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#containers tbody tr")).to_have_count(5)
    expect(page.locator(".spark").first).to_be_visible()
    page.get_by_role("link", name="shop-kafka-1", exact=True).click()
    expect(page.locator(".chart").first).to_contain_text("CPU")


def test_the_cluster_follows_the_samples_and_keeps_what_is_typed(visit, served):
    opened = visit(CLUSTER)
    page = opened.page
    expect(page.locator("#live")).to_have_text("Live")
    page.get_by_role("searchbox", name="Search").type("storefront", delay=20)
    expect(page.locator("#objects tbody tr")).to_have_count(1)
    page.wait_for_url("**/*search=storefront*")
    storefront = next(one for one in served.platform.metrics.cluster.workloads if one.name == "storefront")
    storefront.available = 1
    agent = identifier("agent prod-cluster")
    served.call(served.platform.live.publish, LiveMessage("samples", {"instance_id": identifier("node-a"), "agent_id": agent}))
    expect(page.locator("#objects")).to_contain_text("1 of 4 available", timeout=15_000)
    expect(page.get_by_role("searchbox", name="Search")).to_have_value("storefront")
    assert opened.complaints == []


def test_from_the_agent_to_the_cluster_to_the_container_that_crashes(visit):
    opened = visit(f"/agents/{identifier('agent prod-cluster')}")
    page = opened.page
    page.get_by_role("link", name="nodes, namespaces, workloads").click()
    page.get_by_role("link", name="6 workloads with problems").click()
    expect(page.locator("#objects tbody tr")).to_have_count(6)
    page.get_by_label("Namespace").select_option("shop")
    expect(page.locator("#objects tbody tr")).to_have_count(2)
    page.get_by_role("link", name="checkout", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("checkout")
    expect(page.get_by_text("last ended: Error").first).to_be_visible()
    expect(page.get_by_text("checkout rolls out")).to_be_visible()
    assert opened.complaints == []


def test_without_javascript_a_cluster_can_be_read_and_filtered(visit):
    page = visit(CLUSTER, java_script_enabled=False).page
    page.get_by_role("searchbox", name="Search").fill("postgres")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#objects tbody tr")).to_have_count(1)
    page.get_by_role("link", name="postgres", exact=True).click()
    expect(page.get_by_role("row")).to_have_count(4)
    page.goto(CLUSTER + "?view=namespaces")
    expect(page.locator("td .gauge").first).to_be_visible()


def test_times_are_in_the_viewers_zone_with_the_exact_instant_on_hover(visit, served):
    page = visit(WEB_1).page
    first_seen = page.locator("time[data-exact]").first
    expect(first_seen).not_to_contain_text("UTC")
    assert "GMT+9" in first_seen.get_attribute("title")
    assert first_seen.get_attribute("datetime").endswith("Z")


def test_without_javascript_everything_can_be_read_and_filtered(visit):
    page = visit("/agents", java_script_enabled=False).page
    page.get_by_role("searchbox", name="Search").fill("prod-web")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#fleet tbody tr")).to_have_count(1)
    page.get_by_role("link", name="web-1").click()
    expect(page.locator(".chart").first).to_contain_text("user 31 %")
    expect(page.locator(".plot").first).to_be_hidden()
    page.get_by_text("Latest values").click()
    expect(page.get_by_role("cell", name="1.25 thread")).to_be_visible()


@pytest.mark.parametrize(("viewport", "scheme"), [(PHONE, "dark"), (WIDE, "light")], ids=["phone-dark", "wide-light"])
def test_no_page_has_accessibility_violations_or_scrolls_sideways(visit, scheme, viewport):
    page = visit("/sign-in", sign_in=False, color_scheme=scheme, viewport=viewport).page
    _check(page)
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#live")).to_have_text("Live")
    _check(page)
    for path in (
        "/agents",
        "/agents?search=nowhere",
        f"/agents/{identifier('agent payments-eu')}",
        f"/agents/{identifier('agent edge-berlin')}",
        "/agents/none",
        DOCKER,
        DOCKER + "?search=nowhere",
        f"{DOCKER}/containers/{container_id('shop-search-indexer-1')}",
        f"{DOCKER}/containers/{container_id('old-proxy')}",
        "/clusters",
        CLUSTER,
        CLUSTER + "?view=nodes",
        CLUSTER + "?view=namespaces",
        CLUSTER + "?search=nowhere",
        CLUSTER + "/workloads/deployment/shop/checkout",
        CLUSTER + "/workloads/statefulset/payments/postgres",
    ):
        page.goto(path)
        _check(page)
    page.goto(WEB_1)
    _drawn(page)
    page.get_by_text("Latest values").click()
    _check(page)


def _check(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@pytest.mark.parametrize("viewport", [PHONE, WIDE], ids=["phone", "wide"])
def test_an_empty_fleet_is_accessible_and_its_command_can_be_copied(tmp_path, browser, viewport):
    for served in _serve(PagePlatform(tmp_path, agents=[])):
        context = browser.new_context(base_url=served.base, viewport=viewport, permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.goto("/")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        _check(page)
        page.get_by_role("button", name="Copy").first.click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == "incident-rca provision --type server --environment my-host"
        context.close()


def _pumped(page: Page) -> bool:
    page.wait_for_timeout(50)
    return True
