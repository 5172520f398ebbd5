"""The server agent: a host (a machine or a virtual one) with Linux, macOS or Windows.

The running agent loads collectors only; command planning and service control are imported where they are used, because what is
imported here stays in the memory of every host.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

from connectors.core.agent_config import AgentConfig
from connectors.core.base_agent import BaseAgent
from connectors.core.collector import Collector, run_collectors
from connectors.core.preflight import Check, Outcome
from connectors.core.telemetry import Attributes, Collection, Event
from connectors.server import host
from connectors.server.config import ServerConfig

if TYPE_CHECKING:
    from connectors.server.changes.watch import ChangeWatch
    from connectors.server.control import ServiceStatus

_NO_ADVICE: Final = ""


class ServerAgent(BaseAgent):
    """Connects one host: CPU, memory, paging, disks, filesystems, network, processes, load and uptime."""

    agent_type = "server"
    description = "A physical or virtual machine: CPU, memory, paging, disks, filesystems, network, processes, load and uptime."
    runs_on: ClassVar[tuple[str, ...]] = (
        "Linux (systemd as a service, any in the foreground)",
        "macOS (Homebrew)",
        "Windows (PowerShell 5.1 or newer)",
    )
    config_class: ClassVar[type[AgentConfig]] = ServerConfig
    config: ServerConfig
    default_state_dir: ClassVar[str] = host.default_state_dir(sys.platform, os.environ, privileged=host.is_privileged())

    install_script_sha256: ClassVar[str] = ""
    """Checksum of the Linux install script as the platform serves it, where the platform tells it: pinned in printed commands."""

    _host: Attributes | None = None
    _collectors: Sequence[Collector] | None = None
    _changes: ChangeWatch | None = None

    # Control: on the machine where this is called.

    def start(self) -> None:
        """Start the agent's service on this machine. Starting a running one changes nothing.

        Raises:
            ControlError: with the reason, one subclass for each kind (tool missing, no permission, not deployed, unavailable).
        """
        from connectors.server.control import service_manager  # noqa: PLC0415 - see the module

        service_manager(self.config.service_name).start()

    def stop(self) -> None:
        """Stop the agent's service on this machine. Stopping a stopped one changes nothing.

        Raises:
            ControlError: as :meth:`start`.
        """
        from connectors.server.control import service_manager  # noqa: PLC0415 - see the module

        service_manager(self.config.service_name).stop()

    def status(self) -> ServiceStatus:
        """What this machine's service manager says of the agent's service.

        Raises:
            ControlError: as :meth:`start`.
        """
        from connectors.server.control import service_manager  # noqa: PLC0415 - see the module

        return service_manager(self.config.service_name).status()

    def get_deployment_command(self) -> str:
        """The command that installs the agent as a service of the configured ``os``: pure, quoted for its shell, safe to run again."""
        from connectors.server import command  # noqa: PLC0415 - see the module

        return command.install_command(self.config, self.platform_url, self.agent_token)

    def get_run_command(self) -> str:
        """The command that runs the agent in the foreground where the package is installed."""
        from connectors.server import command  # noqa: PLC0415 - see the module

        return command.run_command(self.config, self.platform_url, self.agent_token)

    def get_instructions(self) -> str:
        """Numbered steps for a person, with what works in this version."""
        from connectors.server import command  # noqa: PLC0415 - see the module

        return command.instructions(self.config, self.platform_url)

    def get_alternatives(self) -> Sequence[tuple[str, str]]:
        """With the script's checksum compared first, with the token kept out of the command, a dry run; macOS: without Homebrew."""
        from connectors.server import command  # noqa: PLC0415 - see the module

        return command.alternatives(self.config, self.platform_url, self.agent_token, self.install_script_sha256)

    def get_uninstall_command(self) -> str:
        """The command that removes the agent and all it left; needs no token."""
        from connectors.server import command  # noqa: PLC0415 - see the module

        return command.uninstall_command(self.config, self.platform_url)

    # Runtime: on the host.

    def _gather_data(self) -> Collection:
        collection = run_collectors(self._ready_collectors(), self.resource())
        if self._changes is None or not (failed := self._changes.failures()):
            return collection
        # A watcher that fails degrades the agent, as a collector does.
        return replace(collection, collectors=[*collection.collectors, *failed])

    def watch(self, emit: Callable[[Event], None], stopping: threading.Event) -> None:
        """Tell what changes on the host (:mod:`connectors.server.changes`) until ``stopping`` is set."""
        if not self.config.change_watchers:
            stopping.wait()
            return
        if self._changes is None:
            from connectors.server.changes.assemble import make_watch  # noqa: PLC0415 - only a running agent watches

            self._changes = make_watch(self.config, self.resource(), self.state_dir)
        self._changes.run(emit, stopping)

    def resource(self) -> Attributes:
        """The host's resource attributes, ``host.id`` first; found out once."""
        if self._host is None:
            self._host = host.host_resource()
        return self._host

    def preflight(self) -> Sequence[Check]:
        """The host's identity, and whether each collector can read its source."""
        return (Check("host-id", _check_host_id), Check("collectors", self._check_collectors))

    def _ready_collectors(self) -> Sequence[Collector]:
        if self._collectors is None:
            from connectors.server.collect import make_collectors  # noqa: PLC0415 - brings psutil, which control has no use for

            self._collectors = make_collectors(self.config, self.resource())
        return self._collectors

    def _check_collectors(self) -> tuple[Outcome, str, str]:
        collection = self._gather_data()
        failed = [f"{result.name}: {result.reason}" for result in collection.collectors if not result.ok]
        count = len(collection.collectors)
        if not failed:
            return Outcome.PASS, f"{count} collectors read {collection.point_count} values", _NO_ADVICE
        advice = "The agent runs without them. Grant what is missing, or leave the collector out of the option collectors."
        outcome = Outcome.FAIL if len(failed) == count else Outcome.WARN
        return outcome, "; ".join(failed), advice


def _check_host_id() -> tuple[Outcome, str, str]:
    if found := host.machine_id():
        return Outcome.PASS, f"this machine is {found}", _NO_ADVICE
    return (
        Outcome.WARN,
        "this machine has no id of its own, so it is told from others by its name",
        "Create one with systemd-machine-id-setup (or dbus-uuidgen --ensure).",
    )
