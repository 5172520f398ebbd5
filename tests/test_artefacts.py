"""What the platform serves of deployment artefacts, to anybody."""

from __future__ import annotations

import hashlib
import os

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "artefacts" / "docker"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def client(tmp_path):
    with TestClient(create_app(Settings(data_dir=tmp_path)), base_url="http://localhost:8000") as made:
        yield made


def put(directory, name="image.tar.gz", content=CONTENT):
    (directory / name).write_bytes(content)
    (directory / f"{name}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {name}\n")


@pytest.mark.parametrize("name", ["context.tar.gz", "image.tar.gz"])
def test_whoever_asks_gets_the_file_and_its_checksum(client, directory, name):
    put(directory, name)

    answer, line = client.get(f"/artefacts/docker/{name}"), client.get(f"/artefacts/docker/{name}.sha256")

    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-type"] == "application/gzip"
    assert "content-encoding" not in answer.headers
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["cache-control"] == "no-cache"
    assert line.text == f"{hashlib.sha256(answer.content).hexdigest()}  {name}\n"
    assert line.headers["content-type"].startswith("text/plain")


def test_head_tells_length_and_validator_without_the_file(client, directory):
    put(directory)

    answer = client.head("/artefacts/docker/image.tar.gz")

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["etag"] == client.get("/artefacts/docker/image.tar.gz").headers["etag"]


def test_a_download_that_broke_off_can_be_resumed_unless_the_file_was_made_anew(client, directory):
    put(directory)
    etag = client.head("/artefacts/docker/image.tar.gz").headers["etag"]
    rest = {"range": "bytes=200000-", "if-range": etag}

    resumed = client.get("/artefacts/docker/image.tar.gz", headers=rest)
    assert (resumed.status_code, resumed.content) == (206, CONTENT[200000:])
    assert resumed.headers["content-range"] == f"bytes 200000-{len(CONTENT) - 1}/{len(CONTENT)}"

    put(directory, content=CONTENT[::-1])
    os.utime(directory / "image.tar.gz", (2_000_000_000, 2_000_000_000))
    anew = client.get("/artefacts/docker/image.tar.gz", headers=rest)
    assert (anew.status_code, anew.content) == (200, CONTENT[::-1])
    assert client.get("/artefacts/docker/image.tar.gz", headers={"range": "bytes=9999999-"}).status_code == 416


def test_who_has_the_file_already_need_not_fetch_it_again(client, directory):
    put(directory)
    etag = client.head("/artefacts/docker/image.tar.gz").headers["etag"]

    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        answer = client.get("/artefacts/docker/image.tar.gz", headers={"if-none-match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert client.get("/artefacts/docker/image.tar.gz", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("context.tar.gz", "incident-rca image context"),
        ("image.tar.gz", "incident-rca image build"),
        ("image.tar.gz.sha256", "incident-rca image build"),
    ],
)
def test_what_nobody_has_made_yet_is_told_how_to_make(client, name, command):
    answer = client.get(f"/artefacts/docker/{name}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not-found"
    assert f"`{command}`" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["x", "..", "%2e%2e", "..%2f..%2fstate.db", ".sha256", "image.tar.gz.sha256.sha256", "image.tar.gz%00"])
def test_nothing_else_of_the_data_directory_can_be_had(client, directory, name):
    (directory / "x").write_text("secret")

    answer = client.get(f"/artefacts/docker/{name}")

    assert answer.status_code == 404
    assert "secret" not in answer.text
    assert client.post("/artefacts/docker/image.tar.gz").status_code == 405
