"""The stories of the console in a real browser, on a whole platform with a real agent of this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from opamp_client import OpampAgent
from playwright.sync_api import Browser, Page, expect, sync_playwright
from waiting import eventually

from tests.served_platform import ADMIN_KEY, Served, serve

pytestmark = [pytest.mark.requires("chromium"), pytest.mark.sockets]

PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
FOREGROUND = "In the foreground, where the package incident-rca is installed"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path / "data") as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@dataclass
class Person:
    """Somebody at a browser, signed in; ``complaints`` is what its console said."""

    page: Page
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def person(browser: Browser, served: Served) -> Iterator[Callable[..., Person]]:
    contexts = []

    def sit_down(role: str = "admin", path: str = "/", **options: Any) -> Person:
        key = ask(served, "POST", "/api/v1/api-keys", {"name": role, "role": role})["key"]
        granted = {} if options.get("java_script_enabled") is False else {"permissions": ["clipboard-read", "clipboard-write"]}
        context = browser.new_context(base_url=served.url, **{"viewport": WIDE, "locale": "en-GB", **granted, **options})
        contexts.append(context)
        context.set_default_timeout(15_000)
        made = Person(context.new_page())
        made.page.on("console", lambda m: made.complaints.append(m.text) if m.type in ("error", "warning") else None)
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.page.goto(path)
        made.page.get_by_label("API key").fill(key)
        made.page.get_by_role("button", name="Sign in").click()
        made.page.wait_for_url(served.url + path)
        return made

    yield sit_down
    for context in contexts:
        context.close()


def ask(served: Served, method: str, path: str, body: object = None) -> Any:
    """The API's answer to an admin."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN_KEY}"}
    request = urllib.request.Request(served.url + path, None if body is None else json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def provision(served: Served, environment: str, **config: object) -> dict[str, str]:
    body = {"agent_type": "server", "environment_name": environment, "config": config}
    return dict(ask(served, "POST", "/api/v1/agent/provision", body))


def beat(served: Served, token: str, agent: OpampAgent, **said: object) -> Any:
    """One exchange of a simulated agent over HTTP."""
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{served.url}/v1/opamp", agent.beat(**said), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return agent.read(answer.read())


@contextmanager
def pasted(command: str, state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command as a person pastes it into a shell where the package is installed; stopped by Ctrl-C."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "STATE_DIR": str(state)}
    log = (state.parent / "agent.log").open("wb")
    shell = subprocess.Popen(["bash", "-c", command], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield shell
    finally:
        os.killpg(shell.pid, signal.SIGINT)
        try:
            shell.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait(10)
        log.close()


def test_this_machine_is_connected_from_the_connect_page_and_turns_healthy(person, served, tmp_path):
    someone = person("operator")
    page = someone.page
    page.get_by_role("link", name="Connect an environment").click()
    page.get_by_role("link", name="Server", exact=True).click()
    expect(page.get_by_label("Environment")).to_be_focused()
    page.keyboard.type("this-machine")
    page.get_by_label("Labels", exact=True).fill("team=console")
    page.get_by_text("Advanced: ").click()
    page.get_by_label("Collect interval", exact=True).fill("1")
    page.get_by_label("Heartbeat interval", exact=True).fill("5")
    page.get_by_role("button", name="Get the command").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Connect this-machine")
    expect(page.get_by_text("Waiting for the first contact")).to_be_visible()
    expect(page.locator("#live")).to_have_text("Live")
    page.get_by_text(FOREGROUND).click()
    page.locator("details[open]").get_by_role("button", name="Copy").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert "AGENT_TOKEN=agent_this-machine_" in command
    with pasted(command, tmp_path / "agent") as shell:
        expect(page.locator("#funnel .stage.is-healthy", has_text="First metric")).to_be_visible(timeout=60_000)
        expect(page.locator(".outcome")).to_contain_text("is connected and its metrics are arriving", timeout=60_000)
        expect(page.get_by_text("Run this there")).to_be_visible()  # the command did not go when the page was refreshed
        name = page.locator(".outcome a").inner_text()
        page.locator(".outcome a").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(name.removeprefix("Open "))
        expect(page.locator("#head .status").first).to_have_text("healthy")
        expect(page.locator(".plot canvas").first).to_be_visible(timeout=60_000)  # once a step of the chart has passed
        token = command.split("AGENT_TOKEN=")[1].split()[0]
        running = [shell, *psutil.Process(shell.pid).children(recursive=True)]
        assert token not in " ".join(" ".join(p.cmdline()) for p in running[1:])
    assert someone.complaints == []


def test_a_degraded_agent_and_its_reason_are_found_in_two_clicks(person, served):
    for number in range(20):
        made, machine = provision(served, f"well-{number:02}"), OpampAgent(fingerprint=f"m{number}", host=f"host-{number}")
        beat(served, made["agent_token"], machine, full=True)
    made, sick = provision(served, "checkout"), OpampAgent(fingerprint="sick", host="checkout-1")
    beat(served, made["agent_token"], sick, full=True, healthy=False, error="Collector filesystem failed: /mnt: Permission denied")
    eventually(lambda: any(a["status"] == "degraded" for a in ask(served, "GET", "/api/v1/agents")["items"]))
    page = person("viewer").page
    expect(page.get_by_role("row", name="checkout")).to_contain_text("Permission denied")  # at once, in fact
    page.get_by_role("link", name="1 degraded").click()
    page.get_by_role("link", name="checkout", exact=True).click()
    expect(page.locator(".head")).to_contain_text("Collector filesystem failed: /mnt: Permission denied")


def test_a_viewer_sees_everything_and_can_change_nothing(person, served):
    agent_id = provision(served, "prod")["agent_id"]
    someone = person("viewer")
    page = someone.page
    for path in ("/", "/agents", "/clusters", "/webhooks", "/about", f"/agents/{agent_id}", f"/connect/agents/{agent_id}"):
        assert page.goto(path).status == 200
        offered = page.locator("main form[method=post], main a[href^='/connect']:not([href*='/agents/']), main a[href$='/new']")
        expect(offered).to_have_count(0)
    for path in ("/connect", "/connect/server", "/webhooks/new"):
        assert page.goto(path).status == 403
        expect(page.locator("main form")).to_have_count(0)
    refused = page.evaluate(
        """async () => {
            const body = { agent_type: "server", environment_name: "mine" };
            const send = (path, what) => fetch(path,
                { method: "POST", body: JSON.stringify(what), headers: { "Content-Type": "application/json" } });
            const api = await send("/api/v1/agent/provision", body);
            const hook = await send("/api/v1/webhooks", { name: "x", url: "https://x.test/" });
            const form = await fetch("/connect/server", { method: "POST", body: new URLSearchParams({ environment_name: "mine" }) });
            return [api.status, form.status, hook.status];
        }"""
    )
    assert refused == [403, 403, 403]
    assert [a["environment_name"] for a in ask(served, "GET", "/api/v1/agents")["items"]] == ["prod"]


def test_the_list_is_walked_searched_and_opened_by_keys(person, served):
    for name in ("alpha", "beta", "gamma"):
        provision(served, name)
    someone = person("viewer", "/agents")
    page = someone.page
    page.keyboard.press("j")
    expect(page.get_by_role("link", name="alpha", exact=True)).to_be_focused()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.get_by_role("link", name="gamma", exact=True)).to_be_focused()
    page.keyboard.press("k")
    expect(page.get_by_role("link", name="beta", exact=True)).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("next and previous row")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.get_by_label("Search")).to_be_focused()
    page.keyboard.type("gam?j")  # in a field keys are letters
    expect(page.get_by_label("Search")).to_have_value("gam?j")
    page.get_by_label("Search").fill("gam")
    expect(page.locator("#fleet tbody tr")).to_have_count(1)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("gamma")
    assert someone.complaints == []


def test_without_javascript_an_environment_is_connected_and_followed(person, served):
    page = person("operator", java_script_enabled=False).page
    page.goto("/connect/server")
    page.get_by_role("button", name="Get the command").click()
    expect(page.get_by_text("Must be 1 to 63 letters")).to_be_visible()
    page.get_by_label("Environment").fill("quiet-place")
    page.get_by_role("button", name="Get the command").click()
    expect(page.get_by_label("Deployment command")).to_contain_text("AGENT_TOKEN=agent_quiet-place_")
    way = page.get_by_role("link", name="See how far it is").get_attribute("href")
    following = page.context.new_page()  # as the link does
    following.goto(way)
    expect(following.get_by_text("Waiting for the first contact from quiet-place")).to_be_visible()
    [agent] = ask(served, "GET", "/api/v1/agents")["items"]
    [token] = page.get_by_label("Deployment command").inner_text().split("AGENT_TOKEN=")[1].split()[:1]
    beat(served, token, OpampAgent(host="quiet-1"), full=True)
    expect(following.get_by_text("quiet-1 has made contact")).to_be_visible(timeout=15_000)  # it asks again by itself
    assert following.url.endswith(f"/connect/agents/{agent['id']}")


def test_the_colours_are_switched_on_the_page_and_stay(person, served):
    someone = person("operator", "/", color_scheme="light")
    page = someone.page
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    with page.expect_response("**/theme"):
        page.get_by_role("button", name="Dark").click()
    dark = page.evaluate(background)
    assert dark != light
    expect(page.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")
    page.goto("/agents")
    assert page.evaluate(background) == dark
    with page.expect_response("**/theme"):
        page.get_by_role("button", name="As the system").click()
    assert page.evaluate(background) == light
    page.reload()
    assert page.evaluate(background) == light
    assert someone.complaints == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, WIDE], ids=["phone", "wide"])
def test_the_new_pages_have_no_accessibility_violations_in_either_theme(person, served, theme, viewport):
    page = person("operator", viewport=viewport, color_scheme="light").page
    with page.expect_response("**/theme"):
        page.get_by_role("button", name="Dark" if theme == "dark" else "Light").click()
    check(page)  # an empty fleet
    made, sick = provision(served, "checkout", labels={"team": "payments"}), OpampAgent(fingerprint="sick", host="checkout-1")
    beat(served, made["agent_token"], sick, full=True, healthy=False, error="Collector filesystem failed")
    waiting = provision(served, "edge")["agent_id"]
    eventually(lambda: any(a["status"] == "degraded" for a in ask(served, "GET", "/api/v1/agents")["items"]))
    agents = ("/agents", "/agents?sort=last_seen&order=desc", "/agents?search=nowhere")
    for path in ("/", *agents, "/connect", f"/connect/agents/{waiting}", f"/connect/agents/{made['agent_id']}", "/about"):
        page.goto(path)
        check(page)
        picture(page, f"{theme}-{viewport['width']}-{path.strip('/').replace('/', '-').partition('?')[0][:16] or 'overview'}")
    for agent_type in ("docker", "kubernetes", "server"):
        page.goto(f"/connect/{agent_type}")
        page.get_by_text("Advanced: ").click()
        page.get_by_text("Enrolment token").click()
        check(page)
    page.get_by_label("Environment").fill("not a name")
    page.get_by_role("button", name="Get the command").click()
    expect(page.get_by_role("alert")).to_be_visible()
    check(page)
    picture(page, f"{theme}-{viewport['width']}-refused")
    page.get_by_label("Environment").fill("a-name")
    page.get_by_role("button", name="Get the command").click()
    expect(page.get_by_text("Run this there")).to_be_visible()
    page.get_by_text("Instructions").click()
    page.get_by_text(FOREGROUND).click()
    check(page)
    picture(page, f"{theme}-{viewport['width']}-command")


def check(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, f"{page.url}: {found.generate_report()}"
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"], page.url


def picture(page: Page, name: str) -> None:
    """A look at the page, where somebody wants one: IRCA_TEST_PICTURES names a folder."""
    if folder := os.environ.get("IRCA_TEST_PICTURES", ""):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True, animations="disabled")
