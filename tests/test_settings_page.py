from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from console_client import ADMIN_KEY, BEARER, console, sign_in, text_of
from starlette.testclient import TestClient

from app.background import Jobs
from app.db.session import Database
from app.installation import OTHERS, effective_settings
from app.settings import Settings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with console(tmp_path / "data") as made:
        yield made


def shown(settings: Settings) -> dict[str, tuple[str, str, str]]:
    return {one.variable: (one.value, one.kind, one.source) for group in effective_settings(settings) for one in group.settings}


def test_every_setting_is_shown_once_with_what_it_means():
    groups = effective_settings(Settings())
    found = [one for group in groups for one in group.settings]
    assert sorted(one.variable for one in found) == sorted(f"IRCA_{name.upper()}" for name in Settings.model_fields)
    assert all(one.description for one in found)
    assert OTHERS not in [group.title for group in groups]


def test_values_are_shown_as_they_would_be_set(monkeypatch):
    monkeypatch.setenv("IRCA_PORT", "9000")
    monkeypatch.setenv("IRCA_OIDC_ROLES", '{"sre": {"role": "operator", "environments": ["prod-*"]}}')
    found = shown(Settings())
    assert found["IRCA_PORT"] == ("9000", "number", "set")
    assert found["IRCA_HOST"] == ("127.0.0.1", "text", "default")
    assert found["IRCA_EVENTS_RETENTION"] == ("7776000", "seconds", "default")
    assert found["IRCA_STATUS_SWEEP_INTERVAL"] == ("2", "seconds", "default")
    assert found["IRCA_MAX_BODY_BYTES"] == ("1048576", "bytes", "default")
    assert found["IRCA_PACKAGES_SELF_BUILT"] == ("true", "switch", "default")
    assert found["IRCA_OIDC_ROLES"][0] == '{"sre": {"role": "operator", "environments": ["prod-*"]}}'
    assert found["IRCA_TLS_KEY"][0] == ""


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql://irca:hunter2@db.test/irca", "postgresql://irca:***@db.test/irca"),
        ("postgresql://db.test/irca?password=hunter2", "postgresql://db.test/irca"),
        ("hunter2", "set"),
    ],
)
def test_secrets_are_told_as_set_or_not_set_only(url, text):
    found = shown(Settings(admin_api_key="hunter2-and-more-of-it", database_url=url))
    assert found["IRCA_ADMIN_API_KEY"][:2] == ("set", "secret")
    assert found["IRCA_OIDC_CLIENT_SECRET"][:2] == ("not set", "secret")
    assert found["IRCA_DATABASE_URL"][0] == text
    assert "hunter2" not in str(found)


def test_the_page_tells_settings_storage_and_jobs_without_secrets(client):
    sign_in(client)
    page = client.get("/settings")
    assert page.status_code == 200
    words = text_of(page.text)
    assert ADMIN_KEY not in page.text
    assert "IRCA_ADMIN_API_KEY set" in words
    assert "IRCA_ARCHIVE_AFTER 1209600 14 d default" in words
    assert "Nothing can be changed on this page" in words
    assert "heartbeat-flush" in words
    assert 'href="/settings" aria-current="page"' in page.text
    assert "<form" not in page.text.partition("<main")[2].partition("</main>")[0]


def test_a_failing_job_is_told_first(client):
    sign_in(client)
    job = client.app.state.platform.jobs.all()[0]
    job.failure, job.last_failure = "StorageError: the disk is full", 1_800_000_000.0
    assert "1 background job fails deployment-flush StorageError: the disk is full" in text_of(client.get("/settings").text)


def test_the_page_and_the_api_are_for_administrators_of_all_environments(client):
    assert client.get("/api/v1/settings").status_code == 401
    for role, environments in (("operator", ("*",)), ("viewer", ("*",)), ("admin", ("team-*",))):
        sign_in(client, role, environments)
        assert client.get("/settings").status_code == 403
        assert client.get("/api/v1/settings").status_code == 403
    assert "/settings" not in client.get("/agents").text or role == "admin"


def test_the_api_answers_the_same(client):
    found = client.get("/api/v1/settings", headers=BEARER).json()
    assert found["storage"]["database"] == "sqlite"
    assert found["storage"]["database_bytes"] > 0
    assert found["schema_revision"].startswith("0")
    assert found["storage"]["audit_entries"] == 1 or found["storage"]["oldest_audit_entry_at"] is None
    assert {"deployment-flush", "webhook-delivery"} <= {job["name"] for job in found["jobs"]}
    assert ADMIN_KEY not in str(found)


async def test_jobs_tell_when_they_ran_and_failed():
    jobs, again = Jobs(lambda: 1000.0), asyncio.Event()

    async def fail() -> None:
        if jobs.all()[0].runs:
            again.set()
        raise RuntimeError("no")

    jobs.add("sometimes", 0.001, fail)
    [job] = jobs.all()
    assert (job.last_run, job.last_failure, job.started) == (None, None, 1000.0)
    await again.wait()
    assert (job.last_run, job.last_failure, job.failure) == (1000.0, 1000.0, "RuntimeError: no")
    await jobs.stop()


async def test_the_database_tells_its_size_and_schema(database_url):
    database = Database(database_url)
    await database.open()
    assert await database.size() > 10_000
    assert (await database.revision()).startswith("0")
    await database.close()
