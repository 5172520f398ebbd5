"""What is asked of every page of the console, in a real browser: axe-core, both themes, phone and desk, no script, and a viewer's eyes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_registry import ELSEWHERE, PAGES, Console, RegisteredPage, console
from playwright.sync_api import Page

from app.auth.service import Role
from app.main import create_app
from app.settings import Settings
from app.web.rendering import NAVIGATION
from benchmarks.console import page_routes

NARROW, WIDE = 390, 1280
in_a_browser = pytest.mark.requires("chromium")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

COVERED = """() => {
    const nav = document.querySelector("nav")?.getBoundingClientRect(), main = document.querySelector("main")?.getBoundingClientRect();
    if (!nav || !main || !nav.width || !nav.height) return false;
    const across = Math.min(nav.right, main.right) - Math.max(nav.left, main.left);
    const down = Math.min(nav.bottom, main.bottom) - Math.max(nav.top, main.top);
    return across > 1 && down > 1;
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console(tmp_path_factory.mktemp("console")) as made:
        yield made


def opened(served: Console, page: RegisteredPage, tab: Page) -> None:
    answer = tab.goto(served.address(page))
    assert answer is not None
    assert answer.status == 200, f"{tab.url}: {answer.status}"
    tab.wait_for_load_state("load")


@in_a_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@every_page
def test_a_page_has_no_serious_accessibility_violation_and_fits_a_phone_and_a_desk(served, page, theme):
    context = served.context(None if page.role is None else Role.ADMIN, WIDE, theme=theme)
    try:
        tab = context.new_page()
        opened(served, page, tab)
        for width in (WIDE, NARROW):
            tab.set_viewport_size({"width": width, "height": 900})
            found = Axe().run(tab)
            grave = [one for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
            assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in grave] == []
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert not tab.evaluate(COVERED), "the page's content overlaps the navigation"
    finally:
        context.close()


@in_a_browser
@every_page
def test_a_page_is_read_without_javascript(served, page):
    context = served.context(None if page.role is None else Role.ADMIN, java_script_enabled=False)
    try:
        tab = context.new_page()
        opened(served, page, tab)
        assert tab.locator("h1").first.is_visible()
        assert len(tab.locator("main").inner_text().split()) > 3
    finally:
        context.close()


@in_a_browser
@pytest.mark.parametrize("page", [page for page in PAGES if page.role is not None], ids=lambda page: page.name)
def test_a_viewer_is_offered_no_change_on_a_page_or_is_refused_it(served, page):
    context = served.context(Role.VIEWER)
    try:
        tab = context.new_page()
        answer = tab.goto(served.address(page))
        assert answer is not None
        assert answer.status == (200 if page.role is Role.VIEWER else 403)
        assert tab.locator("main form[method=post]").count() == 0
        assert tab.locator("main [hx-post], main [hx-put], main [hx-delete]").count() == 0
    finally:
        context.close()


def test_every_page_and_every_section_of_the_navigation_is_registered(tmp_path):
    routes = page_routes(create_app(Settings(data_dir=tmp_path)))
    addresses = [re.sub(r"\{\w+\}", "x", page.address) for page in PAGES]
    # the first route that matches answers: /groups/new is not /groups/{group_id}
    fixed_first = sorted(routes, key=lambda route: route.path.count("{"))
    answering = {next((r.path for r in fixed_first if r.path_regex.match(address)), address) for address in addresses}
    assert {route.path for route in routes} - answering == set(ELSEWHERE), "enter these in tests/page_registry.py"
    assert {section.path for section in NAVIGATION} <= {page.address for page in PAGES}
    assert len({page.name for page in PAGES}) == len(PAGES)
