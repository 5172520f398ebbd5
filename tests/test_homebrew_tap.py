from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from served_platform import DAY, LINUX, MAC_ARM, MAC_INTEL, publish, serve

from app.api.tap_routes import TAP_PATH
from app.errors import NotFoundError, StorageError
from app.main import create_app
from app.releases import git_objects
from app.releases.tap import TapRepository
from app.settings import Settings
from connectors.server.homebrew import FORMULA_PATH, formula

GIT = shutil.which("git")
URL = "https://platform.example.com/base"
BUNDLES = {"aarch64": (f"{URL}/arm.tar.gz", "a" * 64), "x86_64": (f"{URL}/intel.tar.gz", "b" * 64)}
needs_git = pytest.mark.skipif(not GIT, reason="git is not installed")


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def client(data_dir):
    with TestClient(create_app(Settings(data_dir=data_dir)), base_url="http://localhost:8000") as made:
        yield made


def git(*words, cwd=None):
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run([GIT, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tap(url, target):
    """What ``brew tap`` runs."""
    git("clone", f"{url}{TAP_PATH}", target, "--origin=origin", "--template=", "--config", "core.fsmonitor=false")


def update(target):
    """What ``brew update`` runs: a fetch, and a merge that must be a fast-forward."""
    git("fetch", "--tags", "--force", "-q", "origin", "refs/heads/main:refs/remotes/origin/main", cwd=target)
    git("merge", "--no-edit", "--ff-only", "origin/main", cwd=target)


@needs_git
@pytest.mark.sockets
def test_git_clones_the_tap_and_finds_a_formula_that_pins_the_package(data_dir, tmp_path):
    manifest = publish(data_dir, "1.0.0", MAC_ARM, MAC_INTEL, LINUX)
    with serve(data_dir) as served:
        tap(served.url, tmp_path / "tap")
        text = (tmp_path / "tap" / FORMULA_PATH).read_text()
        for file in manifest.files:
            url = f"{served.url}/packages/1.0.0/{file.name}"
            if file.os == "macos":
                assert f'url "{url}"\n    sha256 "{file.sha256}"' in text
                with urllib.request.urlopen(url, timeout=10) as answer:  # what Homebrew would download
                    assert hashlib.sha256(answer.read()).hexdigest() == file.sha256
            else:
                assert url not in text
    assert git("log", "--format=%s", cwd=tmp_path / "tap") == "incident-rca-agent 1.0.0\n"
    assert git("fsck", "--strict", "--full", cwd=tmp_path / "tap") == ""


@needs_git
@pytest.mark.sockets
def test_every_release_is_one_more_commit_and_every_fetch_a_fast_forward(data_dir, tmp_path):
    publish(data_dir, "1.0.0", MAC_ARM)
    clone = tmp_path / "tap"
    with serve(data_dir) as served:
        tap(served.url, clone)
        update(clone)
        for version in ("1.1.0", "1.2.0"):
            publish(data_dir, version, MAC_ARM)
            update(clone)
            assert f'version "{version}"' in (clone / FORMULA_PATH).read_text()
        publish(data_dir, "1.1.0", MAC_ARM)  # withdrawn: the way back is a step forward too
        update(clone)
    subjects = git("log", "--format=%s", cwd=clone).splitlines()
    assert subjects == [f"incident-rca-agent {version}" for version in ("1.1.0", "1.2.0", "1.1.0", "1.0.0")]
    assert git("log", "--merges", cwd=clone) == ""
    with serve(data_dir) as served:  # after a restart, at another address
        git("remote", "set-url", "origin", f"{served.url}{TAP_PATH}", cwd=clone)
        update(clone)
        assert served.url in (clone / FORMULA_PATH).read_text()


@needs_git
@pytest.mark.sockets
def test_a_release_without_a_package_for_macs_leaves_the_tap_as_it_is(data_dir, tmp_path):
    publish(data_dir, "1.0.0", MAC_ARM)
    with serve(data_dir) as served:
        tap(served.url, tmp_path / "tap")
        publish(data_dir, "1.1.0", LINUX)
        update(tmp_path / "tap")
    assert 'version "1.0.0"' in (tmp_path / "tap" / FORMULA_PATH).read_text()


def test_without_any_package_for_macs_the_answer_says_what_to_do(client, data_dir):
    answer = client.get(f"{TAP_PATH}/info/refs?service=git-upload-pack")
    assert answer.status_code == 404
    assert "has no bundle for macOS" in answer.json()["detail"]
    assert "incident-rca release build --download" in answer.json()["detail"]
    assert not (data_dir / "homebrew-agent.git").exists()
    publish(data_dir, "1.0.0", MAC_ARM, now=time.time() - 40 * DAY)
    assert "expired" in client.get(f"{TAP_PATH}/info/refs").json()["detail"]


def test_the_tap_is_files_and_nothing_but_its_own(client, data_dir):
    publish(data_dir, "1.0.0", MAC_ARM)
    refs = client.get(f"{TAP_PATH}/info/refs")
    assert refs.headers["content-type"].startswith("text/plain")  # or git would take it for its own protocol
    assert refs.headers["cache-control"] == "no-cache"
    name = refs.text.split("\t")[0]
    assert refs.text == f"{name}\trefs/heads/main\n"
    assert client.get(f"{TAP_PATH}/HEAD").text == "ref: refs/heads/main\n"
    assert client.get(f"{TAP_PATH}/refs/heads/main").text == f"{name}\n"
    assert client.get(f"{TAP_PATH}/objects/info/packs").text == "\n"
    loose = client.get(f"{TAP_PATH}/objects/{name[:2]}/{name[2:]}")
    assert loose.headers["cache-control"].endswith("immutable")
    assert len(git_objects.tree_of(loose.content)) == 40
    head = client.head(f"{TAP_PATH}/objects/{name[:2]}/{name[2:]}")
    assert (head.content, head.headers["content-length"]) == (b"", loose.headers["content-length"])
    (data_dir / "secret").write_text("no")
    paths = ("config", "objects/info/http-alternates", f"objects/{'0' * 2}/{'0' * 38}", "..%2Fsecret", "objects/..%2F..%2F..%2Fsecret", "")
    for path in paths:
        assert client.get(f"{TAP_PATH}/{path}").status_code == 404
    assert client.post(f"{TAP_PATH}/git-receive-pack").status_code == 405


def test_equal_histories_have_equal_commits(tmp_path):
    files = {FORMULA_PATH: b"class X\nend\n", "README.md": b"# x\n"}
    names = []
    for place in ("a", "b"):
        repository = TapRepository(tmp_path / place)
        assert not repository.exists
        repository.record(files, message="one", time=1_700_000_000)
        again = repository.record(files, message="not told", time=1_700_000_001)
        names.append((again, repository.record({**files, "new": b""}, message="two", time=1_700_000_002)))
    assert names[0] == names[1]
    assert names[0][0] != names[0][1]


@needs_git
def test_objects_are_those_that_git_makes(tmp_path):
    files = {"b/c": b"1", "b.txt": b"2", "b/a/x": b"3", "empty": b""}
    git("init", "-q", "-b", "main", tmp_path)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    git("add", ".", cwd=tmp_path)
    assert git_objects.trees(files)[-1].name == git("write-tree", cwd=tmp_path).strip()


def test_a_damaged_tap_is_reported_and_not_written_over(tmp_path):
    repository = TapRepository(tmp_path)
    name = repository.record({"a": b"1"}, message="m", time=1)
    lost = tmp_path / f"objects/{name[:2]}/{name[2:]}"
    content = lost.read_bytes()
    lost.unlink()
    for damaged in (None, b"no zlib", git_objects.blob(b"x").content):
        if damaged is not None:
            lost.write_bytes(damaged)
        with pytest.raises(StorageError, match="is damaged"):
            repository.record({"a": b"2"}, message="m", time=2)
    lost.write_bytes(content)
    (tmp_path / "refs/heads/main").write_text("rubbish")
    with pytest.raises(StorageError, match="holds no commit's name"):
        repository.read("info/refs")
    (tmp_path / "refs/heads/main").unlink()
    (tmp_path / "refs/heads/main").mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        repository.read("refs/heads/main")
    with pytest.raises(NotFoundError):
        repository.read("objects/none")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        TapRepository(tmp_path / "file").record({"a": b"1"}, message="m", time=1)


# The formula


def test_a_release_for_one_kind_of_mac_says_so():
    text = formula("1.0.0", URL, {"x86_64": BUNDLES["x86_64"]})
    assert "  depends_on arch: :x86_64\n" in text
    assert "on_arm" not in text
    assert formula("1.0.0", URL, BUNDLES).count("sha256") == 2
    with pytest.raises(ValueError, match="no bundle"):
        formula("1.0.0", URL, {"riscv64": BUNDLES["x86_64"]})


def test_no_address_can_run_ruby():
    text = formula("1.0.0", 'https://x/#{system("id")}\\', BUNDLES)
    assert 'homepage "https://x/\\#{system(\\"id\\")}\\\\"' in text


def ruby(*words):
    return subprocess.run(["ruby", *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.requires("ruby")
@pytest.mark.parametrize("bundles", [BUNDLES, {"aarch64": BUNDLES["aarch64"]}])
def test_ruby_finds_nothing_to_warn_of(tmp_path, bundles):
    (tmp_path / "formula.rb").write_text(formula("1.0.0", URL, bundles))
    done = ruby("-wc", tmp_path / "formula.rb")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Syntax OK\n", "")


@pytest.fixture
def installed(tmp_path, data_dir):
    """Runs the formula's install, service and test blocks as Homebrew does, with this Python for Homebrew's."""
    prefix, package = tmp_path / "homebrew", tmp_path / "package"
    python = prefix / "opt/python@3.13/bin/python3.13"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    [file] = publish(data_dir, "1.2.3", MAC_ARM).files
    with tarfile.open(fileobj=io.BytesIO((data_dir / "packages/1.2.3" / file.name).read_bytes())) as archive:
        archive.extractall(package, filter="data")
    (tmp_path / "formula.rb").write_text(formula("1.2.3", URL, BUNDLES))

    def install(arch="arm64"):
        loader = Path(__file__).with_name("fixtures") / "homebrew/load_formula.rb"
        done = ruby(loader, tmp_path / "formula.rb", prefix, package, arch)
        assert done.returncode == 0, done.stderr
        return prefix, json.loads(done.stdout)

    return install


@pytest.mark.requires("ruby")
def test_the_formula_installs_a_program_that_runs_and_a_service(installed):
    prefix, said = installed()
    assert said["fields"] == {
        "desc": "Connects this Mac to an incident-rca platform",
        "homepage": URL,
        "version": "1.2.3",
        "license": "Apache-2.0",
        "url": BUNDLES["aarch64"][0],
        "sha256": BUNDLES["aarch64"][1],
        "depends_on": ["macos", "python@3.13"],
    }
    log = f"{prefix}/var/log/incident-rca-agent.log"
    assert said["service"] == {
        "run": f"{prefix}/opt/incident-rca-agent/libexec/service",
        "keep_alive": True,
        "process_type": "background",
        "log_path": log,
        "error_log_path": log,
    }
    assert f"{prefix}/etc/incident-rca/agent.env" in said["caveats"]
    program = prefix / "opt/incident-rca-agent/bin/incident-rca-agent"
    done = subprocess.run([program, "version"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "incident-rca-agent 1.2.3\n"


@pytest.mark.requires("ruby")
def test_an_intel_mac_gets_its_own_package(installed):
    _, said = installed("x86_64")
    assert (said["fields"]["url"], said["fields"]["sha256"]) == BUNDLES["x86_64"]


@pytest.mark.requires("ruby")
def test_the_service_hands_the_settings_to_the_agent_and_does_not_start_without_them(installed):
    prefix, said = installed()
    program = prefix / "opt/incident-rca-agent/bin/incident-rca-agent"
    program.unlink()
    program.write_text('#!/bin/sh\nprintf "%s|" "$*" "$PLATFORM_API_URL" "$AGENT_TOKEN" "$LABELS" "$STATE_DIRECTORY" "$(umask)"\n')
    program.chmod(0o755)
    service = said["service"]["run"]
    done = subprocess.run([service], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "agent.env" in done.stderr
    (prefix / "etc/incident-rca").mkdir(parents=True)
    (prefix / "etc/incident-rca/agent.env").write_text(f"PLATFORM_API_URL={URL}\nAGENT_TOKEN=t\nLABELS='a=it'\"'\"'s'\n")
    done = subprocess.run([service], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"run --type server|{URL}|t|a=it's|{prefix}/var/lib/incident-rca|0077|"
