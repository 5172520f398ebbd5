"""Control of an installed server agent through the service manager of the machine that this runs on.

Linux: systemctl. macOS: launchctl (the install script's daemon or Homebrew's service). Windows: ``sc`` to ask and ``net`` to act, for
``net`` waits until the service has started or stopped. Starting what runs and stopping what stands change nothing.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NoReturn, Protocol

from connectors.core.errors import ControlError, NotDeployedError, PermissionRefusedError, RuntimeUnavailableError, ToolMissingError

ASK_TIMEOUT: Final = 15.0
"""Seconds that a question may take."""
ACT_TIMEOUT: Final = 90.0
"""Seconds that starting or stopping may take; a stopping agent has 10 s to flush."""

_REFUSALS: Final = ("access denied", "permission denied", "authentication required", "not permitted", "not privileged")
_ABSENT_MANAGERS: Final = ("failed to connect to bus", "has not been booted with systemd", "connection timed out", "transport endpoint")
_LAUNCHD_UNKNOWN_SERVICE: Final = (3, 113)
_LAUNCHD_IN_PROGRESS: Final = (36, 37)
_WIN32_ACCESS_DENIED: Final = 5
_WIN32_NO_MANAGER: Final = (1722, 1115)
_WIN32_NO_SUCH_SERVICE: Final = 1060


class State(StrEnum):
    """What the service manager says of the agent."""

    RUNNING = "running"
    STARTING = "starting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The agent's state, and what the service manager adds to it."""

    state: State
    detail: str = ""


class ServiceManager(Protocol):
    """Acts on one service. Every method raises the subclass of ``ControlError`` that fits."""

    def start(self) -> None:
        """Start the service."""
        ...

    def stop(self) -> None:
        """Stop the service."""
        ...

    def status(self) -> ServiceStatus:
        """Ask for the service's state."""
        ...


def service_manager(service_name: str, system: str | None = None) -> ServiceManager:
    """The service manager of this machine, for the service of that name. ``system`` is as :func:`platform.system`.

    Raises:
        ToolMissingError: this operating system's service manager is not known.
    """
    system = system or platform.system()
    if system == "Linux":
        return Systemd(service_name)
    if system == "Darwin":
        return Launchd()
    if system == "Windows":
        return WindowsServices(service_name)
    raise ToolMissingError(f"services cannot be controlled on {system or 'this system'}: Linux with systemd, macOS and Windows are known")


class Systemd:
    """``systemctl``, on a unit of the system's instance."""

    _states: Final[Mapping[str, State]] = {
        "active": State.RUNNING,
        "reloading": State.RUNNING,
        "activating": State.STARTING,
        "deactivating": State.STOPPING,
        "failed": State.FAILED,
        "inactive": State.STOPPED,
    }

    def __init__(self, service_name: str) -> None:
        self._unit = f"{service_name}.service"

    def start(self) -> None:
        """Start the unit; systemd says nothing if it runs already."""
        self._act("start")

    def stop(self) -> None:
        """Stop the unit; systemd says nothing if it is stopped already."""
        self._act("stop")

    def status(self) -> ServiceStatus:
        """The unit's state, with its sub-state and result."""
        done = _run("systemctl", "show", self._unit, "--property=LoadState,ActiveState,SubState,Result", timeout=ASK_TIMEOUT)
        if done.code:
            self._fail("show", done)
        facts = dict(line.split("=", 1) for line in done.text.splitlines() if "=" in line)
        if facts.get("LoadState") == "not-found":
            raise self._not_deployed()
        state = self._states.get(facts.get("ActiveState", ""))
        if state is None:
            raise ControlError(f"systemctl show says nothing of the state of {self._unit}: {done.summary}")
        words = [facts.get("SubState", "")]
        if facts.get("Result", "success") != "success":
            words.append(f"result: {facts['Result']}")
        if facts.get("LoadState") == "masked":
            words.append("masked")
        return ServiceStatus(state, ", ".join(filter(None, words)))

    def _act(self, verb: str) -> None:
        done = _run("systemctl", "--no-ask-password", verb, self._unit, timeout=ACT_TIMEOUT)
        if done.code:
            self._fail(verb, done)

    def _fail(self, verb: str, done: _Done) -> NoReturn:
        if any(sign in done.lowered for sign in _ABSENT_MANAGERS):
            raise RuntimeUnavailableError(f"systemd does not answer on this machine: {done.summary}")
        if any(sign in done.lowered for sign in _REFUSALS):
            raise PermissionRefusedError(f"systemd refused to {verb} {self._unit}; run this as root: {done.summary}")
        if re.search(r"not (found|loaded)|does not exist|no such (unit|file)", done.lowered):
            raise self._not_deployed()
        raise ControlError(f"systemctl {verb} {self._unit} failed with exit code {done.code}: {done.summary}")

    def _not_deployed(self) -> NotDeployedError:
        return NotDeployedError(f"there is no unit {self._unit} on this machine; run the deployment command first")


class Launchd:
    """``launchctl``, on the daemon that the install script made or the service that Homebrew made of the formula.

    For root that is the system's one (the script's where both are there), for everybody else the user's own that Homebrew made.
    """

    LABEL: Final = "homebrew.mxcl.incident-rca-agent"
    DAEMON_LABEL: Final = "io.incident-rca.agent"

    def __init__(self, *, uid: int | None = None, home: Path | None = None, system_daemons: Path = Path("/Library/LaunchDaemons")) -> None:
        uid = (os.geteuid() if hasattr(os, "geteuid") else 0) if uid is None else uid
        self._domain = f"gui/{uid}" if uid else "system"
        directory = (home or Path.home()) / "Library" / "LaunchAgents" if uid else system_daemons
        label = self.DAEMON_LABEL if not uid and (directory / f"{self.DAEMON_LABEL}.plist").exists() else self.LABEL
        self._target = f"{self._domain}/{label}"
        self._plist = directory / f"{label}.plist"

    def start(self) -> None:
        """Load the service where launchd does not know it, start it where it does not run."""
        found = self._print()
        if found is None:
            self._require_plist()
            self._act("bootstrap", self._domain, str(self._plist))
        elif self._parse(found).state is not State.RUNNING:
            self._act("kickstart", self._target)

    def stop(self) -> None:
        """Unload the service: launchd would start one again that is merely killed."""
        if self._print() is None:
            self._require_plist()
        else:
            self._act("bootout", self._target)

    def status(self) -> ServiceStatus:
        """The service's state; stopped when launchd does not know it though it is installed."""
        found = self._print()
        if found is None:
            self._require_plist()
            return ServiceStatus(State.STOPPED, "not loaded")
        return self._parse(found)

    def _print(self) -> str | None:
        done = _run("launchctl", "print", self._target, timeout=ASK_TIMEOUT)
        if done.code in _LAUNCHD_UNKNOWN_SERVICE or "could not find service" in done.lowered:
            return None
        if done.code:
            self._fail("print", done)
        return done.text

    @staticmethod
    def _parse(text: str) -> ServiceStatus:
        facts = dict(re.findall(r"^\s*(state|pid|last exit code) = (.+?)\s*$", text, re.MULTILINE))
        if facts.get("state") == "running":
            return ServiceStatus(State.RUNNING, f"pid {facts['pid']}" if "pid" in facts else "")
        code = facts.get("last exit code", "")
        failed = code not in ("", "0", "(never exited)")
        return ServiceStatus(State.FAILED if failed else State.STOPPED, f"last exit code {code}" if failed else facts.get("state", ""))

    def _act(self, verb: str, *arguments: str) -> None:
        done = _run("launchctl", verb, *arguments, timeout=ACT_TIMEOUT)
        if done.code and done.code not in _LAUNCHD_IN_PROGRESS:
            if verb == "bootout" and done.code in _LAUNCHD_UNKNOWN_SERVICE:
                return  # it went between the question and this
            self._fail(verb, done)

    def _fail(self, verb: str, done: _Done) -> NoReturn:
        if done.code == 1 or any(sign in done.lowered for sign in _REFUSALS):
            raise PermissionRefusedError(f"launchd refused to {verb} {self._target}: {done.summary}")
        if "domain does not support" in done.lowered or "could not find domain" in done.lowered:
            raise RuntimeUnavailableError(f"launchd has no domain {self._domain} (is the user logged in?): {done.summary}")
        raise ControlError(f"launchctl {verb} {self._target} failed with exit code {done.code}: {done.summary}")

    def _require_plist(self) -> None:
        if not self._plist.exists():
            raise NotDeployedError(
                f"there is no service {self._plist.stem} on this machine ({self._plist} is missing); run the deployment command first"
            )


class WindowsServices:
    """``sc`` and ``net``. Exit codes and numbers are read, never words: Windows speaks its user's language."""

    _states: Final[Mapping[int, State]] = {
        1: State.STOPPED,
        2: State.STARTING,
        3: State.STOPPING,
        4: State.RUNNING,
        5: State.STARTING,
        6: State.STOPPING,
        7: State.STOPPED,
    }

    def __init__(self, service_name: str) -> None:
        self._name = service_name

    def start(self) -> None:
        """Start the service and wait until it has."""
        self._reach(State.RUNNING, "start")

    def stop(self) -> None:
        """Stop the service and wait until it has."""
        self._reach(State.STOPPED, "stop")

    def status(self) -> ServiceStatus:
        """The service's state; failed when it stopped with an error of its own."""
        done = _run("sc", "query", self._name, timeout=ASK_TIMEOUT)
        if done.code:
            self._fail("query", done.code, done)
        # SERVICE_NAME, TYPE, STATE, WIN32_EXIT_CODE, …: the labels are translated, the order and the numbers are not.
        numbers = [int(found) for found in re.findall(r":\s+(\d+)\b", done.text)]
        if len(numbers) < 3 or numbers[1] not in self._states:  # noqa: PLR2004 - type, state, exit code
            raise ControlError(f"sc query {self._name} says nothing of its state: {done.summary}")
        state, code = self._states[numbers[1]], numbers[2]
        if state is State.STOPPED and code not in (0, 1077):  # 1077: not started since boot
            return ServiceStatus(State.FAILED, f"exit code {code}")
        return ServiceStatus(state)

    def _reach(self, wanted: State, verb: str) -> None:
        if self._is(wanted):
            return
        done = _run("net", verb, self._name, timeout=ACT_TIMEOUT)
        if done.code and not self._is(wanted):
            numbers = [int(found) for found in re.findall(r"\b\d{1,5}\b", done.text)]
            known = (_WIN32_ACCESS_DENIED, _WIN32_NO_SUCH_SERVICE, *_WIN32_NO_MANAGER)
            self._fail(verb, next((number for number in numbers if number in known), done.code), done)

    def _is(self, wanted: State) -> bool:
        state = self.status().state
        return state is wanted or (wanted is State.STOPPED and state is State.FAILED)

    def _fail(self, verb: str, code: int, done: _Done) -> NoReturn:
        if code == _WIN32_NO_SUCH_SERVICE:
            raise NotDeployedError(f"there is no service {self._name} on this machine; run the deployment command first")
        if code == _WIN32_ACCESS_DENIED:
            raise PermissionRefusedError(f"Windows refused to {verb} the service {self._name}; run this as administrator")
        if code in _WIN32_NO_MANAGER:
            raise RuntimeUnavailableError(f"the service manager does not answer: {done.summary}")
        raise ControlError(f"the service {self._name} could not be told to {verb} (exit code {done.code}): {done.summary}")


@dataclass(frozen=True, slots=True)
class _Done:
    """A finished program: exit code, and output and errors together."""

    code: int
    text: str

    @property
    def summary(self) -> str:
        return " ".join(self.text.split())[:300] or "it printed nothing"

    @property
    def lowered(self) -> str:
        return self.text.lower()


def _run(*argv: str, timeout: float) -> _Done:
    """Run a program in the C locale and wait for it."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
        )
    except FileNotFoundError as exc:
        raise ToolMissingError(f"{argv[0]} is not installed or not on the path") from exc
    except PermissionError as exc:
        raise PermissionRefusedError(f"{argv[0]} must not be run by this user") from exc
    except subprocess.TimeoutExpired as exc:
        raise RuntimeUnavailableError(f"{' '.join(argv)} did not finish within {timeout:g} s") from exc
    except OSError as exc:
        raise ControlError(f"{argv[0]} could not be run: {exc.strerror or exc}") from exc
    return _Done(done.returncode, done.stdout.decode(errors="replace"))
