from __future__ import annotations

import hashlib
import hmac
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import annotated_types as at
import pytest
from console_client import BEARER, console, form_token, provision, sign_in, text_of
from starlette.testclient import TestClient

from app.web.connect import LIFETIMES, option_fields, read_config
from app.web.connect_routes import _steps
from app.web.forms import Form
from connectors.agent_factory import AgentFactory
from connectors.core.agent_config import AgentConfig, option
from connectors.core.base_agent import BaseAgent
from connectors.core.errors import ConfigError
from connectors.core.telemetry import Collection


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with console(tmp_path / "data") as made:
        sign_in(made, "operator")
        yield made


def send(client: TestClient, agent_type: str = "server", **fields: object):
    page = client.get(f"/connect/{agent_type}").text
    given = {"environment_name": "prod-eu", **{name.replace("__", "."): value for name, value in fields.items()}}
    return client.post(f"/connect/{agent_type}", data={"form_token": form_token(page), **given})


def fields_of(page: str) -> dict[str, list[str]]:
    """What a browser would send of a form that nobody has touched."""
    found: dict[str, list[str]] = {}
    for tag in re.findall(r"<input [^>]*>", page):
        named = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if "name" in named and (named.get("type") != "checkbox" or " checked" in tag):
            found.setdefault(named["name"], []).append(html.unescape(named.get("value", "")))
    for name, inside in re.findall(r'<select id="[^"]*" name="([^"]+)".*?>(.*?)</select>', page, re.DOTALL):
        chosen = re.findall(r'<option value="([^"]*)" selected>', inside) or re.findall(r'<option value="([^"]*)"', inside)[:1]
        found[name] = chosen
    for name, inside in re.findall(r'<textarea id="[^"]*" name="([^"]+)"[^>]*>\n(.*?)</textarea>', page, re.DOTALL):
        found[name] = [html.unescape(inside)]
    return found


def test_every_type_is_offered_with_what_it_runs_on(client):
    page = client.get("/connect")
    for name in AgentFactory.supported_types():
        assert f'href="/connect/{name}"' in page.text
    assert "Kubernetes 1.20 or newer" in text_of(page.text)
    assert client.get("/connect/mainframe").status_code == 404


def test_a_type_that_is_not_installed_says_why(client, monkeypatch, tmp_path):
    (tmp_path / "bare_agent_type.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(AgentFactory._types, "bare", "bare_agent_type:Agent")
    answer = client.get("/connect")
    assert "Not installed on this platform" in text_of(answer.text)
    assert 'href="/connect/bare"' not in answer.text
    assert client.get("/connect/bare").status_code == 501


@pytest.mark.parametrize("agent_type", AgentFactory.supported_types())
def test_the_untouched_form_asks_for_the_defaults_of_every_option(client, agent_type):
    page = client.get(f"/connect/{agent_type}").text
    sent = fields_of(page)
    options = AgentFactory.agent_class(agent_type).config_class.options()
    assert {f"config.{name}" for name in options} <= set(sent)
    for known in options.values():
        assert known.description.split(".")[0][:30] in text_of(page)
    fields = option_fields(agent_type)
    assert read_config(agent_type, fields, Form(sent)) == ({}, [])
    sent["environment_name"] = ["prod-eu"]
    answer = client.post(f"/connect/{agent_type}", data=sent)
    assert answer.status_code == 201
    assert client.app.state.platform.fleet.registry.agents.popitem()[1].config == {}


def test_options_of_the_running_agent_are_folded_away_and_labels_are_not(client):
    front, advanced = client.get("/connect/server").text.split("<summary>Advanced")
    assert 'name="config.os"' in front
    assert 'name="config.labels"' in front
    assert 'name="config.collect_interval"' in advanced
    assert '<details class="more" open>' not in front + advanced


def test_a_filled_form_gives_the_command_once_with_its_alternatives_instructions_and_expiry(client):
    answer = send(client, config__labels="team=payments\nregion = eu", config__collect_interval="5", token_ttl="1d", token_max_uses="3")
    assert answer.status_code == 201
    page = text_of(answer.text)
    [agent] = client.app.state.platform.fleet.registry.agents.values()
    assert agent.config == {"labels": {"team": "payments", "region": "eu"}, "collect_interval": 5.0}
    assert "curl -fsSL http://testserver/install/linux.sh" in page
    assert "AGENT_TOKEN=agent_prod-eu_" in page
    assert "incident-rca-agent run --type server" in page
    assert "wget instead of curl" in page
    assert "On the host, run the deployment command as root" in page
    assert "enrols 3 machines" in page
    assert "Waiting for the first contact from prod-eu" in page
    assert f'data-refresh="/connect/agents/{agent.id}"' in answer.text
    token = re.search(r"agent_prod-eu_[\w-]+", page)[0]
    for path in (f"/connect/agents/{agent.id}", f"/agents/{agent.id}", "/connect/server"):
        assert token not in client.get(path).text
    [listed] = client.get(f"/api/v1/agents/{agent.id}/tokens").json()["items"]
    assert (listed["max_uses"], listed["uses"]) == (3, 0)
    assert f'datetime="{listed["expires_at"][:19]}' in answer.text
    assert LIFETIMES["1d"][1] == 86_400


def test_who_provisioned_is_in_the_audit_log(client):
    send(client)
    [entry] = client.get("/api/v1/audit", params={"action": "agent.provision"}, headers=BEARER).json()["items"]
    assert (entry["actor_kind"], entry["actor_name"]) == ("session", "operator")


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"environment_name": "no spaces"}, "environment_name", "Must be 1 to 63 letters"),
        ({"token_ttl": "4y"}, "token_ttl", "Must be one of the offered lifetimes"),
        ({"token_max_uses": "many"}, "token_max_uses", "Must be a whole number"),
        ({"token_max_uses": "0"}, "token_max_uses", "greater than or equal to 1"),
        ({"config__collect_interval": "often"}, "config.collect_interval", "Must be a number, not 'often'"),
        ({"config__collect_interval": "0"}, "config.collect_interval", "greater than or equal to 1"),
        ({"config__top_processes": "1.5"}, "config.top_processes", "Must be a whole number"),
        ({"config__labels": "team"}, "config.labels", "Each line must read name=value"),
        ({"config__service_name": "Not A Name"}, "config.service_name", "pattern"),
        ({"config__os": "plan9"}, "config.os", "Input should be"),
        ({"config__certificate_thresholds": "soon"}, "config.certificate_thresholds", "Must be a whole number"),
    ],
)
def test_what_is_wrong_is_told_at_its_field_and_nothing_is_provisioned(client, fields, field, words):
    answer = send(client, **fields)
    assert answer.status_code == 422
    assert words in text_of(re.search(rf'<span class="error" id="{re.escape(field)}-error">.*?</span>', answer.text)[0])
    assert re.search(rf'aria-describedby="{re.escape(field)}-help {re.escape(field)}-error" aria-invalid="true"', answer.text)
    assert client.app.state.platform.fleet.registry.agents == {}
    unfolded = ("environment_name", "config.labels", "config.service_name", "config.os")
    assert ('<details class="more" open>' in answer.text) is (field not in unfolded)


def test_every_wrong_field_is_told_at_once_and_what_was_typed_is_kept(client):
    answer = send(client, environment_name="a b", config__collect_interval="0", config__top_processes="99", config__labels="team=x")
    assert "3 fields need another value" in answer.text
    for kept in ('value="a b"', 'value="99"', "team=x"):
        assert kept in answer.text


def test_what_only_the_whole_configuration_breaks_is_told_at_the_top(client, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("cannot be deployed like this")

    monkeypatch.setattr("connectors.server.server_agent.ServerAgent.__init__", refuse)
    answer = send(client)
    assert answer.status_code == 422
    assert "cannot be deployed like this" in text_of(re.search(r'<p class="error" role="alert">.*?</p>', answer.text)[0])


def test_a_rule_of_the_types_own_is_told_at_its_field(client):
    answer = send(client, config__watch_files="relative/path")
    assert answer.status_code == 422
    assert 'id="config.watch_files-error"' in answer.text


def test_ticked_boxes_and_unticked_ones_are_both_taken(client):
    sent = send(client, config__collectors=["", "cpu", "memory"], config__cpu_per_core="no", config__top_process_arguments=["no", "yes"])
    assert sent.status_code == 201
    [agent] = client.app.state.platform.fleet.registry.agents.values()
    assert agent.config == {"collectors": ["cpu", "memory"], "cpu_per_core": False, "top_process_arguments": True}


@pytest.mark.parametrize("path", ["/connect", "/connect/server"])
def test_a_viewer_gets_no_form_and_is_refused(client, path):
    sign_in(client, "viewer")
    answer = client.get(path)
    assert answer.status_code == 403
    assert 'name="environment_name"' not in answer.text
    assert 'href="/connect"' not in client.get("/").text
    refused = client.post("/connect/server", data={"environment_name": "prod", "form_token": form_token_of(client)})
    assert refused.status_code == 403
    assert client.app.state.platform.fleet.registry.agents == {}


def form_token_of(client: TestClient) -> str:
    """The right token of a session whose pages have no form that carries it."""
    return hmac.new(client.cookies["irca_session"].encode(), b"irca-form", hashlib.sha256).hexdigest()


def test_without_the_pages_token_or_from_another_site_nothing_is_provisioned(client):
    assert client.post("/connect/server", data={"environment_name": "prod"}).status_code == 403
    fields = {"environment_name": "prod", "form_token": form_token_of(client)}
    assert client.post("/connect/server", data=fields, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.app.state.platform.fleet.registry.agents == {}


def test_a_limited_key_connects_its_environments_only(client):
    sign_in(client, "operator", ("team-*",))
    refused = send(client, environment_name="prod")
    assert refused.status_code == 422
    assert "Must be one that your key is for: team-*" in text_of(refused.text)
    assert send(client, environment_name="team-a").status_code == 201
    other = provision(client, "prod")["agent_id"]
    assert client.get(f"/connect/agents/{other}").status_code == 404


def test_the_way_of_a_deployment_can_be_followed_without_javascript(client):
    agent_id = provision(client, "edge")["agent_id"]
    answer = client.get(f"/connect/agents/{agent_id}")
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in answer.text
    assert "Waiting for the first contact from edge" in text_of(answer.text)
    assert client.get("/connect/agents/none").status_code == 404


def test_instructions_become_steps():
    assert _steps("1. One.\n2. Two,\n   goes on.\n\n3. Three") == ["One.", "Two, goes on.", "Three"]
    assert _steps("Just do it.\nNow.") == ["Just do it. Now."]


@dataclass(frozen=True, slots=True, kw_only=True)
class OddConfig(AgentConfig):
    limit: Annotated[int, at.Ge(1)] | None = option(None, "A number, or none.")
    speeds: tuple[float, ...] = option((), "Numbers.")
    mode: Literal["a", "b"] = option("a", "One of two.", scope="deploy")


class OddAgent(BaseAgent):
    agent_type = "odd"
    config_class: ClassVar[type[AgentConfig]] = OddConfig

    def start(self) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""

    def get_deployment_command(self) -> str:
        return f"odd --token {self.agent_token}"

    def _gather_data(self) -> Collection:
        return Collection(0, ())


def test_a_type_of_somebody_else_gets_its_form_and_its_command(client):
    AgentFactory.register("odd", OddAgent)
    try:
        assert 'href="/connect/odd"' in client.get("/connect").text
        assert send(client, "odd", config__limit="0").status_code == 422
        answer = send(client, "odd", config__limit="4", config__speeds="1\n2.5", config__mode="b")
        assert answer.status_code == 201
        assert "odd --token agent_prod-eu_" in text_of(answer.text)
        assert "foreground" not in answer.text
        [agent] = client.app.state.platform.fleet.registry.agents.values()
        assert agent.config == {"limit": 4, "speeds": [1.0, 2.5], "mode": "b"}
    finally:
        AgentFactory.unregister("odd")
