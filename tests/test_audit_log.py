from __future__ import annotations

import csv
import io
import json

import pytest
from fastapi.testclient import TestClient
from starlette.routing import Route

from app.audit.records import Actor, Target
from app.audit.service import AuditFilter, AuditService
from app.errors import InvalidRequestError
from app.main import create_app
from app.settings import Settings

KEY = "a-preset-admin-key-for-tests"
ANA = Actor("api-key", "k1", "ana", "192.0.2.7", "curl/8")


@pytest.fixture
async def audit(parts) -> AuditService:
    made = AuditService(parts.database, parts.clock)
    for number in range(5):
        parts.clock.advance(60)
        await made.record(ANA, "group.update", Target("group", f"g{number}", f"web-{number}", "prod" if number % 2 else "staging"))
    parts.clock.advance(60)
    await made.record(ANA, "webhook.delete", Target("webhook", "w1", "=cmd()"), outcome="refused", reason="100% not allowed")
    return made


async def pages_of(audit, limit, **wanted) -> list[str]:
    found, cursor = [], None
    while True:
        page = await audit.list_entries(AuditFilter(**wanted), cursor, limit)
        found += [e.target_id for e in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_entries_are_read_newest_first_page_by_page(audit):
    assert await pages_of(audit, 2) == ["w1", "g4", "g3", "g2", "g1", "g0"]
    with pytest.raises(InvalidRequestError):
        await audit.list_entries(AuditFilter(), "nonsense")


async def test_entries_are_found_by_what_they_say(audit):
    assert await pages_of(audit, 10, outcome="refused") == ["w1"]
    assert await pages_of(audit, 10, action="group.update", environment_name="prod") == ["g3", "g1"]
    assert await pages_of(audit, 10, search="WEB-4") == ["g4"]
    assert await pages_of(audit, 10, search="100%") == ["w1"]
    assert await pages_of(audit, 10, search="192.0.2.7", target_kind="webhook") == ["w1"]
    assert await pages_of(audit, 10, search="%") == ["w1"]


async def test_old_entries_are_dropped_when_their_time_is_over_and_in_no_other_way(audit, parts):
    assert await audit.drop_older(90) == 4
    assert await pages_of(audit, 10) == ["w1", "g4"]
    assert not [name for name in dir(AuditService) if name.startswith(("update", "delete", "change", "remove"))]


@pytest.fixture
def client(tmp_path):
    settings = Settings(data_dir=tmp_path / "data", admin_api_key=KEY)
    with TestClient(create_app(settings), headers={"authorization": f"Bearer {KEY}"}) as made:
        yield made


def entries(client, **filters) -> list[dict]:
    return client.get("/api/v1/audit", params=filters).json()["items"]


def test_making_and_revoking_a_key_is_on_record_with_who_from_where_and_without_the_key(client):
    made = client.post("/api/v1/api-keys", json={"name": "ci", "role": "viewer"}).json()
    client.delete(f"/api/v1/api-keys/{made['id']}")
    revoked, created = entries(client, target_id=made["id"])
    assert (created["action"], revoked["action"]) == ("api-key.create", "api-key.revoke")
    assert created["actor_name"] == "preset"
    assert created["client_address"]
    assert created["after"]["role"] == "viewer"
    assert made["key"] not in json.dumps([created, revoked])


def test_signing_in_is_on_record_and_so_is_a_refusal(client):
    client.post("/sign-in", data={"api_key": KEY})
    client.post("/sign-in", data={"api_key": "irca_not_a_key"})
    done, refused = sorted(entries(client, action="session.open"), key=lambda e: e["outcome"])
    assert (done["outcome"], done["actor_name"]) == ("done", "preset")
    assert (refused["actor_kind"], refused["reason"]) == ("anonymous", "this API key is not known to the platform")
    assert "irca_not_a_key" not in json.dumps(refused)


def test_whoever_guesses_keys_is_slowed_down_and_told_when_to_come_back(client):
    answers = [client.post("/sign-in", data={"api_key": f"irca_{n}"}) for n in range(12)]
    assert [a.status_code for a in answers] == [401] * 10 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) > 0


def test_the_log_is_exported_as_json_lines_and_as_csv_without_formulas(client):
    client.post("/api/v1/api-keys", json={"name": "=HYPERLINK(1)", "role": "viewer"})
    lines = client.get("/api/v1/audit/export").text.splitlines()
    assert json.loads(lines[0])["action"] == "api-key.create"
    rows = list(csv.DictReader(io.StringIO(client.get("/api/v1/audit/export", params={"format": "csv"}).text)))
    assert len(rows) == len(lines)
    assert rows[0]["target_name"] == "'=HYPERLINK(1)"
    assert client.get("/api/v1/audit/export", params={"search": "nobody"}).text == ""
    assert client.get("/api/v1/audit/export", params={"search": "nobody", "format": "csv"}).text.count("\n") == 1
    assert client.get("/api/v1/audit/export", params={"start": "2026-01-01T00:00:00"}).status_code == 422


def test_only_admins_read_the_log_and_no_route_changes_it(client):
    viewer = client.post("/api/v1/api-keys", json={"name": "v", "role": "operator"}).json()["key"]
    assert client.get("/api/v1/audit", headers={"authorization": f"Bearer {viewer}"}).status_code == 403
    paths = [route for route in client.app.routes if isinstance(route, Route) and "/audit" in route.path]
    assert all(route.methods <= {"GET", "HEAD"} for route in paths)


def test_the_page_shows_searches_and_links_the_export(client):
    client.post("/api/v1/api-keys", json={"name": "ci-key", "role": "viewer"})
    client.post("/sign-in", data={"api_key": KEY})
    client.headers.pop("authorization")
    page = client.get("/audit").text
    assert "ci-key" in page
    assert "api-key.create" in page
    assert "ci-key" not in client.get("/audit", params={"search": "nobody"}).text
    filtered = client.get("/audit", params={"day": "2020-01-01", "outcome": "done"}).text
    assert "No entry meets these filters." in filtered
    assert "/api/v1/audit/export?" in filtered
    assert client.get("/audit", params={"day": "nonsense", "outcome": "x"}).status_code == 200
