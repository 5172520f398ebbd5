"""The commands of the docker agent type, as pure functions of the configuration. All are for a POSIX shell."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator

from connectors.core.quoting import posix, posix_command
from connectors.docker.config import DockerAgentConfig

STATE_DIR = "/var/lib/incident-rca"
TOKEN_MOUNT = "/run/secrets/incident-rca-token"  # noqa: S105 - where a token is mounted, not a token
TYPE_LABEL = "io.incident-rca.agent-type"
"""The label by which control recognises a container as ours."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def deployment_command(platform_url: str, token: str, config: DockerAgentConfig) -> str:
    """The ``docker run`` command that deploys the agent, over several lines joined by backslashes.

    The one thing that is left to the user's shell is the socket's group, which only the Docker host knows.
    """
    return " \\\n  ".join(_lines(platform_url, token, config))


def uninstall_command(config: DockerAgentConfig) -> str:
    """The command that removes the agent's container and its state; it needs no token and may be run again."""
    return f"docker rm --force {posix(config.container_name)}; docker volume rm --force {posix(config.volume)}"


def instructions(platform_url: str, config: DockerAgentConfig) -> str:
    """Numbered steps for a person who is about to run the deployment command."""
    name = posix(config.container_name)
    reach = (
        f"your user may use {config.socket} (root, or a member of its group)"
        if config.socket
        else f"the agent can reach {config.docker_host} from its container"
    )
    steps = [
        f"Check on the Docker host that `docker version` shows a server (Docker Engine 20.10 or newer) and that {reach}.",
        f"Make sure that the host has the image {config.image}: build, load or pull it. This version of the platform does not serve it.",
    ]
    if urllib.parse.urlsplit(platform_url).hostname in _LOOPBACK and config.network != "host":
        steps.append(
            f"In a container, {platform_url} is the container itself. Give the platform a public URL that the container can reach "
            "(IRCA_PUBLIC_URL), or provision with the option network=host."
        )
    if config.token_file:
        steps.append(f"Write the token to {config.token_file} on the Docker host, readable by the agent's user only.")
    steps += [
        "Run the command in a POSIX shell (bash, sh, zsh). The agent appears on the platform within a minute.",
        f"To run it again: `docker rm --force {name}` first. The agent keeps its identity, which is in the volume {config.volume}.",
        f"If it does not appear: `docker logs {name}`, and `docker exec {name} incident-rca-agent check` says what is wrong.",
    ]
    if config.socket:
        steps.append(
            "Whoever can use the engine's socket is root on the host. If that is too much for an agent, "
            "give it a socket proxy by the option docker_host."
        )
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def _lines(platform_url: str, token: str, config: DockerAgentConfig) -> Iterator[str]:
    yield f"docker run -d --name {posix(config.container_name)}"
    yield "--restart unless-stopped"
    yield "--cap-drop ALL --security-opt no-new-privileges"
    limits = []
    if config.memory_limit:
        limits += ["--memory", config.memory_limit]
    if config.pids_limit:
        limits += ["--pids-limit", str(config.pids_limit)]
    if limits:
        yield posix_command(limits)
    if config.network:
        yield posix_command(["--network", config.network])
    yield from _labels(config)
    yield from _mounts(config)
    for name, value in _environment(platform_url, token, config):
        yield posix_command(["-e", f"{name}={value}"])
    yield posix(config.image)


def _labels(config: DockerAgentConfig) -> Iterator[str]:
    yield posix_command(["--label", f"{TYPE_LABEL}=docker"])
    for key, value in config.extra_labels.items():
        if key != TYPE_LABEL:
            yield posix_command(["--label", f"{key}={value}"])


def _mounts(config: DockerAgentConfig) -> Iterator[str]:
    if config.socket:
        yield posix_command(["-v", f"{config.socket}:{config.socket}"])
        yield f'--group-add "$(stat -c %g {posix(config.socket)})"'
    yield posix_command(["-v", f"{config.volume}:{config.state_dir or STATE_DIR}"])
    if config.host_metrics:
        yield "-v /proc:/host/proc:ro"
    # --mount, unlike -v, refuses a source that does not exist instead of making a directory of it.
    if config.token_file:
        yield posix_command(["--mount", f"type=bind,source={config.token_file},target={TOKEN_MOUNT},readonly"])
    if config.ca_file:
        yield posix_command(["--mount", f"type=bind,source={config.ca_file},target={config.ca_file},readonly"])


def _environment(platform_url: str, token: str, config: DockerAgentConfig) -> Iterator[tuple[str, str]]:
    yield "AGENT_TYPE", "docker"
    yield "PLATFORM_API_URL", platform_url
    if config.token_file:
        yield "AGENT_TOKEN_FILE", TOKEN_MOUNT
    else:
        yield "AGENT_TOKEN", token
    yield from config.environment().items()
    yield from config.extra_environment.items()
