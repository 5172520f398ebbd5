"""DockerAgent: connects a Docker host, its engine and its containers."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from connectors.core.base_agent import BaseAgent
from connectors.core.collector import Collector, run_collectors
from connectors.core.errors import ConnectorError, MissingExtraError
from connectors.core.preflight import Check, Outcome
from connectors.core.telemetry import Attributes, Collection
from connectors.docker import command
from connectors.docker.config import DockerAgentConfig
from connectors.docker.host import HostCollector

if TYPE_CHECKING:
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

    # Runtime

    def resource(self) -> Attributes:
        """The host that the engine runs on; while the engine cannot be asked, only that it is a Docker engine."""
        try:
            return self._known_resource
        except ConnectorError:
            return {"container.runtime.name": "docker"}

    def preflight(self) -> Sequence[Check]:
        """Whether the engine's socket is there and usable, the engine answers, and it lets us see its containers."""
        return [
            Check("docker.socket", self._check_socket),
            Check("docker.engine", self._check_engine, needs=("docker.socket",)),
            Check("docker.containers", self._check_containers, needs=("docker.engine",)),
        ]

    def _gather_data(self) -> Collection:
        return run_collectors(self._collectors, self.resource())

    @cached_property
    def _engine(self) -> Engine:
        return _engine(self.config, self.config.docker_host)

    def _control_engine(self) -> Engine:
        # docker_host says how the agent in its container reaches the engine; from here that address may mean nothing.
        return _engine(self.config, "")

    @cached_property
    def _known_resource(self) -> Attributes:
        engine = self._engine
        from connectors.docker.collect import engine_resource  # noqa: PLC0415 - as in start

        with engine.client() as client:
            return engine_resource(client.info())

    @cached_property
    def _collectors(self) -> Sequence[Collector]:
        engine = self._engine
        from connectors.docker import collect  # noqa: PLC0415 - as in start

        collectors: list[Collector] = [
            collect.EngineCollector(engine, self.resource),
            collect.ContainerCollector(
                engine,
                labels=self.config.label_allow_list,
                workers=self.config.stats_workers,
                deadline=self.config.collect_interval,
            ),
        ]
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
    return Engine(host=host, timeout=config.engine_timeout, connections=config.stats_workers)
