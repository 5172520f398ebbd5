from __future__ import annotations

import os
from pathlib import Path

import pytest

from connectors.core.errors import ControlError, NotDeployedError, PermissionRefusedError, RuntimeUnavailableError, ToolMissingError
from connectors.core.quoting import posix
from connectors.server import control
from connectors.server.control import Launchd, ServiceStatus, State, Systemd, WindowsServices, service_manager
from connectors.server.server_agent import ServerAgent


class Stubs:
    """Programs on the path that record their argv and answer as the real ones were seen to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._record = folder / "calls"

    def answer(self, program: str, answers: dict[str, tuple[int, str] | list[tuple[int, str]]]) -> None:
        """For arguments beginning so: exit code and output; a list answers call after call, its last one for ever."""
        cases = []
        for number, (arguments, given) in enumerate(answers.items()):
            replies = given if isinstance(given, list) else [given]
            count = posix(str(self.folder / f"{program}-{number}"))
            branches = "".join(f"[ $n -eq {at} ] && {self._reply(*reply)}\n" for at, reply in enumerate(replies))
            counting = f"n=$(cat {count} 2>/dev/null || echo 0); echo $((n + 1)) > {count}"
            cases.append(f"{posix(arguments)}*) {counting}\n{branches}{self._reply(*replies[-1])};;")
        script = f'#!/bin/sh\nprintf \'%s\\n\' "${{0##*/}} $*" >> {posix(str(self._record))}\ncase "$*" in\n' + "\n".join(cases)
        path = self.folder / program
        path.write_text(f"{script}\n*) echo unexpected; exit 99;;\nesac\n")
        path.chmod(0o755)

    @staticmethod
    def _reply(code: int, text: str) -> str:
        return f"{{ printf '%s\\n' {posix(text)}; exit {code}; }}"

    @property
    def calls(self) -> list[str]:
        return self._record.read_text().splitlines() if self._record.exists() else []


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Stubs(folder)


def test_the_service_manager_is_the_running_machines(monkeypatch):
    assert isinstance(service_manager("x", "Linux"), Systemd)
    assert isinstance(service_manager("x", "Darwin"), Launchd)
    assert isinstance(service_manager("x", "Windows"), WindowsServices)
    monkeypatch.setattr("platform.system", lambda: "Haiku")
    with pytest.raises(ToolMissingError, match="cannot be controlled on Haiku"):
        service_manager("x")


# systemd

SYSTEMD_REFUSALS = [
    (5, "Failed to start a.service: Unit a.service not found.", NotDeployedError, "run the deployment command"),
    (5, "Failed to stop a.service: Unit a.service not loaded.", NotDeployedError, "no unit a.service"),
    (
        4,
        "Failed to start a.service: Access denied\nSee system logs and 'systemctl status a.service' for details.",
        PermissionRefusedError,
        "root",
    ),
    (1, "Failed to start a.service: Interactive authentication required.", PermissionRefusedError, "root"),
    (1, "Failed to connect to bus: No such file or directory", RuntimeUnavailableError, "systemd does not answer"),
    (1, "System has not been booted with systemd as init system (PID 1). Can't operate.", RuntimeUnavailableError, "PID 1"),
    (1, "Failed to start a.service: Unit a.service is masked.", ControlError, "masked"),
    (
        1,
        "Job for a.service failed because the control process exited with error code.",
        ControlError,
        "exit code 1: Job for a.service failed",
    ),
    (1, "", ControlError, "it printed nothing"),
]


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_systemctl_is_told_to_start_and_stop_the_unit_without_asking_for_a_password(stubs, verb):
    stubs.answer("systemctl", {"--no-ask-password": (0, "")})
    getattr(Systemd("a"), verb)()
    getattr(Systemd("a"), verb)()
    assert stubs.calls == [f"systemctl --no-ask-password {verb} a.service"] * 2


@pytest.mark.parametrize("verb", ["start", "stop"])
@pytest.mark.parametrize(("code", "text", "error", "reason"), SYSTEMD_REFUSALS)
def test_what_systemctl_refuses_has_its_own_error(stubs, verb, code, text, error, reason):
    stubs.answer("systemctl", {"--no-ask-password": (code, text)})
    with pytest.raises(ControlError, match=reason) as caught:
        getattr(Systemd("a"), verb)()
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ("loaded active running success", ServiceStatus(State.RUNNING, "running")),
        ("loaded activating auto-restart exit-code", ServiceStatus(State.STARTING, "auto-restart, result: exit-code")),
        ("loaded deactivating stop-sigterm success", ServiceStatus(State.STOPPING, "stop-sigterm")),
        ("loaded failed failed oom-kill", ServiceStatus(State.FAILED, "failed, result: oom-kill")),
        ("masked inactive dead success", ServiceStatus(State.STOPPED, "dead, masked")),
    ],
)
def test_the_state_of_a_unit_is_read_from_its_properties(stubs, facts, status):
    load, active, sub, result = facts.split()
    stubs.answer("systemctl", {"show a.service": (0, f"Result={result}\nLoadState={load}\nActiveState={active}\nSubState={sub}")})
    assert Systemd("a").status() == status


def test_a_unit_that_is_not_there_has_no_state(stubs):
    stubs.answer("systemctl", {"show": (0, "Result=success\nLoadState=not-found\nActiveState=inactive\nSubState=dead")})
    with pytest.raises(NotDeployedError):
        Systemd("a").status()
    stubs.answer("systemctl", {"show": (1, "Failed to connect to bus: Host is down")})
    with pytest.raises(RuntimeUnavailableError) as caught:
        Systemd("a").status()
    assert caught.value.retryable
    stubs.answer("systemctl", {"show": (0, "what?")})
    with pytest.raises(ControlError, match=r"says nothing of the state of a\.service: what\?"):
        Systemd("a").status()


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd runs here")  # noqa: PTH112 - shorter so
@pytest.mark.skipif(not os.path.exists("/usr/bin/systemctl"), reason="systemctl is not installed")  # noqa: PTH110 - shorter so
def test_the_real_systemctl_without_systemd_is_an_unavailable_runtime():
    agent = ServerAgent("http://localhost:8000", "agent_x_1")
    for act in (agent.start, agent.stop, agent.status):
        with pytest.raises(RuntimeUnavailableError, match="systemd does not answer"):
            act()


def test_the_agent_controls_the_service_of_its_configured_name(stubs, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    stubs.answer("systemctl", {"--no-ask-password": (0, ""), "show": (0, "LoadState=loaded\nActiveState=active\nSubState=running")})
    agent = ServerAgent("http://localhost:8000", "agent_x_1", {"service_name": "my-agent"})
    agent.start()
    agent.stop()
    assert agent.status().state is State.RUNNING
    assert stubs.calls == [
        "systemctl --no-ask-password start my-agent.service",
        "systemctl --no-ask-password stop my-agent.service",
        "systemctl show my-agent.service --property=LoadState,ActiveState,SubState,Result",
    ]


# Any program


def test_a_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match="systemctl is not installed"):
        Systemd("a").start()


def test_a_program_that_cannot_be_run_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "systemctl").write_text("#!/bin/sh\n")
    with pytest.raises(PermissionRefusedError, match="systemctl must not be run"):
        Systemd("a").start()
    (tmp_path / "systemctl").write_text("no program at all")
    (tmp_path / "systemctl").chmod(0o755)
    with pytest.raises(ControlError, match="systemctl could not be run: Exec format error"):
        Systemd("a").start()


def test_a_program_that_hangs_is_given_up(stubs, monkeypatch):
    monkeypatch.setattr(control, "ACT_TIMEOUT", 0.2)
    (stubs.folder / "systemctl").write_text("#!/bin/sh\nexec sleep 60\n")
    (stubs.folder / "systemctl").chmod(0o755)
    with pytest.raises(RuntimeUnavailableError, match=r"systemctl --no-ask-password start a\.service did not finish within 0\.2 s"):
        Systemd("a").start()


# launchd

RUNNING = "system/x = {\n\tactive count = 1\n\tstate = running\n\tpid = 321\n\tlast exit code = (never exited)\n}"
CRASHED = "system/x = {\n\tstate = not running\n\tlast exit code = 78\n}"
UNKNOWN = 'Could not find service "x" in domain for system'


@pytest.fixture
def launchd(tmp_path):
    """Makes the service manager of one user; ``installed`` says whether Homebrew made the service."""

    def make(uid: int = 0, *, installed: bool = True) -> Launchd:
        daemons, agents = tmp_path / "daemons", tmp_path / "home/Library/LaunchAgents"
        for folder in (daemons, agents):
            folder.mkdir(parents=True, exist_ok=True)
            if installed:
                (folder / f"{Launchd.LABEL}.plist").touch()
        return Launchd(uid=uid, home=tmp_path / "home", system_daemons=daemons)

    return make


def test_a_service_that_launchd_does_not_know_is_loaded(stubs, launchd, tmp_path):
    stubs.answer("launchctl", {"print": (113, UNKNOWN), "bootstrap": (0, "")})
    launchd().start()
    launchd(501).start()
    label = Launchd.LABEL
    assert stubs.calls == [
        f"launchctl print system/{label}",
        f"launchctl bootstrap system {tmp_path}/daemons/{label}.plist",
        f"launchctl print gui/501/{label}",
        f"launchctl bootstrap gui/501 {tmp_path}/home/Library/LaunchAgents/{label}.plist",
    ]


def test_root_controls_the_install_scripts_daemon_where_there_is_one(stubs, launchd, tmp_path):
    stubs.answer("launchctl", {"print": (113, UNKNOWN), "bootstrap": (0, "")})
    launchd()
    (tmp_path / "daemons" / f"{Launchd.DAEMON_LABEL}.plist").touch()
    launchd().start()
    launchd(501).start()
    assert [call.rsplit("/", 1)[-1] for call in stubs.calls if "bootstrap" in call] == [
        f"{Launchd.DAEMON_LABEL}.plist",
        f"{Launchd.LABEL}.plist",
    ]


def test_a_loaded_service_is_started_only_if_it_does_not_run(stubs, launchd):
    stubs.answer("launchctl", {"print": [(0, CRASHED), (0, RUNNING)], "kickstart": (0, "")})
    launchd().start()
    launchd().start()
    assert [call.split()[1] for call in stubs.calls] == ["print", "kickstart", "print"]


def test_stopping_unloads_the_service_and_stopping_again_changes_nothing(stubs, launchd):
    stubs.answer("launchctl", {"print": [(0, RUNNING), (113, UNKNOWN)], "bootout": (36, "Operation now in progress")})
    launchd().stop()
    launchd().stop()
    assert [call.split()[1] for call in stubs.calls] == ["print", "bootout", "print"]
    stubs.answer("launchctl", {"print": (0, RUNNING), "bootout": (3, "Boot-out failed: 3: No such process")})
    launchd().stop()


def test_the_state_of_a_service_is_read_from_what_launchd_prints(stubs, launchd):
    never = "system/x = {\n\tstate = not running\n\tlast exit code = (never exited)\n}"
    stubs.answer("launchctl", {"print": [(0, RUNNING), (0, CRASHED), (0, never), (113, UNKNOWN)]})
    assert launchd().status() == ServiceStatus(State.RUNNING, "pid 321")
    assert launchd().status() == ServiceStatus(State.FAILED, "last exit code 78")
    assert launchd().status() == ServiceStatus(State.STOPPED, "not running")
    assert launchd().status() == ServiceStatus(State.STOPPED, "not loaded")


@pytest.mark.parametrize("verb", ["start", "stop", "status"])
def test_a_service_that_homebrew_never_made_is_not_deployed(stubs, launchd, verb):
    stubs.answer("launchctl", {"print": (113, UNKNOWN)})
    with pytest.raises(NotDeployedError, match=r"\.plist is missing"):
        getattr(launchd(installed=False), verb)()


@pytest.mark.parametrize(
    ("code", "text", "error"),
    [
        (1, "Operation not permitted", PermissionRefusedError),
        (150, "Operation not permitted while System Integrity Protection is engaged", PermissionRefusedError),
        (125, "Bootstrap failed: 125: Domain does not support specified action", RuntimeUnavailableError),
        (5, "Bootstrap failed: 5: Input/output error", ControlError),
    ],
)
def test_what_launchctl_refuses_has_its_own_error(stubs, launchd, code, text, error):
    stubs.answer("launchctl", {"print": (113, UNKNOWN), "bootstrap": (code, text)})
    with pytest.raises(ControlError) as caught:
        launchd().start()
    assert type(caught.value) is error
    stubs.answer("launchctl", {"print": (code, text)})
    with pytest.raises(error):
        launchd().status()


# Windows


def query(state: int, code: int = 0) -> tuple[int, str]:
    """What ``sc query`` prints, in German: only numbers may matter."""
    return 0, (
        "\nSERVICE_NAME: a\n"
        "        TYP                : 10  WIN32_OWN_PROCESS  \n"
        f"        STATUS             : {state}  LÄUFT \n"
        "                                (STOPPABLE, NOT_PAUSABLE, ACCEPTS_SHUTDOWN)\n"
        f"        WIN32_EXIT_CODE    : {code}  (0x0)\n"
        "        SERVICE_EXIT_CODE  : 0  (0x0)\n"
        "        PRÜFPUNKT          : 0x0\n"
    )


def test_net_starts_and_stops_only_what_is_not_so_already(stubs):
    stubs.answer("sc", {"query a": [query(1), query(4), query(4), query(1)]})
    stubs.answer("net", {"start a": (0, ""), "stop a": (0, "")})
    service = WindowsServices("a")
    service.start()
    service.start()
    service.stop()
    service.stop()
    assert stubs.calls == ["sc query a", "net start a", "sc query a", "sc query a", "net stop a", "sc query a"]


def test_a_service_that_somebody_else_started_meanwhile_is_started(stubs):
    stubs.answer("sc", {"query": [query(1), query(4)]})
    stubs.answer("net", {"start": (2, "Der angeforderte Dienst wurde bereits gestartet.\n\nNET HELPMSG 2182")})
    WindowsServices("a").start()


def test_a_crashed_service_counts_as_stopped_when_it_shall_stop(stubs):
    stubs.answer("sc", {"query": query(1, 1067)})
    WindowsServices("a").stop()
    assert stubs.calls == ["sc query a"]


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [
        (1, 0, ServiceStatus(State.STOPPED)),
        (1, 1077, ServiceStatus(State.STOPPED)),
        (1, 1067, ServiceStatus(State.FAILED, "exit code 1067")),
        (2, 0, ServiceStatus(State.STARTING)),
        (3, 0, ServiceStatus(State.STOPPING)),
        (4, 0, ServiceStatus(State.RUNNING)),
    ],
)
def test_the_state_of_a_windows_service_is_read_from_numbers(stubs, state, code, status):
    stubs.answer("sc", {"query": query(state, code)})
    assert WindowsServices("a").status() == status


@pytest.mark.parametrize(
    ("code", "text", "error"),
    [
        (1060, "[SC] EnumQueryServicesStatus:OpenService FEHLER 1060:", NotDeployedError),
        (5, "[SC] OpenService FEHLER 5:", PermissionRefusedError),
        (1722, "[SC] OpenSCManager FEHLER 1722:", RuntimeUnavailableError),
        (87, "[SC] FEHLER 87:", ControlError),
        (0, "nothing of use", ControlError),
    ],
)
def test_what_sc_refuses_has_its_own_error(monkeypatch, code, text, error):
    # A POSIX exit code has eight bits, a Windows one thirty-two, so that no stub can exit with 1060.
    monkeypatch.setattr(control, "_run", lambda *argv, timeout: control._Done(code, text))
    with pytest.raises(ControlError) as caught:
        WindowsServices("a").status()
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Systemfehler 5 aufgetreten.\n\nZugriff verweigert", PermissionRefusedError),
        ("Systemfehler 1060 aufgetreten.", NotDeployedError),
        ("a konnte nicht gestartet werden.\n\nNET HELPMSG 3534", ControlError),
    ],
)
def test_what_net_refuses_has_its_own_error(stubs, text, error):
    stubs.answer("sc", {"query": query(1)})
    stubs.answer("net", {"start": (2, text)})
    with pytest.raises(ControlError) as caught:
        WindowsServices("a").start()
    assert type(caught.value) is error
