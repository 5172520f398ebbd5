"""A whole platform behind a test client, signed in as a person of some role."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import event as sa_event
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings

ADMIN_KEY = "irca_test_" + "k" * 40
BEARER = {"Authorization": f"Bearer {ADMIN_KEY}"}


@contextmanager
def console(data_dir: Path) -> Iterator[TestClient]:
    """The pages of a new platform, to somebody who is not signed in."""
    app = create_app(Settings(data_dir=data_dir, public_url="http://testserver", admin_api_key=ADMIN_KEY))
    with TestClient(app, follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


def sign_in(client: TestClient, role: str = "admin", environments: tuple[str, ...] = ("*",)) -> None:
    """Sign in with a key of this role."""
    made = client.post("/api/v1/api-keys", json={"name": role, "role": role, "environments": list(environments)}, headers=BEARER)
    client.cookies.clear()
    assert client.post("/sign-in", data={"api_key": made.json()["key"]}).status_code == 303


def provision(client: TestClient, environment: str, agent_type: str = "server", **config: object) -> dict[str, str]:
    """Provision over the API; the answer."""
    body = {"agent_type": agent_type, "environment_name": environment, "config": config}
    answer = client.post("/api/v1/agent/provision", json=body, headers=BEARER)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def form_token(page: str) -> str:
    """The token that the forms of a page carry."""
    found = re.search(r'name="form_token" value="([^"]+)"', page)
    assert found
    return found[1]


def text_of(page: str) -> str:
    """What a person reads of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@contextmanager
def statements(client: TestClient) -> Iterator[list[str]]:
    """The SQL statements that the platform makes while the block runs, its jobs' left out."""
    made: list[str] = []
    engine = client.app.state.platform.database._engine.sync_engine

    def note(*arguments: object) -> None:
        if str(arguments[2]).startswith("SELECT"):
            made.append(str(arguments[2]))

    sa_event.listen(engine, "before_cursor_execute", note)
    try:
        yield made
    finally:
        sa_event.remove(engine, "before_cursor_execute", note)
