"""The Linux install script as text, by its functions, and against a root of its own with a server that stands for the platform."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from app.releases.signing import public_base64
from connectors.core.package_manifest import Manifest, encode, key_id, version_key
from connectors.server.config import ServerConfig

SCRIPT = Path(__file__).resolve().parent.parent / "connectors/server/install/linux.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")
BASH = shutil.which("bash") or ""
TOKEN = "agent_prod_s3cr3t"
SERVICE = "incident-rca-agent"
TOOLS = """awk basename bash cat chmod chown cp curl cut date df dirname env find flock getconf grep gzip head id ldd ln ls mkdir mktemp mv
openssl printf python3 readlink rm rmdir sed sh sha256sum sort stat sync tail tar touch tr true uname wc wget"""
pytestmark = pytest.mark.skipif(not BASH or sys.platform != "linux", reason="the script is for bash on Linux")


def call(*words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Call one function of the script."""
    body = TEXT[: TEXT.rindex('  main "$@"')] + '  constants; "$@"\n  exit\n}\n'
    environ = {"PATH": path or os.environ["PATH"]}
    return subprocess.run([BASH, "-c", body, "linux.sh", *words], capture_output=True, text=True, timeout=60, check=False, env=environ)


# The text


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "-s", "bash", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def test_the_script_hands_on_exactly_the_options_that_the_agent_reads():
    named = re.search(r'options="([^"]*)"', TEXT)[1].split()
    read = [option.variable for option in ServerConfig.options().values() if option.scope == "runtime"]
    assert sorted(named) == sorted(read), "bring `options` in linux.sh up to date"


def test_no_beginning_of_the_script_does_anything(tmp_path):
    """Cut at every third end of a line, at every 211th byte, and at each of the last 120."""
    content = SCRIPT.read_bytes()
    whole = len(content.rstrip(b"\n"))
    ends = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    cuts = {*ends[::3], *range(1, whole, 211), *range(whole - 120, whole)}
    nowhere = {"PATH": str(tmp_path)}
    guarded = content.index(b"trap ")  # before it there is only the refusal of other shells
    root = tmp_path / "root"
    root.mkdir()
    for cut in sorted(cut for cut in cuts if cut < whole):
        done = subprocess.run(
            [BASH, "-s", "--", "--root", str(root)],
            input=content[:cut],
            capture_output=True,
            timeout=30,
            check=False,
            env=nowhere,
        )
        assert list(root.iterdir()) == []
        if cut > content.index(b"\n", guarded):
            assert done.returncode != 0, cut
            assert done.stderr.splitlines()[-1].startswith(b"incident-rca: failed: the download of this script was cut off"), cut


@pytest.mark.skipif(not shutil.which("dash"), reason="dash is not installed")
def test_other_shells_refuse_it_or_hand_it_to_bash(tmp_path):
    piped = subprocess.run(["dash"], input=TEXT, capture_output=True, text=True, timeout=30, check=False)
    assert piped.returncode == 1
    assert "needs bash" in piped.stderr.splitlines()[-1]
    named = subprocess.run(["dash", str(SCRIPT), "--help"], capture_output=True, text=True, timeout=30, check=False)
    assert named.returncode == 0
    assert "--uninstall" in named.stdout


@pytest.mark.parametrize(
    ("words", "environ", "reason"),
    [
        (["--nonsense"], {}, "there is no option --nonsense"),
        (["--version"], {}, "--version needs a value"),
        ([], {"SERVICE_NAME": "a b"}, "SERVICE_NAME must be"),
        ([], {"PLATFORM_API_URL": ""}, "PLATFORM_API_URL must be"),
        ([], {"PLATFORM_API_URL": "ftp://x"}, "PLATFORM_API_URL must be"),
        ([], {"PLATFORM_API_URL": "http://x", "STATE_DIR": "relative"}, "STATE_DIR must be"),
    ],
)
def test_wrong_usage_has_a_code_of_its_own(tmp_path, words, environ, reason):
    argv = [BASH, str(SCRIPT), "--root", str(tmp_path), *words]
    done = subprocess.run(argv, env={"PATH": os.environ["PATH"], **environ}, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


# Its functions

VERSIONS = [
    "0.9.0",
    "1.0.0.dev1",
    "1.0.0a1",
    "1.0.0a2.dev3",
    "1.0.0a2",
    "1.0.0b1",
    "1.0.0rc1",
    "1.0.0rc2",
    "1.0.0",
    "1.0.1",
    "1.2.0",
    "1.10.0",
    "2.0.0",
]


def test_versions_are_ordered_as_the_agent_orders_them():
    keys = [call("version_key", version).stdout for version in VERSIONS]
    assert sorted(keys) == keys
    assert sorted(VERSIONS, key=version_key) == VERSIONS
    assert all(keys)
    assert [call("version_key", none).stdout for none in ("1.0", "v1.0.0", "1.0.0-1", "")] == ["", "", "", ""]


@pytest.mark.parametrize(
    ("a", "b", "holds"),
    [("3.11.2", "3.11", True), ("3.9.2", "3.11", False), ("2.36", "2.36", True), ("2.31", "2.36", False), ("0", "2", False)],
)
def test_numbers_of_versions_are_compared_as_numbers(a, b, holds):
    assert (call("at_least", a, b).returncode == 0) is holds


def ed25519(key: bytes, message: Path, signature: Path) -> bool:
    program = call("ed25519_program").stdout
    argv = [sys.executable, "-I", "-c", program, base64.b64encode(key).decode(), str(message), str(signature)]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.stderr == b""
    return done.returncode == 0


def test_the_signature_check_in_plain_python_agrees_with_a_real_one(tmp_path):
    message, signature = tmp_path / "message", tmp_path / "signature"
    for size in (0, 1, 5000):
        private = Ed25519PrivateKey.generate()
        public, content = private.public_key().public_bytes_raw(), os.urandom(size)
        good = private.sign(content)
        message.write_bytes(content)
        signature.write_bytes(good)
        assert ed25519(public, message, signature)
        for bad in (good[:32] + bytes(32), bytes(64), good[:-1], good[:40] + bytes([good[40] ^ 4]) + good[41:]):
            signature.write_bytes(bad)
            assert not ed25519(public, message, signature)
        signature.write_bytes(good)
        assert not ed25519(Ed25519PrivateKey.generate().public_key().public_bytes_raw(), message, signature)
        message.write_bytes(content + b"x")
        assert not ed25519(public, message, signature)


def test_a_key_that_would_verify_anything_is_no_key(tmp_path):
    for key in (bytes([1]) + bytes(31), bytes(32)):
        (tmp_path / "m").write_bytes(b"anything")
        (tmp_path / "s").write_bytes(bytes([1]) + bytes(63))
        assert not ed25519(key, tmp_path / "m", tmp_path / "s")


# Against a server

Response = tuple[int, bytes]


class Shelf:
    """Stands for the platform: serves what is on it and keeps what it is told."""

    def __init__(self, shop) -> None:
        self.key, self.shop = shop.key, shop
        self.served: dict[str, Response] = {"/healthz": (200, b"{}"), "/api/v1/agent/whoami": (200, b"{}")}
        self.told: list[tuple[str, dict]] = []
        shelf = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                status, body = shelf.served.get(self.path, (404, b""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                shelf.told.append((self.headers["authorization"], json.loads(body)))
                self.send_response(204)
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, name="shelf", daemon=True).start()

    def publish(self, version: str, **changes) -> None:
        """Serve a bundle as a version, its description changed."""
        file, content = self.shop.bundle(version)
        file = dataclasses.replace(file, **changes)
        now = float(int(time.time()))
        manifest = encode(Manifest(version, now, now + 3600, key_id(self.key.public), (file,)))
        for place in ("/packages", f"/packages/{version}"):
            self.served[f"{place}/manifest.json"] = (200, manifest)
            self.served[f"{place}/manifest.json.sig"] = (200, self.key.sign(manifest))
        self.served[f"/packages/{version}/{file.name}"] = (200, content)

    def script(self) -> str:
        return TEXT.replace("@IRCA_VERSION@", "1.0.0").replace("@IRCA_PUBLIC_KEY@", public_base64(self.key.public))


@pytest.fixture
def shelf(package_shop) -> Iterator[Shelf]:
    made = Shelf(package_shop)
    made.publish("1.0.0")
    yield made
    made.server.shutdown()
    made.server.server_close()


class Scratch:
    """A root directory to install into."""

    def __init__(self, folder: Path, shelf: Shelf) -> None:
        self.root, self.bin, self.shelf = folder / "root", folder / "bin", shelf
        (self.root / "run/systemd/system").mkdir(parents=True)
        self.bin.mkdir()
        for tool in TOOLS.split():
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.stub("systemctl", 'echo "systemd 252 (252.39)"')

    def stub(self, name: str, body: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        given = {"PLATFORM_API_URL": self.shelf.url, "AGENT_TOKEN": TOKEN, **environ}
        return subprocess.run(
            [BASH, "-s", "--", "--root", str(self.root), *words],
            input=self.shelf.script(),
            env={"PATH": str(self.bin), "TMPDIR": str(self.bin.parent), **{name: value for name, value in given.items() if value}},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def install(self, *words: str, **environ: str) -> str:
        done = self.run(*words, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refuses(self, *words: str, **environ: str) -> str:
        before = self.files()
        done = self.run(*words, **environ)
        assert done.returncode == 1, done.stdout
        assert self.files() == before
        return done.stderr.splitlines()[-1].removeprefix("incident-rca: failed: ")

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.name != "opt")

    def read(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")


@pytest.fixture
def scratch(tmp_path, shelf) -> Scratch:
    return Scratch(tmp_path, shelf)


with_server = pytest.mark.sockets


@with_server
def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(scratch, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    said = scratch.install("--dry-run")
    assert "of version 1.0.0, signed and with its checksum verified" in said
    assert f"write /etc/systemd/system/{SERVICE}.service" in said
    assert sorted(tmp_path.rglob("*")) == before
    assert scratch.shelf.told == []


@with_server
def test_an_installation_is_a_version_a_link_and_private_configuration(scratch):
    scratch.install(LOG_LEVEL="debug")
    program = scratch.root / "opt" / SERVICE
    assert sorted(path.name for path in program.iterdir()) == ["1.0.0", "current"]
    assert (program / "current").readlink() == Path("1.0.0")
    site = next((program / "current").glob("venv/lib/python3*/site-packages"))
    environ = {"PYTHONPATH": str(site)}
    argv = [sys.executable, "-S", "-m", "connectors.cli", "version"]
    done = subprocess.run(argv, env=environ, cwd=scratch.root, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{SERVICE} 1.0.0\n"
    token, settings_file = scratch.root / f"etc/{SERVICE}/token", scratch.root / f"etc/{SERVICE}/agent.env"
    assert (token.read_text(), token.stat().st_mode & 0o777) == (f"{TOKEN}\n", 0o600)
    assert settings_file.stat().st_mode & 0o777 == 0o640
    unit = scratch.read(f"etc/systemd/system/{SERVICE}.service")
    for line in (
        *("Type=notify", "WatchdogSec=60", "Restart=always", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="),
        *(f"LoadCredential=agent_token:/etc/{SERVICE}/token", f"StateDirectory={SERVICE}", f"User={SERVICE}", "MemoryMax=256M"),
        f"ExecStart=/opt/{SERVICE}/current/bin/{SERVICE} run --type server",
    ):
        assert line in unit.splitlines()
    assert TOKEN not in unit + settings_file.read_text()


def read_back(scratch: Scratch) -> dict[str, str]:
    """The settings as a shell reads them."""
    argv = ["sh", "-c", f'set -a; . "{scratch.root}/etc/{SERVICE}/agent.env"; exec env -0']
    done = subprocess.run(argv, env={"PATH": os.environ["PATH"]}, capture_output=True, timeout=30, check=True)
    pairs = (entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)
    return {name: value for name, value in pairs if name not in {"PATH", "PWD", "SHLVL", "_", "OLDPWD"}}


nasty = st.text(st.sampled_from("'\"\\$`!*?(){}<>|&;# \n=,\u2019a%"), min_size=1, max_size=15)


@settings(max_examples=40, deadline=None, database=None)
@given(labels=nasty, proxy=nasty)
def test_what_is_written_for_the_service_is_read_back_whatever_it_holds(labels, proxy):
    body = TEXT[: TEXT.rindex('  main "$@"')] + "  constants; service=x platform=http://p ca_file=; settings\n  exit\n}\n"
    environ = {"PATH": os.environ["PATH"], "LABELS": labels, "HTTPS_PROXY": proxy}
    written = subprocess.run([BASH, "-c", body], env=environ, capture_output=True, timeout=30, check=True).stdout.decode()
    done = subprocess.run(
        ["sh", "-c", f'{written}\nprintf \'%s\\0\' "$LABELS" "$HTTPS_PROXY"'], capture_output=True, timeout=30, check=True
    )
    assert done.stdout.decode().split("\0")[:2] == [labels, proxy]


@with_server
def test_options_proxies_and_a_ca_are_handed_on(scratch, tmp_path):
    (tmp_path / "ca.pem").write_text("a certificate\n")
    scratch.install(CA_FILE=str(tmp_path / "ca.pem"), LABELS="a=b", NO_PROXY="127.0.0.1", HOME="/nowhere", STATE_DIR="/srv/state")
    assert read_back(scratch) == {
        "PLATFORM_API_URL": scratch.shelf.url,
        "AGENT_TYPE": "server",
        "CA_FILE": f"/etc/{SERVICE}/ca.pem",
        "LABELS": "a=b",
        "NO_PROXY": "127.0.0.1",
        "STATE_DIR": "/srv/state",
    }
    assert scratch.read(f"etc/{SERVICE}/ca.pem") == "a certificate\n"
    assert 'ReadWritePaths="/srv/state"' in scratch.read(f"etc/systemd/system/{SERVICE}.service")


@with_server
def test_a_run_without_variables_keeps_what_the_installed_agent_was_told(scratch):
    scratch.install(LABELS="a=b")
    scratch.shelf.publish("1.1.0")
    scratch.install(PLATFORM_API_URL="", AGENT_TOKEN="")
    assert scratch.read(f"opt/{SERVICE}/current/VERSION") == "1.1.0\n"
    assert read_back(scratch)["LABELS"] == "a=b"
    assert scratch.read(f"etc/{SERVICE}/token") == f"{TOKEN}\n"
    scratch.install(AGENT_TOKEN="agent_other_token")
    assert "LABELS" not in read_back(scratch)
    assert scratch.read(f"etc/{SERVICE}/token") == "agent_other_token\n"


@with_server
def test_the_version_before_is_kept_and_older_ones_go(scratch):
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        scratch.shelf.publish(version)
        scratch.install()
    assert sorted(path.name for path in (scratch.root / "opt" / SERVICE).iterdir()) == ["1.1.0", "1.2.0", "current"]


@with_server
def test_other_content_of_the_same_version_is_installed_beside_it(scratch):
    scratch.install()
    path, (_, content) = next((path, given) for path, given in scratch.shelf.served.items() if path.endswith(".tar.gz"))
    assert content
    file, other = scratch.shelf.shop.bundle("1.0.1")
    scratch.shelf.publish("1.0.0", size=file.size, sha256=file.sha256)
    scratch.shelf.served[path] = (200, other)
    scratch.install()
    assert (scratch.root / f"opt/{SERVICE}/current").readlink() == Path(f"1.0.0-{file.sha256[:8]}")


@with_server
def test_what_a_killed_run_left_is_swept_up(scratch):
    left = scratch.root / f"opt/{SERVICE}/.staging.abc123/release"
    left.mkdir(parents=True)
    scratch.install()
    assert sorted(path.name for path in (scratch.root / "opt" / SERVICE).iterdir()) == ["1.0.0", "current"]


@with_server
@pytest.mark.parametrize("word", ["--uninstall", "--purge"])
def test_uninstalling_leaves_nothing_but_what_others_wrote(scratch, word):
    before = scratch.files()
    scratch.install(STATE_DIR="/srv/state")
    (scratch.root / "srv/state/identity.json").write_text("{}")
    assert len(scratch.files()) > len(before)
    scratch.install(word, PLATFORM_API_URL="", AGENT_TOKEN="")
    assert [path for path in scratch.files() if path not in ("srv", "etc", "etc/systemd", "etc/systemd/system")] == before
    scratch.install(word, PLATFORM_API_URL="", AGENT_TOKEN="")


@with_server
def test_a_state_directory_with_other_things_in_it_is_not_removed(scratch):
    scratch.install(STATE_DIR="/srv/state")
    for name in ("identity.json", "spool.db", "spool.db-wal", "precious.txt"):
        (scratch.root / "srv/state" / name).write_text("x")
    scratch.install("--uninstall")
    assert [path.name for path in (scratch.root / "srv/state").iterdir()] == ["precious.txt"]


@with_server
def test_the_platform_is_told_how_far_it_came_and_where_it_stopped(scratch):
    scratch.stub("uname", 'case "$1" in -m) echo x86_64 ;; -n) echo \'a "host\' ;; *) echo Linux ;; esac')
    scratch.install()
    [(authorization, report)] = scratch.shelf.told
    assert authorization == f"Bearer {TOKEN}"
    assert report == {"step": "downloaded", "host": 'a "host', "check": "", "reason": ""}
    scratch.shelf.publish("1.1.0", sha256="0" * 64)
    scratch.refuses()
    assert scratch.shelf.told[-1][1]["step"] == "failed"
    assert scratch.shelf.told[-1][1]["check"] == "checksum"
    assert "is not what the manifest describes" in scratch.shelf.told[-1][1]["reason"]


@with_server
def test_the_token_is_in_no_programs_arguments(scratch, tmp_path):
    real = shutil.which("curl")
    for tool in TOOLS.split():
        if tool not in ("bash", "sh") and (found := shutil.which(tool)):
            scratch.stub(tool, f'printf "%s\\n" "$0 $*" >>"{tmp_path}/argv"; exec {found} "$@"')
    scratch.install()
    record = (tmp_path / "argv").read_text()
    assert real
    assert "manifest.json" in record
    assert TOKEN not in record


@with_server
def test_the_token_may_come_in_a_file(scratch, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    scratch.install(AGENT_TOKEN="", TOKEN_FILE=str(tmp_path / "token"))
    assert scratch.read(f"etc/{SERVICE}/token") == f"{TOKEN}\n"
    (tmp_path / "token").write_text("")
    scratch.install("--uninstall")
    assert scratch.refuses(AGENT_TOKEN="", TOKEN_FILE=str(tmp_path / "token")).startswith("preflight token: TOKEN_FILE")
    assert "cannot be read" in scratch.refuses(AGENT_TOKEN="", TOKEN_FILE="/no/such/file")
