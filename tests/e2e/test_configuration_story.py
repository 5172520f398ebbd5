"""A configuration that is refused, rolled back, put right and reverted in a real browser, with a real agent of this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from e2e.signed_in import PATIENCE, api, chromium, sign_in, until
from playwright.sync_api import Browser, Locator, Page, expect

from tests.served_platform import Served, serve

pytestmark = [pytest.mark.requires("chromium"), pytest.mark.sockets]

LOOK = {"timeout": PATIENCE}
OPTIONS = """
collect_interval = 1
heartbeat_interval = 5
custom_timeout = 120
change_watchers = []
collectors = ["cpu", "memory"]
"""


@dataclass(frozen=True)
class Connected:
    """An agent that runs on this machine, and the platform that it is connected to."""

    served: Served
    agent_id: str
    instance_id: str
    name: str

    @property
    def explained(self) -> dict[str, Any]:
        return dict(api(self.served, "GET", f"/api/v1/instances/{self.instance_id}/configuration"))

    @property
    def effective(self) -> dict[str, Any]:
        return {option["key"]: option["value"] for option in self.explained["options"]}

    @property
    def status(self) -> str:
        return str(api(self.served, "GET", f"/api/v1/instances/{self.instance_id}")["status"])


@pytest.fixture
def connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connected]:
    monkeypatch.setenv("IRCA_HEARTBEAT_INTERVAL", "1")
    (tmp_path / "agent.toml").write_text(OPTIONS)
    with serve(tmp_path / "platform") as served:
        body = {"agent_type": "server", "environment_name": "checkout", "config": {"labels": {"team": "payments"}}}
        made = api(served, "POST", "/api/v1/agent/provision", body)
        program = [str(Path(sys.executable).with_name("incident-rca-agent")), "run", "--type", "server", "--platform-url", served.url]
        program += ["--config-file", str(tmp_path / "agent.toml"), "--state-dir", str(tmp_path / "agent")]
        with (tmp_path / "agent.log").open("wb") as log:
            environment = {**os.environ, "AGENT_TOKEN": made["agent_token"]}
            agent = subprocess.Popen(program, env=environment, stdout=log, stderr=log)
            try:
                path = f"/api/v1/instances?agent_id={made['agent_id']}"
                [instance] = until(lambda: api(served, "GET", path)["items"], lambda found: [one["status"] for one in found] == ["healthy"])
                yield Connected(served, made["agent_id"], instance["id"], instance["name"])
            finally:
                agent.send_signal(signal.SIGTERM)
                try:
                    agent.wait(30)
                except subprocess.TimeoutExpired:
                    agent.kill()
                    agent.wait(10)
        assert agent.returncode == 0, (tmp_path / "agent.log").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def save(page: Page, why: str, **values: str) -> None:
    """Fill in the editor and apply it, over the page that shows what changes."""
    for key, text in values.items():
        enter(page, key, text)
    page.get_by_label("Why").fill(why)
    page.get_by_role("button", name="Show what changes").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("What changes")
    for key in values:
        expect(page.get_by_role("region", name="Changes").get_by_role("row", name=key)).to_be_visible()
    page.get_by_role("button", name="Apply").click()


def enter(page: Page, key: str, text: str) -> None:
    field = page.locator(f"#option-{key}")
    if field.evaluate("node => node.tagName") == "SELECT":
        field.select_option(text)
    else:
        field.fill(text)


def member(page: Page, connected: Connected) -> Locator:
    """The row of the instance on the page of what is configured."""
    return page.locator("#page").get_by_role("row", name=connected.name)


def option(page: Page, key: str) -> Locator:
    """The row of an option on the page that says where each value comes from."""
    return page.locator("table.explained tbody tr").filter(has=page.get_by_role("rowheader", name=re.compile(rf"^{key}\b")))


def configured(connected: Connected) -> tuple[int, dict[str, Any]]:
    found = api(connected.served, "GET", f"/api/v1/agents/{connected.agent_id}/configuration")
    return found["revision"], found["config"]


def be_refused_at_the_field(page: Page) -> None:
    enter(page, "cpu_per_core", "false")
    enter(page, "custom_interval", "0.25")
    page.get_by_role("button", name="Show what changes").click()
    expect(page.get_by_role("alert")).to_contain_text("custom_interval")
    field = page.locator("#option-custom_interval")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_value("0.25")  # what was typed stays
    expect(page.locator("#option-custom_interval-help .error")).to_contain_text("greater than or equal to 1")
    expect(page.locator("[aria-invalid=true]")).to_have_count(1)


def test_a_bad_configuration_is_refused_rolled_back_and_explained_and_a_good_one_is_reverted_by_one_click(connected, browser):
    page_of_agent = f"/agents/{connected.agent_id}/configuration"
    with sign_in(browser, connected.served, "operator", page_of_agent) as someone, socket.create_server(("127.0.0.1", 0)) as silent:
        page = someone.page
        before = configured(connected)

        page.get_by_role("link", name="Configure", exact=True).click()
        be_refused_at_the_field(page)
        assert configured(connected) == before, "nothing is stored"
        enter(page, "custom_interval", "")
        save(page, "quieter", cpu_per_core="false")
        page.wait_for_url(connected.served.url + page_of_agent)
        expect(member(page, connected)).to_contain_text("applied", **LOOK)
        good, _ = configured(connected)

        page.get_by_role("link", name="Configure", exact=True).click()
        target = f"http://127.0.0.1:{silent.getsockname()[1]}/metrics"  # it takes connections and says nothing: the trial stays open
        save(page, "scrape the shop", cpu_per_core="true", custom_prometheus=f"shop={target}")
        expect(member(page, connected)).to_contain_text(re.compile("pending|offered|applying"), **LOOK)
        expect(member(page, connected)).to_contain_text("applying", **LOOK)
        silent.close()
        row = member(page, connected)
        expect(row).to_contain_text("failed", **LOOK)
        expect(row).to_contain_text("custom/shop: ")
        effective = until(lambda: connected.effective, lambda found: found["cpu_per_core"] is False and found["custom_prometheus"] == {})
        assert effective["collectors"] == ["cpu", "memory"], "what the host set stays"
        until(lambda: connected.status, lambda found: found == "healthy")

        row.get_by_role("link", name="each value").click()
        expect(page.locator("#page .head .status")).to_have_text("failed")
        expect(page.locator("#page .head .reason")).to_contain_text("custom/shop: ")
        expect(option(page, "cpu_per_core").locator(".value")).to_have_text("false", **LOOK)
        expect(option(page, "cpu_per_core")).to_contain_text("should be true by agent checkout")
        expect(option(page, "custom_prometheus").locator(".value")).to_have_text("empty")
        expect(option(page, "custom_prometheus")).to_contain_text(f"should be shop={target}")
        expect(option(page, "collect_interval")).to_contain_text("the host itself")

        page.goto(page_of_agent)
        page.get_by_role("link", name="Configure", exact=True).click()
        save(page, "without the shop", custom_prometheus="", custom_interval="30")
        expect(member(page, connected)).to_contain_text("applied", **LOOK)
        effective = until(lambda: connected.effective, lambda found: found["custom_interval"] == 30)
        assert effective["cpu_per_core"] is True
        until(lambda: connected.status, lambda found: found == "healthy")

        page.get_by_role("button", name=f"Revert to revision {good}", exact=True).click()
        page.wait_for_url(connected.served.url + page_of_agent)
        expect(page.locator(".revisions li").first).to_contain_text("current")
        expect(page.get_by_role("region", name="Set for this agent")).to_contain_text("cpu_per_core")
        expect(page.get_by_role("region", name="Set for this agent")).not_to_contain_text("custom_interval")
        until(lambda: connected.effective, lambda found: found["cpu_per_core"] is False and found["custom_interval"] == 60)
        expect(member(page, connected)).to_contain_text("applied", **LOOK)
        assert configured(connected)[1] == {"cpu_per_core": False}
        assert [text for text in someone.complaints if "422" not in text] == []  # Chromium tells of the answer to the refused form


def test_a_group_configures_the_agents_that_it_selects_and_each_value_says_so(connected, browser):
    with sign_in(browser, connected.served, "operator", "/groups") as someone:
        page = someone.page
        page.get_by_role("link", name="New group").first.click()
        page.get_by_label("Name").fill("payments")
        page.get_by_label("Selector").fill("team=payments")
        expect(page.locator("#preview")).to_contain_text("1 instance matches now", **LOOK)
        expect(page.locator("#preview")).to_contain_text(connected.name)
        page.get_by_role("button", name="Create").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("payments")
        group = page.url

        page.get_by_role("link", name="Configure", exact=True).click()
        enter(page, "collect_interval", "0")
        page.get_by_role("button", name="Show what changes").click()
        expect(page.locator("#option-collect_interval-help .error")).to_be_visible()
        expect(page.get_by_role("region", name="Changes")).to_have_count(0)
        enter(page, "collect_interval", "")
        save(page, "quieter", cpu_per_core="false")
        page.wait_for_url(group)
        expect(member(page, connected)).to_contain_text("applied", **LOOK)

        page.get_by_role("link", name="Configure", exact=True).click()
        save(page, "a command that this host does not have", custom_commands="deploys")
        row = member(page, connected)
        expect(row).to_contain_text("failed", **LOOK)
        expect(row).to_contain_text("no command 'deploys' is declared")
        row.get_by_role("link", name="each value").click()
        expect(page.locator("#page .head .reason")).to_contain_text("no command 'deploys' is declared")
        expect(option(page, "custom_commands")).to_contain_text("should be deploys by group payments", **LOOK)
        source = option(page, "cpu_per_core").get_by_role("link", name="group payments")
        expect(source).to_have_attribute("href", group.removeprefix(connected.served.url))
        assert connected.effective["custom_commands"] == []
        until(lambda: connected.status, lambda found: found == "healthy")

        source.click()
        page.wait_for_url(group)
        page.get_by_role("button", name="Revert to revision 1", exact=True).click()
        page.wait_for_url(group)
        expect(member(page, connected)).to_contain_text("applied", **LOOK)
        assert connected.effective["cpu_per_core"] is False
        member(page, connected).get_by_role("link", name="each value").click()
        expect(page.locator("#page .head .status")).to_have_text("applied")
        expect(option(page, "cpu_per_core")).to_contain_text("group payments revision 3")
        expect(option(page, "custom_commands")).to_have_count(0)
        assert [text for text in someone.complaints if "422" not in text] == []


def test_a_viewer_sees_what_is_configured_and_can_change_none_of_it(connected, browser):
    served, agent = connected.served, f"/agents/{connected.agent_id}"
    made = api(served, "POST", "/api/v1/groups", {"name": "payments", "selector": {"matchLabels": {"team": "payments"}}})
    group = f"/groups/{made['id']}"
    for path in (f"/api/v1{agent}/configuration", f"/api/v1{group}/configuration"):
        for quiet in (True, False):
            api(served, "PUT", path, {"config": {"cpu_per_core": quiet}})

    def stored() -> list[Any]:
        parts = (f"{agent}/configuration", f"{group}/configuration", agent, group)
        found = [api(served, "GET", "/api/v1" + part) for part in parts]
        return [found[0]["revision"], found[1]["revision"], found[2]["labels"], found[3]["version"], len(groups())]

    def groups() -> list[Any]:
        return list(api(served, "GET", "/api/v1/groups")["items"])

    before = stored()
    with sign_in(browser, served, "viewer") as someone:
        page = someone.page
        for path in ("/groups", group, f"{agent}/configuration", f"/instances/{connected.instance_id}/configuration"):
            page.goto(path)
            expect(page.locator("main")).to_contain_text("payments" if "instances" not in path else connected.name)
            controls = "main form[method=post], main textarea, main a[href$='/edit'], main a[href$='/new']"
            expect(page.locator(controls)).to_have_count(0)
            expect(page.locator("main").get_by_role("link", name="Configure", exact=True)).to_have_count(0)
            expect(page.locator("main").get_by_role("button", name=re.compile("Revert|Save|Delete"))).to_have_count(0)
        for path in ("/groups/new", f"{group}/edit", f"{group}/configuration", f"{agent}/configuration/edit"):
            assert page.goto(path).status == 403
        page.goto(group)
        applied = {"act": "apply", "config": '{"cpu_per_core": true}'}
        reverted = {"revision": "1", "current": "2"}
        forms = {
            f"{agent}/configuration/edit": applied,
            f"{agent}/revert": reverted,
            f"{agent}/labels": {"labels": "team=mine"},
            f"{group}/configuration": applied,
            f"{group}/revert": reverted,
            f"{group}/edit": {"name": "mine", "selector": ""},
            f"{group}/delete": {},
            "/groups/new": {"name": "mine", "selector": ""},
        }
        assert {path: someone.post(path, fields) for path, fields in forms.items()} == dict.fromkeys(forms, 403)
    assert stored() == before
