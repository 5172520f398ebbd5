"""The agent as a Windows service: a program that talks to the service control manager (SCM) itself, through ctypes.

What is decided is here in plain Python and tested with a stand-in for the SCM; the calls of Windows themselves are the class at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, Protocol, TextIO

from connectors.core.base_agent import BaseAgent
from connectors.core.errors import ConfigError, ConnectorError, ControlError

SETTINGS_FILE: Final = "environment.json"
"""In the service's directory: the agent's environment, a JSON object of texts. Windows keeps that of a service where all can read it."""
LOG_FILE: Final = "logs/agent.log"
LARGEST_LOG: Final = 5 * 1024 * 1024
"""Bytes past which a start puts the log aside, as ``agent.log.1``."""

START_WAIT: Final = 60_000
STOP_WAIT: Final = 20_000
"""Milliseconds that the SCM is asked to be patient for; a stopping agent has 10 s to flush."""

_ACCEPT_STOP_AND_SHUTDOWN: Final = 0x1 | 0x4
_CONTROL_STOP: Final = 1
_CONTROL_INTERROGATE: Final = 4
_CONTROL_SHUTDOWN: Final = 5
_NO_ERROR: Final = 0
_ERROR_CALL_NOT_IMPLEMENTED: Final = 120
_ERROR_SERVICE_SPECIFIC: Final = 1066
_NOT_STARTED_BY_SCM: Final = 1063


class ServiceState(IntEnum):
    """States of a service, as the SCM numbers them."""

    STOPPED = 1
    START_PENDING = 2
    STOP_PENDING = 3
    RUNNING = 4


class EventLevel(IntEnum):
    """Levels of the event log, as Windows numbers them."""

    ERROR = 1
    INFORMATION = 4


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """What a service tells the SCM: its state and, where that will take long, for how long (milliseconds); its exit code once stopped."""

    state: ServiceState
    wait: int = 0
    exit_code: int = 0

    def fields(self) -> tuple[int, int, int, int, int]:
        """State, accepted controls, exit code, the service's own exit code, wait hint: as the structure of Windows has them."""
        accepted = _ACCEPT_STOP_AND_SHUTDOWN if self.state is ServiceState.RUNNING else 0
        return self.state, accepted, _ERROR_SERVICE_SPECIFIC if self.exit_code else _NO_ERROR, self.exit_code, self.wait


class ServiceControl(Protocol):
    """The part of Windows that a service talks to."""

    def dispatch(self, name: str, main: Callable[[], None]) -> int:
        """Have the SCM call ``main`` in a thread of its own, and wait until the service has stopped; 0, or the error of Windows."""
        ...

    def listen(self, name: str, handler: Callable[[int], int]) -> None:
        """Have what the SCM says to the running service go to ``handler``, which answers with an error of Windows."""
        ...

    def report(self, status: ServiceReport) -> None:
        """Tell the SCM how the service is."""
        ...

    def log(self, name: str, level: EventLevel, text: str) -> None:
        """Write to the event log, where the source ``name`` is registered."""
        ...


def read_settings(path: Path) -> dict[str, str]:
    """The environment that the installer wrote for the agent.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        raise ConfigError(f"the settings in {path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"the settings in {path} are not JSON: {exc}") from exc
    if not isinstance(document, dict) or not all(isinstance(value, str) for value in document.values()):
        raise ConfigError(f"the settings in {path} are not an object of texts")
    return document


def open_log(path: Path) -> TextIO:
    """The log of a service, which has no terminal; one that has grown large is put aside first.

    Raises:
        OSError: it cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LARGEST_LOG:
            path.replace(path.with_name(f"{path.name}.1"))
    return path.open("a", encoding="utf-8", buffering=1)


class ServiceHost:
    """One run of the service.

    Args:
        control: the SCM.
        name: the service's, and its source's in the event log.
        make_agent: makes the agent that is to run; called in the service's thread.
    """

    def __init__(self, control: ServiceControl, name: str, make_agent: Callable[[], BaseAgent]) -> None:
        self._control = control
        self._name = name
        self._make_agent = make_agent
        self._stopping = threading.Event()
        self._report = ServiceReport(ServiceState.START_PENDING, START_WAIT)
        self._lock = threading.Lock()
        self._code = 0

    def serve(self) -> int:
        """Be the service until it is stopped; the agent's exit code.

        Raises:
            ControlError: Windows did not start this as a service.
        """
        error = self._control.dispatch(self._name, self._main)
        if error == _NOT_STARTED_BY_SCM:
            raise ControlError(f"this is for the service control manager: start the service with sc start {self._name}")
        if error:
            raise ControlError(f"the service control manager could not be reached (error {error})")
        return self._code

    def _main(self) -> None:
        self._control.listen(self._name, self._handle)
        self._tell(ServiceReport(ServiceState.START_PENDING, START_WAIT))
        try:
            agent = self._make_agent()
            self._tell(ServiceReport(ServiceState.RUNNING))
            self._control.log(self._name, EventLevel.INFORMATION, "The agent has started.")
            self._code = agent.run(self._stopping)
            reason = "A part of the agent failed for good; its log says why." if self._code else ""
        except ConnectorError as exc:
            self._code, reason = 2 if isinstance(exc, ConfigError) else 1, exc.reason
        except Exception as exc:  # noqa: BLE001 - whatever ends the service must be seen in the event log
            self._code, reason = 1, f"{type(exc).__name__}: {exc}"
        if reason:
            print(f"incident-rca-agent: {reason}", file=sys.stderr)  # noqa: T201 - the service's log
            self._control.log(self._name, EventLevel.ERROR, f"The agent has stopped: {reason}")
        else:
            self._control.log(self._name, EventLevel.INFORMATION, "The agent has stopped.")
        # The last word: with it Windows may end the process.
        self._tell(ServiceReport(ServiceState.STOPPED, exit_code=self._code))

    def _handle(self, code: int) -> int:
        if code in (_CONTROL_STOP, _CONTROL_SHUTDOWN):
            self._tell(ServiceReport(ServiceState.STOP_PENDING, STOP_WAIT))
            self._stopping.set()
            return _NO_ERROR
        if code == _CONTROL_INTERROGATE:
            with self._lock:
                self._control.report(self._report)
            return _NO_ERROR
        return _ERROR_CALL_NOT_IMPLEMENTED

    def _tell(self, report: ServiceReport) -> None:
        with self._lock:
            if self._report.state is ServiceState.STOPPED:
                return  # nothing may follow it
            if self._report.state is ServiceState.STOP_PENDING and report.state is ServiceState.RUNNING:
                return  # told to stop while it was starting
            self._report = report
            self._control.report(report)


def serve(name: str, directory: Path, make_agent: Callable[[], BaseAgent], control: ServiceControl | None = None) -> int:
    """Be the Windows service ``name``, whose settings and log are in ``directory``, until it is stopped; the agent's exit code.

    ``make_agent`` makes the agent once the settings are in the environment.

    Raises:
        ControlError: this is not Windows, or Windows did not start this as a service.
    """
    control = control or _windows()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # an agent that cannot log works all the same
            log = stack.enter_context(open_log(directory / LOG_FILE))
            stack.enter_context(contextlib.redirect_stderr(log))

        def make() -> BaseAgent:
            os.environ.update(read_settings(directory / SETTINGS_FILE))
            return make_agent()

        return ServiceHost(control, name, make).serve()


def _windows() -> ServiceControl:
    if sys.platform == "win32":  # pragma: no cover - Windows only
        return _WindowsServiceControl()
    raise ControlError("services of Windows are only on Windows")


if sys.platform == "win32":  # pragma: no cover - Windows only
    import ctypes
    from ctypes import wintypes

    class _Status(ctypes.Structure):
        _fields_ = (
            ("type", wintypes.DWORD),
            ("state", wintypes.DWORD),
            ("accepted", wintypes.DWORD),
            ("exit_code", wintypes.DWORD),
            ("own_exit_code", wintypes.DWORD),
            ("checkpoint", wintypes.DWORD),
            ("wait_hint", wintypes.DWORD),
        )

    _ServiceMain = ctypes.WINFUNCTYPE(None, wintypes.DWORD, ctypes.POINTER(wintypes.LPWSTR))
    _Handler = ctypes.WINFUNCTYPE(wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, wintypes.LPVOID, wintypes.LPVOID)

    class _TableEntry(ctypes.Structure):
        _fields_ = (("name", wintypes.LPWSTR), ("main", _ServiceMain))

    class _WindowsServiceControl:
        """:class:`ServiceControl` by the functions of advapi32.dll."""

        _OWN_PROCESS: Final = 0x10
        _EVENT_ID: Final = 1

        def __init__(self) -> None:
            self._api = ctypes.WinDLL("advapi32", use_last_error=True)
            self._api.StartServiceCtrlDispatcherW.argtypes = (ctypes.POINTER(_TableEntry),)
            self._api.RegisterServiceCtrlHandlerExW.argtypes = (wintypes.LPCWSTR, _Handler, wintypes.LPVOID)
            self._api.RegisterServiceCtrlHandlerExW.restype = wintypes.HANDLE
            self._api.SetServiceStatus.argtypes = (wintypes.HANDLE, ctypes.POINTER(_Status))
            self._api.RegisterEventSourceW.argtypes = (wintypes.LPCWSTR, wintypes.LPCWSTR)
            self._api.RegisterEventSourceW.restype = wintypes.HANDLE
            self._api.ReportEventW.argtypes = (
                wintypes.HANDLE,
                wintypes.WORD,
                wintypes.WORD,
                wintypes.DWORD,
                wintypes.LPVOID,
                wintypes.WORD,
                wintypes.DWORD,
                ctypes.POINTER(wintypes.LPCWSTR),
                wintypes.LPVOID,
            )
            self._api.DeregisterEventSource.argtypes = (wintypes.HANDLE,)
            self._handle: int | None = None
            self._checkpoint = 0
            self._kept: list[object] = []  # Windows calls these for as long as the process lives

        def dispatch(self, name: str, main: Callable[[], None]) -> int:
            entry = _ServiceMain(lambda _count, _words: main())
            table = (_TableEntry * 2)(_TableEntry(name, entry), _TableEntry(None, _ServiceMain()))
            self._kept += [entry, table]
            return 0 if self._api.StartServiceCtrlDispatcherW(table) else ctypes.get_last_error()

        def listen(self, name: str, handler: Callable[[int], int]) -> None:
            callback = _Handler(lambda code, _type, _data, _context: handler(code))
            self._kept.append(callback)
            self._handle = self._api.RegisterServiceCtrlHandlerExW(name, callback, None)

        def report(self, status: ServiceReport) -> None:
            state, accepted, exit_code, own_exit_code, wait = status.fields()
            pending = state in (ServiceState.START_PENDING, ServiceState.STOP_PENDING)
            self._checkpoint = self._checkpoint + 1 if pending else 0
            told = _Status(self._OWN_PROCESS, state, accepted, exit_code, own_exit_code, self._checkpoint, wait)
            self._api.SetServiceStatus(self._handle, ctypes.byref(told))

        def log(self, name: str, level: EventLevel, text: str) -> None:
            source = self._api.RegisterEventSourceW(None, name)
            if not source:
                return
            words = (wintypes.LPCWSTR * 1)(text)
            self._api.ReportEventW(source, level, 0, self._EVENT_ID, None, 1, 0, words, None)
            self._api.DeregisterEventSource(source)
