"""DockerAgent: connects a Docker host, its engine and its containers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from connectors.core.base_agent import BaseAgent
from connectors.core.collector import Collector, run_collectors
from connectors.core.errors import CollectorError, ConnectorError, MissingExtraError
from connectors.core.preflight import Check, Outcome
from connectors.core.telemetry import Attributes, Collection, Event
from connectors.docker import command, compose, machine
from connectors.docker.config import DockerAgentConfig
from connectors.docker.host import HostCollector

if TYPE_CHECKING:
    from connectors.docker.changes import ChangeWatch
    from connectors.docker.engine import Engine


class DockerAgent(BaseAgent):
    """An agent that runs as a container and watches the engine that runs it.

    Planning (commands, instructions) needs nothing but this package; control and runtime need docker-py, the extra ``docker``.
    """

    agent_type = "docker"
    description = "Connects a Docker host: the engine, and the state and resource use of all of its containers."
    runs_on = ("Docker Engine 20.10 or newer, on Linux",)
    config_class = DockerAgentConfig
    default_state_dir = command.STATE_DIR
    config: DockerAgentConfig

    # Control

    def start(self) -> None:
        """``docker start`` of the deployed container, on the engine that ``DOCKER_HOST`` names here.

        Raises:
            RuntimeUnavailableError: no engine.
            PermissionRefusedError: this user may not use it.
            NotDeployedError: no container of that name.
            ControlError: the name is taken by a container that is not an agent, or the engine refused.
            MissingExtraError: docker-py is not installed.
        """
        engine = self._control_engine()
        from connectors.docker import control  # noqa: PLC0415 - needs docker-py, which planning must not need

        try:
            control.start(engine, self.config)
        finally:
            engine.close()

    def stop(self) -> None:
        """``docker stop`` of the deployed container, on the engine that ``DOCKER_HOST`` names here.

        Raises:
            ControlError: as :meth:`start`.
        """
        engine = self._control_engine()
        from connectors.docker import control  # noqa: PLC0415 - as in start

        try:
            control.stop(engine, self.config)
        finally:
            engine.close()

    def get_deployment_command(self) -> str:
        """The ``docker run`` command, for a POSIX shell on the Docker host."""
        return command.deployment_command(self.platform_url, self.agent_token, self.config)

    def get_instructions(self) -> str:
        """Numbered steps for a person who is about to run the deployment command."""
        return command.instructions(self.platform_url, self.config)

    def get_uninstall_command(self) -> str:
        """The command that removes container and state."""
        return command.uninstall_command(self.config)

    def get_compose_file(self) -> str:
        """A ``compose.yaml`` that deploys the same container."""
        return compose.compose_file(self.platform_url, self.agent_token, self.config)

    def get_alternatives(self) -> Sequence[tuple[str, str]]:
        """Compose, and the command with the token kept out of the shell's history, of process lists or of ``docker inspect``."""
        found = [("compose.yaml", self.get_compose_file())]
        if not self.config.token_file:
            file = command.env_file_name(self.config)
            by_file, by_env_file = (
                command.deployment_command(self.platform_url, self.agent_token, self.config, by)
                for by in (command.TokenBy.FILE, command.TokenBy.ENV_FILE)
            )
            found += [
                (f"Token in an environment file: write this to {file}, readable by yourself only", command.env_file(self.agent_token)),
                (f"Token in an environment file: run this beside {file}, which may be removed afterwards", by_env_file),
                (f"Token in a mounted file: first {command.token_file_command(self.config)} Then run this.", by_file),
            ]
        return found

    # Runtime

    def resource(self) -> Attributes:
        """The host that the engine runs on; while the engine cannot be asked, only that it is a Docker engine."""
        try:
            return self._known_resource
        except ConnectorError:
            return {"container.runtime.name": "docker"}

    def machine_id(self) -> str:
        """The engine's identity: a container's own host name and network card change when the container is replaced."""
        return machine.machine_id(self.state_dir, self._ask_engine_id)

    def watch(self, emit: Callable[[Event], None], stopping: threading.Event) -> None:
        """Follow the engine's events (:mod:`connectors.docker.changes`) until ``stopping`` is set.

        Raises:
            CollectorError: the engine is not there, does not answer or refuses, or docker-py is not installed; watching again goes on
                where this ended.
        """
        try:
            watch = self._change_watch
        except MissingExtraError as exc:
            raise CollectorError(exc.reason) from exc
        watch.run(emit, stopping)

    def preflight(self) -> Sequence[Check]:
        """Whether the engine's socket is there and usable, the engine answers, and it lets us see its containers."""
        return [
            Check("docker.socket", self._check_socket),
            Check("docker.engine", self._check_engine, needs=("docker.socket",)),
            Check("docker.containers", self._check_containers, needs=("docker.engine",)),
        ]

    def _gather_data(self) -> Collection:
        self._engine.try_again()
        return run_collectors(self._collectors, self.resource())

    @cached_property
    def _engine(self) -> Engine:
        return _engine(self.config, self.config.docker_host)

    def _ask_engine_id(self) -> str:
        with self._engine.client() as client:
            return str(client.info().get("ID") or "")

    def _control_engine(self) -> Engine:
        # docker_host says how the agent in its container reaches the engine; from here that address may mean nothing.
        return _engine(self.config, "")

    @cached_property
    def _change_watch(self) -> ChangeWatch:
        engine = self._engine
        from connectors.docker.changes import ChangeWatch  # noqa: PLC0415 - as in start

        return ChangeWatch(engine, self.config, self.state_dir)

    @cached_property
    def _known_resource(self) -> Attributes:
        engine = self._engine
        from connectors.docker.collect import engine_resource  # noqa: PLC0415 - as in start

        with engine.client("info") as client:
            return engine_resource(client.info())

    @cached_property
    def _collectors(self) -> Sequence[Collector]:
        engine = self._engine
        from connectors.docker import collect, disk  # noqa: PLC0415 - as in start

        collectors: list[Collector] = [
            collect.EngineCollector(engine, self.resource),
            collect.ContainerCollector(
                engine,
                self.resource,
                labels=self.config.label_allow_list,
                width=self.config.stats_workers,
                budget=0.9 * self.config.collect_interval,
            ),
        ]
        if self.config.disk_usage_interval:
            collectors.append(disk.DiskCollector(engine, self.resource, interval=self.config.disk_usage_interval))
        if self.config.host_metrics:
            collectors.append(HostCollector(self.resource))
        return collectors

    def _check_socket(self) -> tuple[Outcome, str, str]:
        try:
            engine = self._engine
        except MissingExtraError as exc:
            return Outcome.FAIL, exc.reason, "Install the extra, or use the agent's image, which has it."
        if not (path := engine.socket):
            return Outcome.PASS, f"no socket: the engine is reached at {engine.host}", ""
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(engine.timeout)
                probe.connect(path)
        except PermissionError:
            return Outcome.FAIL, f"no permission to use {path}", f'Add the socket\'s group: --group-add "$(stat -c %g {path})".'
        except ConnectionRefusedError:
            advice = "Is the engine running? docker run makes a directory of a socket that is not there: start the engine first."
            return Outcome.FAIL, f"nothing listens on {path}", advice
        except OSError as exc:
            advice = f"Mount the engine's socket (-v {path}:{path}), or set DOCKER_HOST to where it is."
            return Outcome.FAIL, f"{path}: {exc.strerror or exc}", advice
        return Outcome.PASS, f"{path} may be used", ""

    def _check_engine(self) -> tuple[Outcome, str, str]:
        try:
            with self._engine.client() as client:
                version = client.version()
        except ConnectorError as exc:
            return Outcome.FAIL, exc.reason, "Start the engine, or set DOCKER_HOST to where it is."
        return Outcome.PASS, f"Docker Engine {version.get('Version')} answers, API {version.get('ApiVersion')}", ""

    def _check_containers(self) -> tuple[Outcome, str, str]:
        try:
            with self._engine.client() as client:
                count = len(client.containers(all=True))
        except ConnectorError as exc:
            return Outcome.FAIL, exc.reason, "A socket proxy must let GET requests for containers and info through (CONTAINERS=1, INFO=1)."
        return Outcome.PASS, f"{count} containers are visible", ""


def _engine(config: DockerAgentConfig, host: str) -> Engine:
    try:
        from connectors.docker.engine import Engine  # noqa: PLC0415 - as in DockerAgent.start
    except ImportError as exc:
        raise MissingExtraError(f"this needs the package {exc.name!r}: pip install 'incident-rca[docker]'") from exc
    return Engine(host=host, timeout=config.engine_timeout)
