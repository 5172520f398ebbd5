"""What keeps the Linux install script from installing, each named; with a root of its own and a server that stands for the platform."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_linux_installer import BASH, SERVICE, TEXT, TOKEN, Scratch, scratch, shelf

from connectors.server.server_agent import ServerAgent

__all__ = ["scratch", "shelf"]
pytestmark = [pytest.mark.sockets, pytest.mark.skipif(not BASH or sys.platform != "linux", reason="the script is for bash on Linux")]


def test_a_script_that_no_platform_has_filled_in_trusts_nothing(scratch):
    scratch.shelf.script = lambda: TEXT
    assert scratch.refuses().startswith("key: this copy of the script carries no public key")


def test_a_signature_is_checked_by_python_where_openssl_cannot(scratch):
    scratch.stub("openssl", 'echo "OpenSSL 1.1.1w  11 Sep 2023"')
    scratch.install("--dry-run")
    scratch.shelf.served["/packages/manifest.json.sig"] = (200, bytes(64))
    assert scratch.refuses().startswith("signature: ")
    scratch.shelf.served["/packages/manifest.json.sig"] = (200, bytes(63))
    assert scratch.refuses().startswith("signature: ")


def test_without_anything_that_checks_signatures_it_says_what_to_install(scratch):
    (scratch.bin / "openssl").unlink()
    (scratch.bin / "python3").unlink()
    assert scratch.refuses().startswith("preflight openssl: nothing here can check an Ed25519 signature: install OpenSSL 3")


@pytest.mark.parametrize("tool", ["tar", "flock", "sha256sum"])
def test_a_missing_tool_is_named(scratch, tool):
    (scratch.bin / tool).unlink()
    assert scratch.refuses() == f"preflight tools: {tool} is not installed. Nothing was changed."


def test_without_curl_and_wget_it_says_so(scratch):
    (scratch.bin / "curl").unlink()
    (scratch.bin / "wget").unlink(missing_ok=True)
    assert scratch.refuses().startswith("preflight tools: neither curl nor wget is installed")


@pytest.mark.skipif(not shutil.which("wget"), reason="wget is not installed")
def test_wget_does_where_curl_is_missing(scratch):
    (scratch.bin / "curl").unlink()
    scratch.install()
    scratch.shelf.served.pop("/packages/manifest.json")
    assert "it is not served there" in scratch.refuses()


def test_an_old_python_and_an_old_libc_are_told_apart(scratch):
    scratch.stub("python3", 'case "$*" in *version_info\\[:3\\]*) echo 3.9.2 ;; *) exec ' + sys.executable + ' "$@" ;; esac')
    last = scratch.refuses()
    assert "preflight python: no package of version 1.0.0 runs here; the bundle needs Python 3.11 or newer (3.9.2 is here)" in last
    scratch.shelf.publish("1.0.0", kind="executable", python="", libc="glibc", libc_minimum="9.99")
    assert "the executable needs glibc 9.99 or newer (2." in scratch.refuses()
    scratch.shelf.publish("1.0.0", kind="executable", python="", libc="musl", libc_minimum="")
    assert "the executable needs musl (glibc is here)" in scratch.refuses()
    scratch.shelf.publish("1.0.0", kind="executable", python="", arch="riscv64")
    assert "there is none for Linux on" in scratch.refuses()


def test_a_python_without_its_modules_is_no_python(scratch):
    scratch.stub("python3", 'case "$*" in *sqlite3*) exit 1 ;; *) exec ' + sys.executable + ' "$@" ;; esac')
    assert "is here without some of its modules" in scratch.refuses()


def test_a_host_without_a_service_manager_is_installed_only_on_request(tmp_path, shelf):
    made = Scratch(tmp_path, shelf)
    shutil.rmtree(made.root / "run")
    assert "let a supervisor that restarts it" in made.install("--no-start")


def test_an_old_systemd_gets_the_token_by_its_group(scratch):
    scratch.stub("systemctl", 'echo "systemd 245 (245.4-4ubuntu3.24)"')
    scratch.install()
    unit = scratch.read(f"etc/systemd/system/{SERVICE}.service").splitlines()
    assert f"Environment=AGENT_TOKEN_FILE=/etc/{SERVICE}/token" in unit
    assert not [line for line in unit if line.startswith("LoadCredential")]
    assert (scratch.root / f"etc/{SERVICE}/token").stat().st_mode & 0o777 == 0o640
    scratch.stub("systemctl", 'echo "systemd 219"')
    assert scratch.refuses().startswith("preflight systemd: this is systemd 219")


def test_openrc_gets_a_script_that_its_shell_reads(scratch):
    shutil.rmtree(scratch.root / "run")
    (scratch.root / "sbin").mkdir()
    (scratch.root / "sbin/openrc-run").touch(mode=0o755)
    scratch.install()
    script = scratch.root / f"etc/init.d/{SERVICE}"
    assert script.stat().st_mode & 0o777 == 0o755
    assert "supervisor=supervise-daemon" in script.read_text()
    assert TOKEN not in script.read_text()
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=30)
    # The variables are OpenRC's, which reads them after this script.
    checked = [Path(sys.executable).with_name("shellcheck"), "-s", "sh", "-e", "SC2034,SC1090,SC1091", str(script)]
    done = subprocess.run(checked, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    scratch.install("--uninstall")
    assert not script.exists()


def test_a_second_installation_at_the_same_time_is_refused(scratch):
    (scratch.root / "opt").mkdir()
    held = os.open(scratch.root / "opt", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert scratch.refuses().startswith("lock: another installation is at work on this host")
        scratch.install("--dry-run")
    finally:
        os.close(held)
    scratch.install()


def test_a_disk_without_room_is_found_before_anything_is_written(scratch):
    scratch.stub("df", "echo Filesystem; echo /dev/sda1 1 1 3072 1% /")
    assert scratch.refuses().endswith("has 3 MB free, and 5 MB are needed. Nothing was changed.")


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        ("/healthz", (503, b""), "preflight platform: "),
        ("/packages/manifest.json", (404, b""), "manifest: "),
        ("/packages/manifest.json.sig", (404, b""), "manifest: "),
        ("/packages/manifest.json", (200, b"x" * 300_000), "manifest: it is larger than"),
        ("/packages/manifest.json", (200, b"<html>"), "signature: "),
    ],
)
def test_a_platform_that_answers_wrongly_is_named(scratch, path, answer, reason):
    scratch.shelf.served[path] = answer
    assert scratch.refuses().startswith(reason)


def test_a_refused_token_is_a_failure_for_a_new_agent_and_a_warning_for_an_enrolled_one(scratch):
    refusal = json.dumps({"code": "token-expired", "detail": "this enrolment token expired"}).encode()
    scratch.shelf.served["/api/v1/agent/whoami"] = (401, refusal)
    assert scratch.refuses().startswith(
        "preflight token: the platform refuses the enrolment token (token-expired): this enrolment token expired"
    )
    scratch.shelf.served["/api/v1/agent/whoami"] = (200, b"{}")
    scratch.install()
    scratch.shelf.served["/api/v1/agent/whoami"] = (401, refusal)
    assert "an agent that has enrolled needs it no more" in scratch.run().stderr
    assert scratch.refuses(AGENT_TOKEN="agent_another").startswith("preflight token: ")


def test_a_token_that_cannot_be_one_is_refused_unseen(scratch):
    assert "holds characters that no token has" in scratch.refuses(AGENT_TOKEN="a b")
    assert scratch.refuses(AGENT_TOKEN="").startswith("preflight token: there is no enrolment token")


def test_a_ca_that_cannot_be_read_is_named(scratch):
    assert scratch.refuses(CA_FILE="/no/such.pem").startswith("preflight ca: CA_FILE /no/such.pem cannot be read")


def test_sudo_gets_the_script_and_the_token_where_nobody_sees_them(scratch, tmp_path):
    scratch.stub("sudo", f'printf "%s\\n" "$*" >"{tmp_path}/argv"; exec cat >"{tmp_path}/stdin"')
    scratch.stub("id", "echo 1000")
    given = {"PATH": str(scratch.bin), "PLATFORM_API_URL": scratch.shelf.url, "AGENT_TOKEN": TOKEN, "LABELS": "a='b' \"c\""}
    argv = [BASH, "-s", "--", "--version", "1.0.0"]
    done = subprocess.run(argv, input=scratch.shelf.script(), env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "argv").read_text() == "-- bash -s -- --version 1.0.0\n"
    handed = (tmp_path / "stdin").read_text()
    assert TOKEN in handed
    # What root's shell gets does the same as the script itself.
    argv = [BASH, "-s", "--", "--root", str(scratch.root)]
    done = subprocess.run(argv, input=handed, env={"PATH": str(scratch.bin)}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert scratch.read(f"etc/{SERVICE}/token") == f"{TOKEN}\n"
    assert 'LABELS="a=\'b\' \\"c\\""' in scratch.read(f"etc/{SERVICE}/agent.env")
    (scratch.bin / "sudo").unlink()
    argv = [BASH, "-s"]
    done = subprocess.run(argv, input=scratch.shelf.script(), env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.splitlines()[-1].startswith("incident-rca: failed: preflight root: this needs root")


def test_the_printed_command_fails_when_the_script_cannot_be_downloaded(free_port, tmp_path):
    agent = ServerAgent(f"http://127.0.0.1:{free_port}", "agent_prod_x", {})
    for command in (agent.get_deployment_command(), agent.get_uninstall_command()):
        done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=30, cwd=tmp_path)
        assert done.returncode != 0
        assert "curl:" in done.stderr
