"""install/macos.sh against a running platform, with stand-ins for what only a Mac has: what it does with launchd and with the directory
of users is recorded, what it writes lies below a directory of the test. ``IRCA_TEST_BASH`` names another bash, such as the Mac's 3.2."""

from __future__ import annotations

import hashlib
import os
import platform
import plistlib
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from served_platform import DAY, LINUX, provision, publish, serve, served_script

import connectors.server
from app.releases.wheels import Target
from connectors.core.package_manifest import architecture
from connectors.server.config import ServerConfig
from connectors.server.control import Launchd

INSTALL = Path(connectors.server.__file__).with_name("install")
SCRIPT = (INSTALL / "macos.sh").read_text()
BASH = os.environ.get("IRCA_TEST_BASH") or shutil.which("bash")
MAC = Target("macos", architecture(platform.machine()))
ON_ROOT = """if [ -n "$root" ]; then live='' start=''; fi"""

STANDINS = {
    "uname": f'case $1 in -s) echo Darwin ;; -m) echo "${{MACHINE:-{platform.machine()}}}" ;; -n) echo a-mac ;; esac',
    "sw_vers": 'echo "${MACOS:-15.1}"',
    "sysctl": 'echo "${ARM64:-0}"',
    "xcode-select": "exit 2",
    "shasum": 'shift 2; exec sha256sum "$@"',
    "chown": 'echo "chown $*" >>"$RECORD"',
    "id": """case "$*" in
  -u) echo 0 ;;
  *) grep "^dscl . -[a-z]* /Users/$2" "$RECORD" | tail -1 | grep -q create ;; esac""",
    "dscl": """case "$2" in -list) printf 'root 0\\n_a 399\\n_b 398\\n' ;; *) echo "dscl $*" >>"$RECORD" ;; esac""",
    "launchctl": """
[ "$1" = print ] || echo "launchctl $*" >>"$RECORD"
case $1 in
  print)
    [ -e "$STATE/loaded" ] || exit 113
    [ -n "${DIES:-}" ] && echo '	state = spawn scheduled' || echo '	state = running'
    ;;
  bootstrap)
    [ -z "${REFUSES:-}" ] || [ -e "$STATE/refused" ] || { touch "$STATE/refused"; echo 'Bootstrap failed: 5: Input/output error'; exit 5; }
    touch "$STATE/loaded"
    [ -z "${DIES:-}" ] || echo 'incident-rca-agent: it died' >>"$ROOT/var/log/incident-rca-agent.log"
    [ -n "${DIES:-}" ] || {
      echo '{"state": "healthy", "enrolled": true}' >"$ROOT/var/db/incident-rca-agent/status.json"
      touch -d '+2 seconds' "$ROOT/var/db/incident-rca-agent/status.json" # bash 3.2 compares whole seconds
    }
    ;;
  bootout) rm -f "$STATE/loaded"; exit 36 ;;
esac""",
}


class Mac:
    """A directory that stands for a Mac's disk, and what was done there."""

    def __init__(self, folder: Path, served) -> None:
        self.served = served
        self.root = folder / "disk"
        self.bin = folder / "bin"
        self.record = folder / "record"
        self.state = folder / "state"
        for place in (self.bin, self.root, self.state):
            place.mkdir()
        self.record.touch()
        for name, body in STANDINS.items():
            (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
            (self.bin / name).chmod(0o755)
        (self.bin / "python3").symlink_to(os.path.realpath(sys.executable))
        self.script = served_script(served, "macos.sh")

    def run(self, *options, live=True, script=None, code=0, **environment):
        """Run the script; ``live`` makes it act on the stand-ins as on a Mac that it changes."""
        text = script or self.script
        if live:
            assert text.count(ON_ROOT) == 1
            text = text.replace(ON_ROOT, ":")
        known = {"PATH": f"{self.bin}:/usr/bin:/bin", "RECORD": self.record, "STATE": self.state, "ROOT": self.root}
        known |= {"PLATFORM_API_URL": self.served.url, "TMPDIR": self.state, **environment}
        known = {name: str(value) for name, value in known.items() if value}
        done = subprocess.run(
            [BASH, "-s", "--", "--root", str(self.root), *options],
            input=text,
            env=known,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            start_new_session=True,  # no terminal to ask for a token
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert not (token := environment.get("AGENT_TOKEN")) or token not in done.stdout + done.stderr
        return done.stderr.splitlines()[-1] if code else done.stdout + done.stderr

    @property
    def did(self) -> list[str]:
        return self.record.read_text().splitlines()

    def files(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("platform") / "data"
    publish(data_dir, "1.0.0", MAC)
    with serve(data_dir) as made:
        yield made


@pytest.fixture
def mac(tmp_path, served):
    return Mac(tmp_path, served)


pytestmark = pytest.mark.sockets


@pytest.fixture(scope="module")
def token(served):
    return provision(served, "macos")


def test_an_installation_is_a_daemon_of_its_own_user_with_the_token_for_it_alone(mac, token):
    said = mac.run(AGENT_TOKEN=token, LABELS="team=it's $HOME", HTTPS_PROXY="http://u:p@proxy:3128", NO_PROXY="127.0.0.1")
    assert "the agent has enrolled" in said
    assert said.splitlines()[-1].startswith("incident-rca: version 1.0.0 is installed; the daemon io.incident-rca.agent runs")
    config = mac.root / "etc/incident-rca-agent"
    assert (config / "token").read_text() == f"{token}\n"
    assert (config / "token").stat().st_mode & 0o777 == 0o600
    assert (config / "agent.env").stat().st_mode & 0o777 == 0o640
    assert f"chown _incident-rca:_incident-rca {config}/token.new" in mac.did
    assert [word for word in mac.did if word.startswith("launchctl")] == [
        "launchctl enable system/io.incident-rca.agent",
        f"launchctl bootstrap system {mac.root}/Library/LaunchDaemons/io.incident-rca.agent.plist",
    ]
    assert "dscl . -create /Users/_incident-rca UniqueID 397" in mac.did
    assert "dscl . -create /Users/_incident-rca UserShell /usr/bin/false" in mac.did
    for path, _ in mac.files().items():
        if path != "etc/incident-rca-agent/token":
            assert token.encode() not in (mac.root / path).read_bytes()
    daemon = (mac.root / "Library/LaunchDaemons/io.incident-rca.agent.plist").read_bytes()
    assert b"proxy" not in daemon  # which everybody may read
    read = subprocess.run(
        ["sh", "-c", f'. {config}/agent.env; printf "%s|" "$PLATFORM_API_URL" "$LABELS" "$HTTPS_PROXY"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert read.stdout == f"{mac.served.url}|team=it's $HOME|http://u:p@proxy:3128|"


def test_the_daemons_plist_round_trips_and_says_what_launchd_shall_do(mac, token):
    mac.run(AGENT_TOKEN=token)
    content = (mac.root / "Library/LaunchDaemons/io.incident-rca.agent.plist").read_bytes()
    daemon = plistlib.loads(content)
    assert plistlib.loads(plistlib.dumps(daemon)) == daemon
    assert daemon == {
        "Label": Launchd.DAEMON_LABEL,
        "ProgramArguments": ["/opt/incident-rca-agent/service"],
        "UserName": "_incident-rca",
        "GroupName": "_incident-rca",
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": 10,
        "ExitTimeOut": 20,
        "ProcessType": "Background",
        "Umask": 0o077,
        "WorkingDirectory": "/var/db/incident-rca-agent",
        "StandardOutPath": "/var/log/incident-rca-agent.log",
        "StandardErrorPath": "/var/log/incident-rca-agent.log",
        "SoftResourceLimits": {"Core": 0},
    }


def test_what_was_installed_runs(mac, token):
    """The launcher names places of the disk that the test does not have, so it runs with those put right."""
    mac.run(AGENT_TOKEN=token)
    program = mac.root / "opt/incident-rca-agent/1.0.0/bin/incident-rca-agent"
    text = program.read_text()
    assert text.startswith((f"#!{mac.bin}/python3 -I\n", "#!/usr/"))
    program.write_text(text.replace('"/opt', f'"{mac.root}/opt'))
    done = subprocess.run([program, "version"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "incident-rca-agent 1.0.0\n"
    service = (mac.root / "opt/incident-rca-agent/service").read_text()
    assert subprocess.run(["sh", "-n"], input=service, text=True, check=False).returncode == 0


def test_running_it_again_changes_nothing_and_a_new_token_restarts_the_daemon(mac, token):
    mac.run(AGENT_TOKEN=token)
    before, done = mac.files(), len(mac.did)
    assert "nothing has changed" in mac.run(AGENT_TOKEN=token)
    assert mac.files() == before
    assert not [word for word in mac.did[done:] if word.startswith(("launchctl", "dscl"))]
    # An installed agent knows platform and token.
    assert "nothing has changed" in mac.run(PLATFORM_API_URL="")
    mac.run(AGENT_TOKEN=token, LOG_LEVEL="debug")
    assert [word.split()[1] for word in mac.did[done:] if word.startswith("launchctl")] == ["bootout", "enable", "bootstrap"]
    assert 'LOG_LEVEL="debug"' in (mac.root / "etc/incident-rca-agent/agent.env").read_text()


def test_an_upgrade_replaces_the_program_and_keeps_the_one_before(tmp_path):
    data_dir = tmp_path / "other" / "data"
    data_dir.parent.mkdir()
    publish(data_dir, "1.0.0", MAC)
    with serve(data_dir) as other:
        mac = Mac(tmp_path, other)
        (tmp_path / "token").write_text(f"{provision(other, 'macos')}\n")
        mac.run("--no-start", TOKEN_FILE=tmp_path / "token")
        assert "launchctl disable system/io.incident-rca.agent" in mac.did
        publish(data_dir, "1.1.0", MAC)
        mac.script = served_script(other, "macos.sh")
        mac.run()
        kept = {path.name for path in (mac.root / "opt/incident-rca-agent").iterdir() if path.name != ".user"}
        assert kept == {"service", "1.0.0", "1.1.0"}
        assert "release=1.1.0\n" in (mac.root / "opt/incident-rca-agent/service").read_text()
        publish(data_dir, "1.0.0", MAC)
        assert "--version 1.0.0 installs the lower one" in mac.run(code=1)
        mac.run("--version", "1.0.0")
        assert "release=1.0.0\n" in (mac.root / "opt/incident-rca-agent/service").read_text()


@pytest.mark.parametrize("option", ["--uninstall", "--purge"])
def test_uninstalling_leaves_nothing_and_needs_no_token(mac, token, option):
    mac.run(AGENT_TOKEN=token, STATE_DIR="/Users/Shared/agent")
    said = mac.run(option, PLATFORM_API_URL="")
    assert "is removed" in said
    assert mac.files() == {}
    assert not list((mac.root / "opt").iterdir())
    assert mac.did[-2:] == ["dscl . -delete /Users/_incident-rca", "dscl . -delete /Groups/_incident-rca"]
    assert "nothing to remove" in mac.run("--uninstall", PLATFORM_API_URL="")


def test_a_dry_run_and_a_prepared_image_start_nothing(mac, token):
    said = mac.run("--dry-run", AGENT_TOKEN=token)
    assert "dry run: nothing is changed" in said
    assert "(bundle," in said
    assert mac.files() == {}
    mac.run(AGENT_TOKEN=token, live=False)
    assert "etc/incident-rca-agent/token" in mac.files()
    assert not [word for word in mac.did if not word.startswith("chown")]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"MACOS": "10.15.7"}, "preflight system: this is macOS 10.15.7, and 11 or newer is needed"),
        ({"ARM64": "1", "MACHINE": "x86_64"}, "preflight system: this shell is translated by Rosetta"),
        ({"MACHINE": "ppc"}, "preflight python: no package of version 1.0.0 runs here"),
        ({"PLATFORM_API_URL": "http://127.0.0.1:9"}, "preflight platform: http://127.0.0.1:9/healthz: the connection is refused"),
        ({"AGENT_TOKEN": ""}, "preflight token: there is no enrolment token"),
        ({"AGENT_TOKEN": "agent_unknown"}, "preflight token: the platform refuses the enrolment token (token-unknown)"),
        ({"CA_FILE": "/nowhere"}, "preflight ca: CA_FILE /nowhere cannot be read"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_changed(mac, token, environment, reason):
    last = mac.run(code=1, **{"AGENT_TOKEN": token, **environment})
    assert last.startswith(f"incident-rca: failed: {reason}")
    assert last.endswith("Nothing was changed.")
    assert mac.files() == {}


@pytest.mark.parametrize(("environment", "reason"), [({"REFUSES": "1"}, "Input/output error"), ({"DIES": "1"}, "it died")])
def test_a_daemon_that_does_not_start_is_taken_back(mac, token, environment, reason):
    last = mac.run(code=1, AGENT_TOKEN=token, **environment)
    assert last.startswith("incident-rca: failed: start: the daemon does not start")
    assert reason in last
    assert last.endswith("What was there before is there again.")
    assert mac.files() == {}
    mac.run(AGENT_TOKEN=token)
    before = mac.files()
    (mac.state / "refused").unlink(missing_ok=True)
    last = mac.run(code=1, AGENT_TOKEN=token, LOG_LEVEL="debug", **environment)
    assert last.endswith("What was there before is there again.")
    log = "var/log/incident-rca-agent.log"
    after = mac.files()
    assert {path: content for path, content in after.items() if path != log} == {
        path: content for path, content in before.items() if path != log
    }


def test_a_manifest_that_somebody_else_signed_is_refused(mac, token):
    forged = re.sub(r"public_key='[^']+'", f"public_key='{'A' * 43}='", mac.script)
    last = mac.run(code=1, AGENT_TOKEN=token, script=forged)
    assert last.startswith("incident-rca: failed: signature: the manifest was not signed with the key that came with this script")


def test_the_signature_is_checked_with_python_where_openssl_is_too_old(mac, token):
    (mac.bin / "openssl").write_text('#!/bin/sh\n[ "$1" = version ] && echo "LibreSSL 3.3.6" || exit 1\n')
    (mac.bin / "openssl").chmod(0o755)
    mac.run("--dry-run", AGENT_TOKEN=token)
    forged = re.sub(r"public_key='[^']+'", f"public_key='{'A' * 43}='", mac.script)
    assert "failed: signature:" in mac.run("--dry-run", code=1, AGENT_TOKEN=token, script=forged)


def test_an_expired_manifest_and_a_damaged_package_are_refused(tmp_path):
    data_dir = tmp_path / "other" / "data"
    data_dir.parent.mkdir()
    [file] = publish(data_dir, "1.0.0", MAC).files
    with serve(data_dir) as other:
        mac = Mac(tmp_path, other)
        token = provision(other, "macos")
        path = data_dir / "packages/1.0.0" / file.name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert mac.run(code=1, AGENT_TOKEN=token).startswith("incident-rca: failed: checksum:")
        path.write_bytes(content[:-1])
        assert mac.run(code=1, AGENT_TOKEN=token).startswith("incident-rca: failed: download:")
        publish(data_dir, "1.0.1", LINUX)
        mac.script = served_script(other, "macos.sh")
        assert "there is none for macOS on" in mac.run(code=1, AGENT_TOKEN=token)
        publish(data_dir, "1.0.2", MAC, now=time.time() - 40 * DAY)
        mac.script = served_script(other, "macos.sh")
        assert "manifest expired: the manifest of version 1.0.2 ended" in mac.run(code=1, AGENT_TOKEN=token)
        assert mac.files() == {}


def test_a_second_installation_at_the_same_time_is_refused_and_a_dead_ones_lock_is_not_minded(mac, token):
    (mac.root / "opt").mkdir()
    lock = mac.root / "opt/.incident-rca-agent.lock"
    lock.symlink_to(str(os.getpid()))
    assert "failed: lock: another installation is at work" in mac.run(code=1, AGENT_TOKEN=token)
    lock.unlink()
    lock.symlink_to(_dead())
    mac.run(AGENT_TOKEN=token)
    assert not lock.is_symlink()


def _dead() -> str:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return str(process.pid)


def test_without_root_sudo_gets_the_script_and_the_token_on_its_standard_input(mac, token):
    (mac.bin / "sudo").write_text(
        f'#!/bin/sh\necho "sudo $*" >>"$RECORD"\nunset PLATFORM_API_URL AGENT_TOKEN\nshift 2\nSUDONE=1 exec {BASH} "$@"\n'
    )
    (mac.bin / "sudo").chmod(0o755)
    (mac.bin / "id").write_text('#!/bin/sh\ncase "$*" in -u) [ -n "$SUDONE" ] && echo 0 || echo 501 ;; *) exit 1 ;; esac\n')
    script = mac.script.replace('&& [ -z "$root" ]; then\n      elevate', "; then\n      elevate")
    assert "is installed" in mac.run(script=script, AGENT_TOKEN=token)
    [call] = [word for word in mac.did if word.startswith("sudo")]
    assert call == f"sudo -- bash -s -- --root {mac.root}"
    assert (mac.root / "etc/incident-rca-agent/token").read_text() == f"{token}\n"


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.9, 0.999])
def test_a_download_that_was_cut_off_does_nothing(mac, share):
    script = mac.script[: int(len(mac.script) * share)]
    done = subprocess.run([BASH], input=script, env={"PATH": f"{mac.bin}:/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode != 0 or share < 0.05
    assert mac.did == []


@pytest.mark.parametrize(("options", "reason"), [(["--frob"], "there is no option --frob"), (["--version"], "--version needs a value")])
def test_wrong_usage_has_its_own_exit_code(mac, options, reason):
    assert reason in mac.run(*options, code=2)


def test_help_says_the_version(mac):
    said = mac.run("--help")
    assert "install script of version 1.0.0" in said
    assert "--uninstall" in said


def test_the_script_knows_every_option_of_the_agent():
    listed = re.search(r'options="([^"]+)"', SCRIPT)[1].split()
    options = ServerConfig.options().values()
    assert set(listed) == {option.variable for option in options if option.scope == "runtime"}


@pytest.mark.parametrize(
    "name", ["ed25519_program", "verify_signature", "get_manifest", "check_manifest", "json_text", "version_key", "at_least", "missing_for"]
)
def test_what_decides_about_trust_is_the_same_on_linux(name):
    def body(script):
        text = (INSTALL / script).read_text()
        begin = text.index(f"  {name}() {{")
        return text[begin : text.index("\n\n  ", text.index("\n", begin) if name != "ed25519_program" else text.index("\nPYTHON\n", begin))]

    assert body("macos.sh") == body("linux.sh")


@pytest.mark.skipif(
    not shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}"), reason="shellcheck is not installed"
)
def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}")
    done = subprocess.run([program, "-s", "bash", INSTALL / "macos.sh"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
