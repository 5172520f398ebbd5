"""What the installer does when a host or the way to it is not as it should be: a clear last line, a failure, and what was there stays."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from e2e.server_hosts import SERVICE, Host, Platform
from waiting import eventually

from connectors._version import __version__
from connectors.core.package_manifest import rfc3339

pytestmark = [pytest.mark.requires("docker", "systemd"), pytest.mark.timeout(600)]
NEWER = "7.8.9"
DAY = 86_400
MANIFEST, SIGNATURE = "/packages/manifest.json", "/packages/manifest.json.sig"


@pytest.fixture(scope="module")
def platform(tmp_path_factory, package_shop) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("platform"))
    package_shop.publish(running.data)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def bare(platform) -> Iterator[SimpleNamespace]:
    """A host on which nothing is installed."""
    host = Host.boot("bare")
    answer = platform.provision("bare")
    yield SimpleNamespace(host=host, command=answer["deployment_command"], uninstall=answer["uninstall_command"], pristine=host.files())
    host.remove()


@pytest.fixture(scope="module")
def served(platform, package_shop) -> Iterator[SimpleNamespace]:
    """A host with a version installed, while the platform serves a newer one."""
    host = Host.boot("served")
    answer = platform.provision("served")
    host.install(answer["deployment_command"])
    eventually(lambda: platform.healthy(answer["agent_id"]))
    package_shop.publish(platform.data, version=NEWER)
    eventually(lambda: platform.client.get(MANIFEST).json()["version"] == NEWER)
    file = platform.client.get(MANIFEST).json()["files"][0]["name"]
    yield SimpleNamespace(host=host, command=answer["deployment_command"], package=f"/packages/{NEWER}/{file}", answer=answer)
    host.remove()


@pytest.fixture(autouse=True)
def clear(platform) -> Iterator[None]:
    yield
    platform.front.clear()


def assert_refused(installed: SimpleNamespace, expected: str, command: str = "") -> None:
    """The command fails with this last line, and the service that was there runs on, untouched."""
    host = installed.host
    before, pid = host.files_of_the_agent(), host.pid()
    last = host.refuses(command or installed.command)
    assert last.startswith(f"incident-rca: failed: {expected}"), last
    assert last.endswith("Nothing was changed.")
    assert (host.files_of_the_agent(), host.pid(), host.is_active()) == (before, pid, True)


def resigned(platform, package_shop, **changes) -> tuple[bytes, bytes]:
    """The platform's manifest with other values, and the releaser's signature over it."""
    head, rest = platform.client.get(MANIFEST).content.split(b"\n", 1)
    values = {**json.loads(head + b"]}"), **changes}
    values.pop("files")
    content = json.dumps(values, separators=(",", ":")).encode()[:-1] + b',"files":[\n' + rest
    return content, package_shop.key.sign(content)


def test_a_manifest_that_somebody_else_signed_is_refused(served, platform):
    platform.front.instead[SIGNATURE] = bytes(64)
    assert_refused(served, "signature: the manifest was not signed with the key that came with this script")


def test_a_package_that_is_not_what_the_manifest_describes_never_runs(served, platform):
    content = bytearray(platform.client.get(served.package).content)
    content[len(content) // 2] ^= 1
    platform.front.instead[served.package] = bytes(content)
    assert_refused(served, "checksum: ")
    platform.front.instead[served.package] = bytes(content) + b"more"
    assert_refused(served, "download: ")


def test_an_interrupted_download_of_the_package_changes_nothing(served, platform):
    platform.front.cut[served.package] = 10_000
    assert_refused(served, f"download: {platform.url}{served.package}: the transfer was cut off")


def test_an_interrupted_download_of_the_script_changes_nothing(served, platform):
    length = len(platform.client.get("/install/linux.sh").content)
    for cut in (1500, length // 2, length - 2):
        platform.front.cut["/install/linux.sh"] = cut
        assert_refused(served, "the download of this script was cut off")


def test_a_manifest_that_has_expired_is_refused(served, platform, package_shop):
    expired = resigned(platform, package_shop, expires=rfc3339(time.time() - DAY))
    platform.front.instead[MANIFEST], platform.front.instead[SIGNATURE] = expired
    assert_refused(served, f"manifest expired: the manifest of version {NEWER} ended at ")


def test_a_wrong_clock_is_told_from_an_old_manifest(served, platform, package_shop):
    expired = resigned(platform, package_shop, expires=rfc3339(time.time() - DAY))
    platform.front.instead[MANIFEST], platform.front.instead[SIGNATURE] = expired
    platform.front.clock_ahead = -400 * DAY  # as a host sees it whose own clock is as far ahead
    assert_refused(served, "preflight clock: ")
    early = resigned(platform, package_shop, created=rfc3339(time.time() + 400 * DAY), expires=rfc3339(time.time() + 500 * DAY))
    platform.front.instead[MANIFEST], platform.front.instead[SIGNATURE] = early
    assert_refused(served, "preflight clock: the manifest was made at ")


def test_a_platform_that_cannot_be_reached_is_named(served, platform):
    served.host.sh(f"curl -fsSL -o /tmp/linux.sh {platform.url}/install/linux.sh")
    for url, reason in (
        ("http://172.17.0.1:1", "the connection is refused"),
        ("http://no-such-host.invalid", "the name cannot be resolved"),
    ):
        command = f"PLATFORM_API_URL={url} AGENT_TOKEN={served.answer['agent_token']} bash /tmp/linux.sh"
        assert_refused(served, f"preflight platform: {url}/healthz: {reason}", command)


def test_a_token_that_the_platform_refuses_is_told_before_anything_happens(served):
    assert_refused(served, "preflight token: the platform refuses", served.command.replace(served.answer["agent_token"], "agent_no_such"))


def test_a_second_installation_at_the_same_time_waits_for_nobody(served, platform):
    platform.front.stalled[served.package] = go = threading.Event()
    first = served.host.background(served.command)
    assert platform.front.waiting.wait(30)
    assert_refused(served, "lock: another installation is at work on this host")
    go.set()
    assert first.wait(60) == 0
    assert served.host.version() == NEWER
    assert "nothing has changed" in served.host.install(served.command)
    served.host.install(f"{served.command} -s -- --version {__version__}")


def test_a_kill_in_mid_install_leaves_what_was_there_and_the_next_run_heals(served, platform):
    host = served.host
    host.sh(f"rm -rf /opt/{SERVICE}/{NEWER}")  # or the version before last would be found there, and nothing be downloaded
    before, pid = host.files_of_the_agent(), host.pid()
    platform.front.stalled[served.package] = threading.Event()
    running = host.background(served.command)
    assert platform.front.waiting.wait(30)
    host.sh("kill -9 -- $(pgrep -s $(cat /tmp/session))")
    assert running.wait(30) != 0
    left = {path: facts for path, facts in host.files_of_the_agent().items() if "/.staging." not in path}
    assert (left, host.pid(), host.version()) == (before, pid, __version__)
    platform.front.clear()
    host.install(served.command)
    assert host.version() == NEWER
    assert "staging" not in host.sh(f"ls -A /opt/{SERVICE}")
    eventually(lambda: platform.healthy(served.answer["agent_id"], NEWER))


def test_a_version_that_does_not_start_is_taken_back(served, platform):
    host, before = served.host, served.host.files_of_the_agent()
    last = host.refuses(f"export COLLECTORS=nonsense; {served.command}")
    assert last.startswith("incident-rca: failed: start: the service does not start: incident-rca-agent: collectors[0] must be one of")
    assert last.endswith("What was there before is there again.")
    assert (host.files_of_the_agent(), host.is_active()) == (before, True)


def refuses_and_leaves_nothing(bare: SimpleNamespace, prepare: str, undo: str, expected: str) -> None:
    host = bare.host
    host.sh(prepare)
    try:
        last = host.refuses(bare.command)
    finally:
        host.sh(undo)
    assert last.startswith(f"incident-rca: failed: {expected}"), last
    assert host.files() == bare.pristine


def test_without_python_and_program_the_missing_is_named(bare):
    hide, show = "chmod a-x /usr/bin/python3*", "chmod a+x /usr/bin/python3.11"
    refuses_and_leaves_nothing(bare, hide, show, "preflight python: no package of version")


def test_a_full_disk_is_found_before_anything_is_written(bare):
    refuses_and_leaves_nothing(bare, "mount -t tmpfs -o size=8m tmpfs /opt", "umount /opt", f"preflight disk: /opt/{SERVICE} has ")


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(bare, platform, package_shop):
    # So few inodes that room is left, and files cannot be made.
    prepare = "mount -t tmpfs -o size=64m,nr_inodes=40 tmpfs /opt"
    refuses_and_leaves_nothing(bare, prepare, "umount /opt", "unpack: ")


def test_a_read_only_place_is_named(bare):
    refuses_and_leaves_nothing(bare, "mount -t tmpfs -o ro tmpfs /opt", "umount /opt", "preflight write: /opt cannot be written: ")


def test_a_place_that_forbids_programs_is_named(bare):
    refuses_and_leaves_nothing(bare, "mount -t tmpfs -o noexec tmpfs /opt", "umount /opt", "preflight exec: the program does not run from")


def test_read_only_usr_and_a_tmp_that_forbids_programs_do_no_harm(bare, platform):
    host = bare.host
    host.sh("mount --bind /usr /usr; mount -o remount,bind,ro /usr; mount -t tmpfs -o noexec tmpfs /tmp")
    assert "is installed" in host.install(bare.command)
    host.install(bare.uninstall)
    host.sh("umount /tmp; umount -l /usr")
    assert host.files() == bare.pristine


def test_a_host_without_a_service_manager_is_told_what_to_do(bare, platform):
    host, answer = Host.plain("plain", bare.host.image), platform.provision("plain")
    command = answer["deployment_command"]
    try:
        before = host.files()
        last = host.refuses(command)
        assert last.startswith("incident-rca: failed: preflight systemd: neither systemd nor OpenRC runs here")
        assert "nohup would not" in last
        assert host.files() == before
        said = host.install(f"{command} -s -- --no-start")
        assert "runit, s6, supervisord; nohup does not" in said
        [line] = [line for line in said.splitlines() if line.startswith("  set -a")]
        host.run(f"setsid sh -c {json.dumps(line)} >/dev/null 2>&1 & sleep 4; kill $!")
        assert '"enrolled": true' in host.sh(f"cat /var/lib/{SERVICE}/status.json")
        host.install(bare.uninstall)
        assert host.files() == before
    finally:
        host.remove()


@pytest.fixture
def executable_platform(tmp_path_factory, package_shop) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("executable"))
    package_shop.publish(running.data, executable=True)
    running.start()
    yield running
    running.stop()


def test_a_host_without_python_gets_the_program(bare, executable_platform):
    host, answer = bare.host, executable_platform.provision("executable")
    host.sh("chmod a-x /usr/bin/python3*")
    try:
        host.install(answer["deployment_command"])
        eventually(lambda: executable_platform.healthy(answer["agent_id"]))
        assert "/incident-rca-agent/incident-rca-agent" in host.sh(f"readlink -f /opt/{SERVICE}/current/bin/{SERVICE}")
        host.install(answer["uninstall_command"])
    finally:
        host.sh("chmod a+x /usr/bin/python3.11")
    assert host.files() == bare.pristine


@contextmanager
def debian(release: str) -> Iterator[Host]:
    """A booted host of another release, gone afterwards."""
    host = Host.boot_image(release, os.environ[f"IRCA_TEST_{release.upper()}_IMAGE"])
    try:
        host.sh("mount --make-rshared /")
        yield host
        assert host.run(f"ls -d /opt/{SERVICE} /etc/{SERVICE}").stdout.count("No such file") == 2
    finally:
        host.remove()


@pytest.mark.requires("trixie")
def test_debian_13_is_connected_by_somebody_who_may_use_sudo(platform):
    answer = platform.provision("trixie")
    with debian("trixie") as host:
        host.sh("useradd --create-home ann; echo 'ann ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ann")
        done = host.run(answer["deployment_command"], user="ann")
        assert done.returncode == 0, done.stdout
        eventually(lambda: platform.healthy(answer["agent_id"]))
        told = host.sh("journalctl --no-pager _COMM=sudo")
        assert "COMMAND=/usr/bin/bash -s --" in told
        assert answer["agent_token"] not in told
        done = host.run(answer["uninstall_command"], user="ann")
        assert done.returncode == 0, done.stdout


@pytest.mark.requires("bullseye")
def test_debian_11_is_told_what_it_lacks_where_no_program_was_made_for_it(platform):
    answer = platform.provision("bullseye")
    with debian("bullseye") as host:  # OpenSSL 1.1 cannot check the signature, Python 3.9 can
        last = host.refuses(answer["deployment_command"])
        assert "preflight python: no package of version" in last
        assert "Python 3.11 or newer (3.9" in last


@pytest.mark.requires("bullseye", "bullseye-executable")
def test_debian_11_is_connected_by_a_program_that_was_made_for_it(tmp_path, package_shop):
    running = Platform(tmp_path)
    package_shop.publish(running.data, executable=Path(os.environ["IRCA_TEST_BULLSEYE_EXECUTABLE"]))
    running.start()
    try:
        with debian("bullseye") as host:
            pristine, answer = host.files(), running.provision("bullseye")
            host.install(answer["deployment_command"])
            eventually(lambda: running.healthy(answer["agent_id"]))
            assert "/incident-rca-agent/incident-rca-agent" in host.sh(f"readlink -f /opt/{SERVICE}/current/bin/{SERVICE}")
            host.install(answer["uninstall_command"])
            assert host.files() == pristine
    finally:
        running.stop()


def test_a_script_with_another_key_trusts_nothing(served, platform):
    script = platform.client.get("/install/linux.sh").text
    key = next(line.split("'")[1] for line in script.splitlines() if "public_key='" in line)
    other = base64.b64encode(bytes(reversed(base64.b64decode(key)))).decode()
    platform.front.instead["/install/linux.sh"] = script.replace(key, other).encode()
    assert_refused(served, "signature: ")
