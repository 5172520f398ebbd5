"""The options of the docker agent type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import annotated_types as at

from connectors.core.agent_config import AgentConfig, Pattern, option
from connectors.core.errors import ConfigError

CONTAINER_NAME = "incident-rca-agent"
IMAGE = "incident-rca/agent:latest"
DEFAULT_SOCKET = "/var/run/docker.sock"

OWN_VARIABLES = frozenset({"AGENT_TYPE", "PLATFORM_API_URL", "AGENT_TOKEN", "AGENT_TOKEN_FILE", "AGENT_CONFIG_FILE"})
"""Environment variables that the deployment command sets itself."""

_MOUNTABLE = re.compile(r'/[^,":\x00-\x1f\x7f]*')


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerAgentConfig(AgentConfig):
    """Options of a docker agent."""

    container_name: Annotated[str, Pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+"), at.Len(2, 128)] = option(
        CONTAINER_NAME, "Name of the agent's container.", scope="deploy"
    )
    state_volume: Annotated[str, Pattern(r"([a-zA-Z0-9][a-zA-Z0-9_.-]+)?"), at.Len(0, 255)] = option(
        "",
        "Name of the volume that keeps identity, credential and unsent data when the container is replaced; empty means container_name.",
        scope="deploy",
    )
    restart_policy: Annotated[str, Pattern(r"no|always|unless-stopped|on-failure(:[1-9][0-9]{0,4})?")] = option(
        "unless-stopped", "When the engine starts the agent again by itself, as docker run --restart takes it.", scope="deploy"
    )
    image: Annotated[str, Pattern(r"[a-zA-Z0-9][a-zA-Z0-9._:/@-]*")] = option(IMAGE, "Image that the agent runs from.", scope="deploy")
    network: Annotated[str, Pattern(r"([a-zA-Z0-9][a-zA-Z0-9_.:-]*)?")] = option(
        "", "Docker network that the agent joins; empty means the engine's default.", scope="deploy"
    )
    memory_limit: Annotated[str, Pattern(r"([1-9][0-9]*[bkmg]?)?")] = option(
        "256m", "Most memory that the agent's container may use, as docker run --memory takes it; empty means no limit.", scope="deploy"
    )
    pids_limit: Annotated[int, at.Ge(0)] = option(
        256, "Most processes and threads in the agent's container; 0 means no limit.", scope="deploy", unit="{process}"
    )
    socket_group: Annotated[str, Pattern(r"([0-9]{1,10}|[a-z_][a-z0-9_-]{0,31})?")] = option(
        "",
        "Group that may use the engine's socket as the container sees it; empty asks the Docker host when the command runs. "
        "Docker Desktop and rootless engines need 0.",
        scope="deploy",
    )
    token_file: str = option(
        "",
        "Absolute path of a file on the Docker host that holds the token. Given, the command mounts it and does not contain the token.",
        scope="deploy",
    )
    extra_environment: Mapping[Annotated[str, Pattern(r"[A-Za-z_][A-Za-z0-9_]*")], str] = option(
        doc="Further environment variables of the agent's container, such as HTTPS_PROXY.", factory=dict, scope="deploy"
    )
    extra_labels: Mapping[Annotated[str, Pattern(r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?")], str] = option(
        doc="Further labels of the agent's container.", factory=dict, scope="deploy"
    )
    docker_host: Annotated[str, Pattern(r'(unix:///[^,":\s]+|(tcp|http|https)://[^\s]+)?')] = option(
        "",
        "Where the agent finds the engine: unix:///path for another socket, or tcp://host:port for a socket proxy "
        "(no socket is mounted then). Empty means the engine's own socket.",
        host_only=True,
    )
    host_metrics: bool = option(False, "Also measure the host itself; the command then mounts the host's /proc and /sys read-only.")
    label_allow_list: tuple[str, ...] = option(
        (),
        "Container labels that become resource attributes (container.label.<key>), beside compose's project and service, which always do. "
        "Labels outside the list are not sent.",
    )
    engine_timeout: Annotated[float, at.Ge(1), at.Le(60)] = option(5.0, "Seconds that one request to the engine may take.", unit="s")
    stats_workers: Annotated[int, at.Ge(1), at.Le(1024)] = option(
        256, "Containers that are asked about at a time, each over a connection of its own. The engine takes a second for all of them."
    )
    disk_usage_interval: Annotated[float, at.Ge(0), at.Le(86400)] = option(
        300.0, "Seconds between two questions about the engine's disk use, which may be costly for it; 0 asks never.", unit="s"
    )
    death_logs: bool = option(
        False,
        "Attach the last lines that a container wrote to the event of its death. Secret-looking values are taken out, "
        "but what a program writes cannot be known: turn it on where logs may leave the host.",
    )
    death_log_lines: Annotated[int, at.Ge(1), at.Le(200)] = option(50, "Lines that death_logs attaches at most.", unit="{line}")

    def __post_init__(self) -> None:
        """Refuse what no single option's annotation can tell.

        Raises:
            ConfigError: a path cannot be mounted, or ``extra_environment`` would override what the command sets itself.
        """
        for name in ("state_dir", "ca_file", "token_file"):
            path = getattr(self, name)
            if path and not _MOUNTABLE.fullmatch(path):
                raise ConfigError(f"{name} must be an absolute path without commas, colons and quotes, not {path!r}", field=name)
        own = OWN_VARIABLES | {known.variable for known in self.options().values() if known.scope == "runtime"}
        if taken := sorted(own & self.extra_environment.keys()):
            raise ConfigError(
                f"extra_environment must not hold {taken[0]}: the deployment command sets it from the configuration",
                field="extra_environment",
            )

    @property
    def volume(self) -> str:
        """The named volume that keeps identity, credential and spool when the container is replaced."""
        return self.state_volume or self.container_name

    @property
    def socket(self) -> str:
        """The path of the engine's socket on the host; empty when the engine is reached over the network."""
        if not self.docker_host:
            return DEFAULT_SOCKET
        return self.docker_host.removeprefix("unix://") if self.docker_host.startswith("unix://") else ""
