"""The platform as a chart repository: what it serves, to anybody, and that the real helm takes it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest
import uvicorn
import yaml
from fastapi.testclient import TestClient

from app.api.chart_repository import ChartRepository
from app.errors import NotFoundError
from app.main import create_app
from app.settings import Settings
from connectors._version import __version__
from connectors.kubernetes import chart_package
from connectors.kubernetes.chart_package import chart_directory, chart_version, own_package, pack

NAME = f"incident-rca-agent-{chart_version(__version__)}.tgz"
URL = "http://platform.example.com:8000"


@pytest.fixture
def directory(tmp_path) -> Path:
    made = tmp_path / "artefacts" / "charts"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def client(tmp_path):
    with TestClient(create_app(Settings(data_dir=tmp_path, public_url=URL)), base_url=URL) as made:
        yield made


def older(version: str = "0.0.9", name: str = "incident-rca-agent") -> bytes:
    return pack({"Chart.yaml": f"apiVersion: v2\nname: {name}\nversion: 0\nappVersion: 0\n".encode(), "templates/x.yaml": b""}, version)


def _tarball(path: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(path))
    return packed.getvalue()


def entries(client) -> dict[str, dict]:
    index = yaml.safe_load(client.get("/charts/index.yaml").content)
    assert index["apiVersion"] == "v1"
    return {entry["version"]: entry for entry in index["entries"]["incident-rca-agent"]}


# The package


def test_equal_files_make_equal_bytes_and_a_package_tells_nothing_of_who_made_it():
    files = {"templates/a.yaml": b"a", "Chart.yaml": b"name: x\nversion: 0\nappVersion: 0\n", "values.yaml": b""}

    first, second = pack(files, "1.2.3"), pack(dict(reversed(files.items())), "1.2.3")

    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        members = archive.getmembers()
    assert members[0].name == "incident-rca-agent/Chart.yaml"
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(315_532_800, 0, 0, "", 0o644)}
    assert chart_package.chart_document(first) == b"name: x\nversion: 1.2.3\nappVersion: 1.2.3\n"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.2.3", "1.2.3"),
        ("1.2", "1.2.0"),
        ("1.2.0rc1", "1.2.0-rc1"),
        ("1.2.0.dev4+g1a", "1.2.0-dev4+g1a"),
        ("1.2.3.4", "1.2.3-4"),
        ("odd", "odd"),
    ],
)
def test_a_python_version_becomes_one_that_helm_takes(version, expected):
    assert chart_version(version) == expected


@pytest.mark.requires("helm")
def test_the_package_holds_what_helms_own_packing_would(tmp_path):
    subprocess.run(["helm", "package", str(chart_directory()), "-d", str(tmp_path)], check=True, capture_output=True, timeout=60)

    def contents(packed: bytes) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}

    theirs, ours = contents((tmp_path / NAME).read_bytes()), contents(own_package().content)
    assert theirs.keys() == ours.keys()
    assert yaml.safe_load(theirs.pop("incident-rca-agent/Chart.yaml")) == yaml.safe_load(ours.pop("incident-rca-agent/Chart.yaml"))
    assert theirs == ours


def test_an_incomplete_installation_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(chart_package, "chart_directory", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no chart"):
        chart_package.chart_files()


# What is served


def test_the_index_lists_the_chart_of_this_version_with_its_digest(client):
    entry = entries(client)[chart_version(__version__)]

    package = client.get(f"/charts/{entry['urls'][0]}")
    assert package.status_code == 200
    assert hashlib.sha256(package.content).hexdigest() == entry["digest"]
    assert (entry["name"], entry["apiVersion"], entry["urls"]) == ("incident-rca-agent", "v2", [NAME])
    assert entry["kubeVersion"] == ">=1.20.0-0"
    assert package.headers["content-type"] == "application/gzip"
    assert "immutable" in package.headers["cache-control"]
    assert client.get("/charts/index.yaml").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["index.yaml", NAME, "manifests.yaml"])
def test_head_and_validators_answer_without_the_content(client, path):
    whole = client.get(f"/charts/{path}")
    head = client.head(f"/charts/{path}")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    for known in (whole.headers["etag"], f'"x", W/{whole.headers["etag"]}', "*"):
        answer = client.get(f"/charts/{path}", headers={"if-none-match": known})
        assert (answer.status_code, answer.content) == (304, b"")
    assert client.get(f"/charts/{path}", headers={"if-none-match": '"x"'}).status_code == 200


def test_packages_in_the_data_directory_are_listed_beside_it(client, directory):
    assert "0.0.9" not in entries(client)

    (directory / "incident-rca-agent-0.0.9.tgz").write_bytes(older())

    found = entries(client)
    assert set(found) == {"0.0.9", chart_version(__version__)}
    assert client.get("/charts/incident-rca-agent-0.0.9.tgz").content == older()
    (directory / "incident-rca-agent-0.0.9.tgz").unlink()
    assert "0.0.9" not in entries(client)
    assert client.get("/charts/incident-rca-agent-0.0.9.tgz").status_code == 404


def test_a_package_in_the_data_directory_goes_before_the_one_that_would_be_packed(client, directory):
    signed = older(chart_version(__version__))
    (directory / NAME).write_bytes(signed)

    assert client.get(f"/charts/{NAME}").content == signed
    assert entries(client)[chart_version(__version__)]["digest"] == hashlib.sha256(signed).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("incident-rca-agent-0.0.9.tgz", b"no tarball", "not a gzipped tarball"),
        ("incident-rca-agent-0.0.9.tgz", older()[:-30], "not a gzipped tarball"),
        ("incident-rca-agent-0.0.9.tgz", _tarball("incident-rca-agent/values.yaml"), "no Chart.yaml"),
        ("incident-rca-agent-0.0.8.tgz", older("0.0.9"), "another chart or version"),
        ("incident-rca-agent-0.0.9.tgz", pack({"Chart.yaml": b"{"}, "0.0.9"), "not YAML"),
        ("incident-rca-agent-0.0.9.tgz", pack({"Chart.yaml": b"[]"}, "0.0.9"), "another chart or version"),
    ],
    ids=["text", "cut-off", "no-chart", "other-version", "no-yaml", "a-list"],
)
def test_what_is_no_chart_is_left_out_and_said_once(client, directory, caplog, name, content, reason):
    (directory / name).write_bytes(content)
    (directory / "notes.tgz").write_bytes(b"not even named like one")

    with caplog.at_level(logging.WARNING, "app.api.chart_repository"):
        assert set(entries(client)) == {chart_version(__version__)}
        assert client.get(f"/charts/{name}").status_code == 404

    assert [reason in record.getMessage() for record in caplog.records] == [True]


def test_a_package_that_is_too_large_or_cannot_be_read_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("app.api.chart_repository._LARGEST", 10)
    (tmp_path / "incident-rca-agent-0.0.9.tgz").write_bytes(older())
    (tmp_path / "incident-rca-agent-0.0.7.tgz").symlink_to(tmp_path / "nowhere")
    repository = ChartRepository(tmp_path)

    with pytest.raises(NotFoundError):
        repository.package("incident-rca-agent-0.0.9.tgz")
    assert repository.package(NAME) == own_package().content


def test_provenance_is_served_only_while_it_vouches_for_the_package(client, directory):
    assert client.get(f"/charts/{NAME}.prov").status_code == 404
    (directory / f"{NAME}.prov").write_text(f"files:\n  {NAME}: sha256:{own_package().digest}\n")

    assert own_package().digest in client.get(f"/charts/{NAME}.prov").text

    (directory / NAME).write_bytes(older(chart_version(__version__)))
    refused = client.get(f"/charts/{NAME}.prov")
    assert refused.status_code == 404
    assert "vouches for another package" in refused.json()["detail"]


@pytest.mark.parametrize(
    "name", ["x.tgz", "%2e%2e", "..%2f..%2fstate.db", "a-1.0.0.tgz", "state.db", "x.prov", "a-1.0.0.tgz.prov", "a%00-1.0.0.tgz"]
)
def test_nothing_else_of_the_data_directory_can_be_had(client, directory, name):
    (directory / "x.tgz").write_text("secret")

    answer = client.get(f"/charts/{name}")

    assert answer.status_code == 404
    assert "secret" not in answer.text
    assert client.post("/charts/index.yaml").status_code == 405


# Manifests


def test_manifests_are_rendered_for_the_platform_that_is_asked(client):
    answer = client.get("/charts/manifests.yaml", params={"namespace": "ops", "replicas": "2", "features": "quotas", "log_level": "debug"})

    assert answer.headers["content-type"].startswith("application/yaml")
    objects = {made["kind"]: made for made in yaml.safe_load_all(answer.text)}
    assert {made["metadata"].get("namespace", "ops") for made in objects.values()} == {"ops"}
    [container] = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert (variables["PLATFORM_API_URL"], variables["FEATURES"], variables["LOG_LEVEL"]) == (URL, "quotas", "debug")
    assert "Secret" not in objects
    assert objects["PodDisruptionBudget"]["apiVersion"] == "policy/v1"
    old = client.get("/charts/manifests.yaml", params={"replicas": "2", "kubernetes": "v1.20.2"}).text
    assert "policy/v1beta1" in old


@pytest.mark.parametrize(
    ("query", "field"), [({"replcas": "2"}, "replcas"), ({"replicas": "no"}, "replicas"), ({"kubernetes": "new"}, "kubernetes")]
)
def test_a_parameter_that_does_not_fit_is_named(client, query, field):
    answer = client.get("/charts/manifests.yaml", params=query)

    assert answer.status_code in (400, 422)
    assert [error["field"] for error in answer.json()["errors"]] == [field]


# Real helm


@pytest.fixture
def served(tmp_path, directory):
    """A platform on a socket: its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = create_app(Settings(data_dir=tmp_path, public_url=url))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", log_config=None, ws="none"))
        thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),), name="platform")
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        yield url
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def helm(tmp_path):
    environ = {**os.environ, **{f"HELM_{word}_HOME": str(tmp_path / "helm" / word.lower()) for word in ("CACHE", "CONFIG", "DATA")}}

    def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(["helm", *words], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.mark.sockets
@pytest.mark.requires("helm")
def test_helm_adds_the_platform_and_pulls_the_chart_it_serves(served, helm, tmp_path):
    helm("repo", "add", "incident-rca", f"{served}/charts")
    helm("repo", "update", "incident-rca")

    found = helm("search", "repo", "incident-rca/incident-rca-agent", "--output", "yaml").stdout
    helm("pull", "incident-rca/incident-rca-agent")

    assert [each["version"] for each in yaml.safe_load(found)] == [chart_version(__version__)]
    assert (tmp_path / NAME).read_bytes() == own_package().content


@pytest.fixture
def releaser(tmp_path):
    """A throw-away key in the form that helm reads: the paths of its secret and its public keyring."""
    if not shutil.which("gpg"):
        pytest.skip("gpg is not installed")
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    base = ["gpg", "--homedir", str(home), "--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
    for words in (
        ["--quick-generate-key", "Releaser <releaser@example.com>", "rsa2048", "sign", "never"],
        ["--output", str(tmp_path / "secret.gpg"), "--export-secret-keys"],
        ["--output", str(tmp_path / "public.gpg"), "--export"],
    ):
        subprocess.run([*base, *words], check=True, capture_output=True, timeout=120)
    yield tmp_path / "secret.gpg", tmp_path / "public.gpg"
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], capture_output=True, timeout=30, check=False)


@pytest.mark.sockets
@pytest.mark.requires("helm")
def test_helm_verifies_what_a_releaser_signed(served, helm, directory, releaser, tmp_path):
    secret, public = releaser
    helm("package", str(chart_directory()), "--sign", "--key", "Releaser", "--keyring", str(secret), "--destination", str(directory))
    assert {path.name for path in directory.iterdir()} == {NAME, f"{NAME}.prov"}

    helm("repo", "add", "incident-rca", f"{served}/charts")
    pulled = helm("pull", "incident-rca/incident-rca-agent", "--verify", "--keyring", str(public))

    assert "Releaser" in pulled.stdout + pulled.stderr
    helm("verify", str(tmp_path / NAME), "--keyring", str(public))
    (directory / NAME).write_bytes(own_package().content)
    assert (
        helm(
            "pull", "incident-rca/incident-rca-agent", "--verify", "--keyring", str(public), "--destination", "other", check=False
        ).returncode
        != 0
    )
