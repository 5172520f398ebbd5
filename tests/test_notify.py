from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors import cli
from connectors.core.notify import Notifier
from connectors.core.runtime import Runtime
from connectors.server.filesystems import superblock_options
from tests.fake_platform import FakePlatform
from tests.running_agent import CountingAgent

STALE = 1e6


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str | bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(10)

    def hear(self) -> str:
        return self.socket.recv(4096).decode()

    def silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(10)
        return False


@pytest.fixture
def manager(tmp_path, monkeypatch) -> Iterator[Manager]:
    monkeypatch.chdir(tmp_path)
    made = Manager("notify")  # bound by a short name: a path of a socket may have a hundred characters
    yield made
    made.socket.close()


def notifier(tmp_path: Path, clock=lambda: 0.0, **environ) -> Notifier:
    link = Path(f"/tmp/irca-notify-{os.getpid()}")
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "notify")
    return Notifier.from_environment({"NOTIFY_SOCKET": str(link), **environ}, clock)


@pytest.fixture(autouse=True)
def _no_link_is_left() -> Iterator[None]:
    yield
    Path(f"/tmp/irca-notify-{os.getpid()}").unlink(missing_ok=True)


def test_readiness_and_the_end_are_told_with_a_line_about_how_it_is(manager, tmp_path):
    made = notifier(tmp_path)
    assert made.ready("healthy")
    assert manager.hear() == "READY=1\nSTATUS=healthy"
    assert made.stopping("flushing\nwhat is left")
    assert manager.hear() == "STOPPING=1\nSTATUS=flushing what is left"


def test_signs_of_life_come_three_times_in_a_period_and_changes_at_once(manager, tmp_path):
    now = [100.0]
    made = notifier(tmp_path, lambda: now[0], WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    made.ready("healthy")
    manager.hear()
    assert made.alive("healthy")
    assert manager.hear() == "WATCHDOG=1"
    now[0] = 109.9
    assert not made.alive("healthy")
    assert made.alive("degraded: disk: it is gone")
    assert manager.hear() == "STATUS=degraded: disk: it is gone"
    now[0] = 110.0
    made.alive("degraded: disk: it is gone")
    assert manager.hear() == "WATCHDOG=1"
    assert manager.silent()


@pytest.mark.parametrize(
    "environ", [{}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "often"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}]
)
def test_without_a_watchdog_of_its_own_no_signs_of_life_are_sent(manager, tmp_path, environ):
    made = notifier(tmp_path, **environ)
    made.ready("healthy")
    manager.hear()
    assert not made.alive("healthy")
    assert manager.silent()


def test_an_abstract_socket_is_found():
    name = f"irca-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    assert Notifier.from_environment({"NOTIFY_SOCKET": f"@{name}"}, lambda: 0.0).ready("healthy")
    assert manager.hear().startswith("READY=1")
    manager.socket.close()


@pytest.mark.parametrize("address", ["", "/no/such/socket", "vsock:2:1", "relative"])
def test_where_nobody_listens_nothing_happens(address):
    made = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"}, lambda: 0.0)
    assert not made.ready("healthy")
    assert not made.alive("healthy")
    assert not made.stopping("done")


# In a running agent


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    made = FakePlatform()
    yield made
    made.down()


def started(platform, tmp_path, **config):
    options = {"state_dir": str(tmp_path / "state"), "collect_interval": 1, "heartbeat_interval": 5, "request_timeout": 2, **config}
    agent = CountingAgent(platform.url, "agent_test_token", options)
    link = Path(f"/tmp/irca-notify-{os.getpid()}")
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": str(link), "WATCHDOG_USEC": "1000000"}
    agent._runtime = Runtime(agent, time.time, environ=environ)
    stopping = threading.Event()
    thread = threading.Thread(target=agent.run, args=(stopping,), name="agent")
    thread.start()
    return agent, stopping, thread


@pytest.mark.sockets
def test_a_running_agent_says_that_it_is_ready_alive_and_stopping(manager, tmp_path, platform):
    agent, stopping, thread = started(platform, tmp_path)
    try:
        assert manager.hear().startswith("READY=1\nSTATUS=")
        assert manager.hear().startswith("WATCHDOG=1")
        agent.failing = "the source is gone"
        while "STATUS=degraded: collectors: counter: the source is gone" not in manager.hear():
            pass
    finally:
        stopping.set()
        thread.join(20)
    while not (last := manager.hear()).startswith("STOPPING=1"):
        assert last


@pytest.mark.sockets
def test_an_agent_whose_collection_hangs_gives_no_sign_of_life(manager, tmp_path, platform):
    agent, stopping, thread = started(platform, tmp_path)
    try:
        manager.hear()
        manager.hear()
        release = threading.Event()
        agent._gather_data = lambda: release.wait(30) or CountingAgent._gather_data(agent)
        time.sleep(1.5)
        agent.runtime._collected -= STALE
        time.sleep(1.5)
        while not manager.silent():
            pass
        time.sleep(2.5)
        assert manager.silent()
    finally:
        release.set()
        stopping.set()
        thread.join(20)


# The token that systemd hands to the service


def token_of(environ: dict[str, str]) -> str:
    return cli._read_token(None, environ, "").reveal()


def test_the_token_is_found_among_the_services_credentials(tmp_path):
    (tmp_path / "agent_token").write_text("agent_by_systemd\n")
    given = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert token_of(given) == "agent_by_systemd"
    assert token_of({**given, "AGENT_TOKEN": "agent_by_hand"}) == "agent_by_hand"
    (tmp_path / "other").write_text("agent_by_file\n")
    assert token_of({**given, "AGENT_TOKEN_FILE": str(tmp_path / "other")}) == "agent_by_file"


@pytest.mark.parametrize("directory", ["", "/no/such/directory"])
def test_without_such_a_credential_there_is_no_token(directory):
    assert token_of({"CREDENTIALS_DIRECTORY": directory}) == ""


# What a sandboxed service sees of its host


def test_a_sandbox_that_mounts_all_read_only_does_not_make_the_hosts_filesystems_so():
    table = (
        "28 1 254:1 / / ro,relatime - ext4 /dev/vda1 rw,discard\n"
        "31 28 254:17 / /mnt/a\\040disk ro,relatime shared:5 - xfs /dev/vdb1 ro,noquota\n"
        "broken\n"
    )
    assert superblock_options(table) == {"/": "rw,discard", "/mnt/a disk": "ro,noquota"}
