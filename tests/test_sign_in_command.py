from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app import cli
from app.commands.server import PlatformServer, sign_in_lines
from app.settings import Settings
from tests.served_platform import ADMIN_KEY, Served, serve


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture
def ready(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setenv("IRCA_URL", served.url)
    monkeypatch.setenv("IRCA_API_KEY", ADMIN_KEY)
    monkeypatch.setenv("IRCA_DATA_DIR", str(served.data_dir))
    monkeypatch.setenv("IRCA_PUBLIC_URL", served.url)
    return served


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["sign-in-link", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def page_of(link: str) -> httpx2.Response:
    return httpx2.get(link, trust_env=False)


@pytest.mark.sockets
def test_the_link_alone_is_on_standard_output_and_signs_in(ready: Served, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys)
    link = out.strip()
    assert (code, "once, until" in err, link not in err) == (0, True, True)
    assert link.startswith(f"{ready.url}/sign-in/link/")
    assert "preset" in page_of(link).text
    signed_in = httpx2.post(link, trust_env=False)
    assert (signed_in.status_code, "irca_session" in signed_in.cookies) == (303, True)


@pytest.mark.sockets
def test_another_key_is_chosen_by_name_and_a_wrong_one_is_told(ready: Served, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["api-keys", "create", "--name", "wall", "--role", "viewer"]) == 0
    capsys.readouterr()
    code, out, _ = run(capsys, "--key", "wall", "--expires-in", "1h", "--json")
    made = json.loads(out)
    assert (code, set(made)) == (0, {"url", "api_key_id", "expires_at"})
    assert "<b>wall</b> (viewer" in page_of(made["url"]).text
    code, _, err = run(capsys, "--key", "nobody")
    assert (code, "there is no API key 'nobody'" in err) == (1, True)


@pytest.mark.sockets
def test_whoever_is_locked_out_gets_one_from_the_platforms_files_while_it_runs(
    ready: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("IRCA_API_KEY")
    code, out, _ = run(capsys, "--offline")
    assert code == 0
    assert "<b>preset</b> (admin" in page_of(out.strip()).text
    code, out, _ = run(capsys, "--offline", "--json", "--key", "preset", "--expires-in", "2h")
    assert (code, json.loads(out)["name"]) == (0, "preset")
    code, _, err = run(capsys, "--offline", "--key", "nobody")
    assert (code, "there is no valid API key 'nobody'" in err) == (1, True)


def test_without_any_admin_key_it_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IRCA_DATA_DIR", str(tmp_path))
    code, _, err = run(capsys, "--offline")
    assert (code, "there is no valid admin key" in err, "api-keys create --offline" in err) == (1, True, True)


def test_the_first_start_prints_a_link_above_the_key_and_later_ones_neither():
    first = sign_in_lines("http://localhost:8000", "irca_key", "http://localhost:8000/sign-in/link/x")
    assert first[0] == "incident-rca is ready at http://localhost:8000"
    assert first[2:] == ["  http://localhost:8000/sign-in/link/x", "  irca_key"]
    assert sign_in_lines("http://localhost:8000", "irca_key")[2:] == ["  irca_key"]
    assert len(sign_in_lines("http://localhost:8000", None)) == 2


@pytest.mark.sockets
def test_the_link_of_the_first_start_signs_in_as_the_first_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from app.commands.setup import listen

    settings = Settings(data_dir=tmp_path, port=0)
    links = []

    async def look(_stopping) -> int:
        links.append(await server.first_run_link())
        async with httpx2.AsyncClient(trust_env=False) as client:
            links.append((await client.get(links[0])).text)
        return 0

    with listen(settings) as listener:
        server = PlatformServer(settings, listener, tmp_path / "platform.log")
        assert server.run(look) == 0
    assert re.fullmatch(r"http://localhost:\d+/sign-in/link/[\w-]{43}", links[0])
    assert "<b>first</b> (admin" in links[1]
    token = links[0].rpartition("/")[2]
    ours = [line for line in (tmp_path / "platform.log").read_text().splitlines() if "[httpx2]" not in line]  # that is this test's client
    assert token not in "\n".join(ours)
