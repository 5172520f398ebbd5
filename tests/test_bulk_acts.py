from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents_in_memory import agent, with_instance
from console_client import BEARER, console, form_token, provision, sign_in, text_of
from platform_fixtures import START
from served_platform import ADMIN_KEY as SERVED_KEY
from served_platform import provision as served_provision
from served_platform import serve
from starlette.testclient import TestClient

from app import cli
from app.errors import InvalidRequestError
from app.fleet import repository
from app.fleet.listing import AgentFilter
from app.fleet.registry import Agent, Instance, Registry
from app.fleet.views import Status
from app.groups.bulk import MOST_IN_WINDOW, Act, Outcome, Selection, Work, plan
from app.groups.selectors import MAX_LABELS

EVERY = Selection(matching=AgentFilter())


def fleet() -> Registry:
    registry = Registry()
    for name, status in (("gone", Status.OFFLINE), ("team-up", Status.HEALTHY), ("old", Status.ARCHIVED)):
        made = agent(name, team="web")
        registry.add_agent(made)
        registry.add_instance(with_instance(made, status))
    return registry


def planned(registry: Registry, act: Act, selection: Selection = EVERY, label: str = "", sees=lambda _: True):
    return plan(Work(act, label), selection, registry, sees)


def outcomes(made) -> dict[str, tuple[str, str]]:
    return {item.environment_name: (item.outcome.value, item.reason) for item in made.items}


def test_a_plan_says_what_becomes_of_each_refusals_first():
    registry = fleet()
    archive = planned(registry, Act.ARCHIVE)
    assert outcomes(archive) == {
        "gone": ("done", ""),
        "team-up": ("refused", "team-up-1 is heard and would come back at once: stop it first"),
        "old": ("unchanged", "old-1 is archived already"),
    }
    assert [i.outcome for i in archive.items] == [Outcome.REFUSED, Outcome.DONE, Outcome.UNCHANGED]
    assert outcomes(planned(registry, Act.REVIVE))["old"][0] == "done"
    assert outcomes(planned(registry, Act.REVIVE))["gone"] == ("unchanged", "gone-1 is not archived")
    assert outcomes(planned(registry, Act.REVOKE_CREDENTIALS))["gone"] == ("unchanged", "gone-1 has no credential")


def test_labels_are_planned_for_each_agent():
    registry = fleet()
    full = next(iter(registry.agents.values()))
    full.labels = {f"l{n}": "x" for n in range(MAX_LABELS)}
    added = outcomes(planned(registry, Act.ADD_LABEL, label="team=web"))
    assert [added[name][0] for name in ("gone", "team-up", "old")] == ["refused", "unchanged", "unchanged"]
    assert outcomes(planned(registry, Act.ADD_LABEL, label="l1=y"))["gone"][0] == "done"
    assert outcomes(planned(registry, Act.REMOVE_LABEL, label="team"))["old"][0] == "done"
    assert outcomes(planned(registry, Act.REMOVE_LABEL, label="team=db"))["old"] == ("unchanged", "it has no label team=db")


@pytest.mark.parametrize(
    ("act", "label"), [(Act.ADD_LABEL, "team"), (Act.ADD_LABEL, "=x"), (Act.ADD_LABEL, "a b=c"), (Act.REMOVE_LABEL, " ")]
)
def test_a_label_that_no_agent_can_have_is_refused_as_a_whole(act, label):
    with pytest.raises(InvalidRequestError):
        planned(fleet(), act, label=label)


def test_what_may_not_be_seen_is_not_there():
    registry = fleet()
    ids = [*registry.agents, "nobody"]
    made = planned(registry, Act.MAINTENANCE, Selection(agent_ids=ids), sees=lambda name: name.startswith("team-"))
    assert (made.count(Outcome.DONE), made.count(Outcome.REFUSED)) == (1, 3)
    assert {i.reason for i in made.items if i.outcome is Outcome.REFUSED} == {
        f"there is no agent {i}" for i in ids if i != made.agents[0].id
    }
    limited = planned(registry, Act.ARCHIVE, EVERY, sees=lambda name: name.startswith("team-"))
    assert list(outcomes(limited)) == ["team-up"]
    hidden = planned(registry, Act.ARCHIVE, Selection(instance_ids=list(registry.instances)), sees=lambda _: False)
    assert hidden.count(Outcome.REFUSED) == 3


def test_a_selection_is_one_of_three_and_fits_the_act():
    registry = fleet()
    for wrong in (Selection(), Selection(agent_ids=["a"], matching=AgentFilter())):
        with pytest.raises(InvalidRequestError, match="not valid"):
            planned(registry, Act.ARCHIVE, wrong)
    with pytest.raises(InvalidRequestError):
        planned(registry, Act.MAINTENANCE, Selection(instance_ids=list(registry.instances)))
    assert planned(registry, Act.REVIVE, Selection(instance_ids=list(registry.instances))).count(Outcome.DONE) == 1


def test_one_window_names_a_bounded_number_of_agents():
    registry = Registry()
    for number in range(MOST_IN_WINDOW + 1):
        registry.add_agent(agent(f"env-{number}"))
    with pytest.raises(InvalidRequestError, match="at most 500 agents"):
        planned(registry, Act.MAINTENANCE)


def test_the_mark_of_a_plan_tells_one_from_another():
    registry = fleet()
    assert planned(registry, Act.ARCHIVE).mark == planned(registry, Act.ARCHIVE).mark
    assert planned(registry, Act.ARCHIVE).mark != planned(registry, Act.REVIVE).mark
    assert planned(registry, Act.ADD_LABEL, label="a=b").mark != planned(registry, Act.ADD_LABEL, label="a=c").mark


# The same through HTTP.


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with console(tmp_path / "data") as made:
        yield made


def joined(client: TestClient, environment: str, status: Status = Status.OFFLINE, **labels: str) -> Instance:
    """An instance of a new agent, as if it had been heard and had this status since; with a credential."""
    agent_id = provision(client, environment, labels=labels)["agent_id"]
    platform = client.app.state.platform
    known: Agent = platform.fleet.registry.agents[agent_id]
    digest = uuid.uuid4().bytes * 2
    one = Instance(
        str(uuid.uuid4()), known, "f", f"{environment}-host", "0.2.0", status=status, status_since=START - 600, last_seen=START - 600
    )
    one.said_goodbye, one.heard, one.credential_hash = status is Status.STOPPED, START - 600, digest

    async def save() -> None:
        async with platform.database.write() as session:
            await repository.save_instance(session, one.columns())

    client.portal.call(save)
    platform.fleet.registry.add_instance(one)
    return one


def bulk(client: TestClient, headers=BEARER, **body: object):
    return client.post("/api/v1/instances/bulk", json=body, headers=headers)


def actions(client: TestClient) -> list[str]:
    found = client.get("/api/v1/audit?limit=500", headers=BEARER).json()["items"]
    return [e["action"] for e in found]


def test_a_dry_run_changes_nothing_and_the_act_does_what_it_said(client):
    for number in range(3):
        joined(client, f"env-{number}", Status.STOPPED, team="web")
    up = joined(client, "up", Status.HEALTHY, team="web")
    body = {"act": "archive", "filter": {"label": ["team=web"]}}
    dry = bulk(client, **body, dry_run=True).json()
    assert (dry["done"], dry["refused"], dry["dry_run"]) == (3, 1, True)
    assert "instance.archive" not in actions(client)
    up.status, up.heard, up.healthy = Status.HEALTHY, 4e9, True
    done = bulk(client, **body).json()
    assert (done["done"], done["refused"], done["items"][0]["environment_name"]) == (3, 1, "up")
    assert actions(client).count("instance.archive") == 3
    assert bulk(client, **body).json()["unchanged"] == 3
    revived = bulk(client, act="revive", filter={"label": ["team=web"]}).json()
    assert revived["done"] == 3
    names = [e["name"] for e in client.get("/api/v1/events?limit=100", headers=BEARER).json()["items"]]
    assert (names.count("irca.instance.archived"), names.count("irca.instance.revived")) == (3, 3)


def test_labels_credentials_and_maintenance_reach_all_that_are_selected(client):
    made = [joined(client, f"env-{number}") for number in range(3)]
    ids = [one.agent.id for one in made]
    assert bulk(client, act="add-label", agent_ids=ids, label="tier=front").json()["done"] == 3
    assert {client.get(f"/api/v1/agents/{i}", headers=BEARER).json()["labels"]["tier"] for i in ids} == {"front"}
    assert bulk(client, act="remove-label", agent_ids=ids[:2], label="tier").json()["done"] == 2
    assert bulk(client, act="remove-label", filter={}, label="tier").json()["unchanged"] == 2
    assert bulk(client, act="revoke-credentials", instance_ids=[made[0].id]).json()["done"] == 1
    assert made[0].credential_hash is None
    window = bulk(client, act="maintenance", agent_ids=ids, reason="kernel", duration=600).json()
    shown = client.get(f"/api/v1/maintenance-windows/{window['maintenance_window_id']}", headers=BEARER).json()
    assert (shown["agents"], shown["reason"]) == (3, "kernel")
    told = actions(client)
    assert [told.count(a) for a in ("agent.label", "credential.revoke", "maintenance.create")] == [6, 1, 1]
    for wrong in ({"act": "archive"}, {"act": "maintenance", "agent_ids": ids}, {"act": "add-label", "agent_ids": ids}, {"act": "burn"}):
        assert bulk(client, **wrong).status_code == 422


def test_a_key_of_some_environments_reaches_those_and_is_told_of_the_rest(client):
    mine, other = joined(client, "team-a"), joined(client, "prod")
    made = client.post("/api/v1/api-keys", json={"name": "t", "role": "operator", "environments": ["team-*"]}, headers=BEARER).json()
    team = {"Authorization": f"Bearer {made['key']}"}
    answer = bulk(client, team, act="maintenance", agent_ids=[mine.agent.id, other.agent.id], reason="x", duration=60).json()
    assert (answer["done"], answer["refused"]) == (1, 1)
    assert answer["items"][0]["reason"] == f"there is no agent {other.agent.id}"
    assert answer["items"][0]["environment_name"] == ""
    assert bulk(client, team, act="add-label", filter={}, label="a=b").json()["done"] == 1
    assert "a" not in other.agent.labels
    viewer = client.post("/api/v1/api-keys", json={"name": "v", "role": "viewer"}, headers=BEARER).json()
    assert bulk(client, {"Authorization": f"Bearer {viewer['key']}"}, act="archive", filter={}).status_code == 403


def hidden(page: str) -> dict[str, list[str]]:
    """The fields of the form that confirms."""
    form = page.partition('action="/agents/bulk"')[2].partition("</form>")[0]
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(r'name="([^"]+)" value="([^"]*)"', form):
        fields.setdefault(name, []).append(value)
    return fields


def test_the_page_shows_what_will_happen_and_does_it_when_it_is_confirmed(client):
    for number in range(25):
        joined(client, f"env-{number:02}", Status.STOPPED)
    sign_in(client, "operator")
    page = client.get("/agents?agent_type=server").text
    assert page.count("data-pick ") == 25
    assert '<input type="hidden" name="agent_type" value="server" form="bulk">' in page
    asked = client.post("/agents/bulk", data={"form_token": form_token(page), "act": "archive", "all": "1", "agent_type": "server"})
    words = text_of(asked.text)
    assert "Archive : 25 instances" in words or "Archive: 25 instances" in words
    assert "and 5 more" in words
    assert "instance.archive" not in actions(client)
    done = client.post("/agents/bulk", data=hidden(asked.text))
    assert "25 instances changed" in text_of(done.text)
    assert 'href="/agents?agent_type=server"' in done.text
    assert actions(client).count("instance.archive") == 25
    again = client.post("/agents/bulk", data={"form_token": form_token(page), "act": "archive", "all": "1"})
    assert "all of them are so already" in text_of(again.text)


def test_what_changed_meanwhile_is_shown_again_instead_of_done(client):
    first = joined(client, "one", Status.STOPPED)
    sign_in(client, "operator")
    token = form_token(client.get("/agents").text)
    asked = client.post("/agents/bulk", data={"form_token": token, "act": "archive", "all": "1"})
    joined(client, "two", Status.STOPPED)
    late = client.post("/agents/bulk", data=hidden(asked.text))
    assert late.status_code == 409
    assert "has changed meanwhile" in text_of(late.text)
    assert first.status is Status.STOPPED
    assert "2 instances changed" in text_of(client.post("/agents/bulk", data=hidden(late.text)).text)


def test_maintenance_asks_for_a_reason_and_leads_to_the_windows(client):
    one = joined(client, "prod")
    sign_in(client, "operator")
    token = form_token(client.get("/agents").text)
    asked = client.post("/agents/bulk", data={"form_token": token, "act": "maintenance", "agent": one.agent.id})
    fields = hidden(asked.text)
    refused = client.post("/agents/bulk", data={**fields, "reason": "", "duration": "3600"})
    assert refused.status_code == 422
    assert "others will ask why" in text_of(refused.text)
    made = client.post("/agents/bulk", data={**fields, "reason": "disks", "duration": "3600"})
    assert (made.status_code, made.headers["location"]) == (303, "/maintenance")


def test_refusals_and_mistakes_are_told(client):
    one = joined(client, "prod", Status.STOPPED)
    sign_in(client, "operator")
    token = form_token(client.get("/agents").text)
    form = {"form_token": token, "act": "archive", "agent": [one.agent.id, "nobody"]}
    asked = client.post("/agents/bulk", data=form)
    assert "1 is left out nobody there is no agent nobody" in text_of(asked.text)
    assert client.post("/agents/bulk", data={**form, "agent": []}).status_code == 422
    assert client.post("/agents/bulk", data={**form, "act": "burn"}).status_code == 422
    assert client.post("/agents/bulk", data={**form, "act": "add-label"}).status_code == 422
    labelled = client.post("/agents/bulk", data={**form, "act": "add-label", "bulk_label": "a=<b>"})
    assert "get the label <code>a=&lt;b&gt;</code>" in labelled.text


def test_a_viewer_has_nothing_to_act_with_and_is_refused(client):
    one = joined(client, "prod")
    sign_in(client, "viewer")
    page = client.get("/agents").text
    assert 'type="checkbox"' not in page
    assert "/agents/bulk" not in page
    assert client.post("/agents/bulk", data={"act": "archive", "agent": one.agent.id, "form_token": "x"}).status_code == 403


@pytest.mark.sockets
def test_the_command_shows_asks_and_does(tmp_path, monkeypatch, capsys):
    with serve(tmp_path / "data") as served:
        served_provision(served, "linux")
        monkeypatch.setenv("IRCA_URL", served.url)
        monkeypatch.setenv("IRCA_API_KEY", SERVED_KEY)

        def run(*arguments: str) -> tuple[int, str, str]:
            capsys.readouterr()
            code = cli.main(["agents", "bulk", *arguments])
            out, err = capsys.readouterr()
            return code, out, err

        code, out, err = run("add-label", "--all", "--label", "tier=1", "--dry-run")
        assert (code, "desks" in out, err) == (0, True, "Would be done: 1, refused: 0, so already: 0.\n")
        assert run("add-label", "desks", "--label", "tier=1", "--yes")[2].startswith("Done: 1,")
        assert run("add-label", "--having", "tier=1", "--label", "tier=1", "--yes")[2] == "Done: 0, refused: 0, so already: 1.\n".replace(
            "Done", "Would be done"
        )
        code, out, _ = run("maintenance", "desks", "--reason", "disks", "--for", "30m", "--yes", "--json")
        assert (code, json.loads(out)["done"]) == (0, 1)
        for wrong in (("burn", "--all"), ("archive",), ("archive", "desks", "--all"), ("archive", "--all", "--json")):
            assert run(*wrong)[0] == 2
