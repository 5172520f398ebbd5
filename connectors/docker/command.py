"""The commands of the docker agent type, as pure functions of the configuration. All are for a POSIX shell."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from enum import Enum

from connectors.core.quoting import posix, posix_command
from connectors.docker.artefacts import ARTEFACT_PATH, BUILD_COMMAND, CHECKSUM_SUFFIX, CONTEXT_FILE, IMAGE_FILE
from connectors.docker.config import IMAGE, DockerAgentConfig

STATE_DIR = "/var/lib/incident-rca"
TOKEN_MOUNT = "/run/secrets/incident-rca-token"  # noqa: S105 - where a token is mounted, not a token
TOKEN_FILE = "/etc/incident-rca/agent-token"  # noqa: S105 - where a token may be kept on the Docker host, not a token
TYPE_LABEL = "io.incident-rca.agent-type"
"""The label by which control recognises a container as ours."""
STOP_TIMEOUT = 15
"""Seconds that the agent has to end: it flushes for ten, then the engine kills it."""
USER = 10001
"""The user, and the group, that the image runs as."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class TokenBy(Enum):
    """How the token gets into the container."""

    ENVIRONMENT = "-e"
    ENV_FILE = "--env-file"
    FILE = "mount"


def deployment_command(platform_url: str, token: str, config: DockerAgentConfig, by: TokenBy = TokenBy.ENVIRONMENT) -> str:
    """The ``docker run`` command that deploys the agent, over several lines joined by backslashes.

    A configured ``token_file`` goes before ``by``. The one thing that is left to the user's shell is the socket's group, which only the
    Docker host knows.
    """
    return " \\\n  ".join(_lines(platform_url, token, config, TokenBy.FILE if config.token_file else by))


def uninstall_command(config: DockerAgentConfig) -> str:
    """The command that removes the agent's container and its state; it needs no token and may be run again.

    The agent is stopped first: it says goodbye, so that nobody is told that it went quiet.
    """
    name = posix(config.container_name)
    return f"docker stop {name}; docker rm --force {name}; docker volume rm --force {posix(config.volume)}"


def env_file(token: str) -> str:
    """Content of the file that the command with ``TokenBy.ENV_FILE`` reads. Docker takes a line's rest as it is, quotes and all."""
    return f"AGENT_TOKEN={token}\n"


def env_file_name(config: DockerAgentConfig) -> str:
    """Name of that file."""
    return f"{config.container_name}.env"


def image_commands(platform_url: str, config: DockerAgentConfig) -> tuple[str, str] | None:
    """How a Docker host without a registry gets the image from the platform: building it, and loading it with its checksum verified.

    None where the configured image is somebody else's to give.
    """
    if config.image != IMAGE:
        return None
    served = f"{platform_url}{ARTEFACT_PATH}"
    curl = posix_command(["curl", "-fsSL", *(["--cacert", config.ca_file] if config.ca_file else [])])
    context, image = posix(f"{served}/{CONTEXT_FILE}"), posix(f"{served}/{IMAGE_FILE}")
    build = f"docker build -t {IMAGE} {context}"
    if config.ca_file:  # docker itself would not trust that CA
        build = f"{curl} {context} | docker build -t {IMAGE} -"
    verified = f"{curl} {posix(f'{served}/{IMAGE_FILE}{CHECKSUM_SUFFIX}')} | sha256sum -c -"
    return build, f"{curl} -O {image} && {verified} && docker load -i {IMAGE_FILE}"


def instructions(platform_url: str, config: DockerAgentConfig) -> str:
    """Numbered steps for a person who is about to run the deployment command."""
    return "\n".join(f"{number}. {step}" for number, step in enumerate(_steps(platform_url, config), 1))


def _steps(platform_url: str, config: DockerAgentConfig) -> Iterator[str]:
    name = posix(config.container_name)
    reach = (
        f"your user may use {config.socket} (root, or a member of its group)"
        if config.socket
        else f"the agent can reach {config.docker_host} from its container"
    )
    yield f"Check on the Docker host that `docker version` shows a server (Docker Engine 20.10 or newer) and that {reach}."
    yield _image_step(platform_url, config)
    if urllib.parse.urlsplit(platform_url).hostname in _LOOPBACK and config.network != "host":
        yield (
            f"In a container, {platform_url} is the container itself. Give the platform a public URL that the container can reach "
            "(IRCA_PUBLIC_URL), or provision with the option network=host."
        )
    if config.token_file:
        yield f"Write the token to {config.token_file} on the Docker host, readable by user {USER} only: {token_file_command(config)}"
    if config.state_dir not in ("", STATE_DIR):
        yield (
            f"The image has no directory {config.state_dir}, so a new volume there belongs to root: give {config.volume} to user {USER} "
            f"first, or leave the option state_dir alone. The state's volume is chosen by state_volume."
        )
    yield "Run the command in a POSIX shell (bash, sh, zsh). The agent appears on the platform within a minute."
    yield (
        f"To run it again (other options, a newer image), or when docker says that the name is in use: `docker rm --force {name}` first. "
        f"The agent keeps its identity, which is in the volume {config.volume}; it needs a new token only if that volume is gone."
    )
    yield f"If it does not appear: `docker logs {name}`, and `docker exec {name} incident-rca-agent check` says what is wrong."
    if config.socket:
        yield (
            "Whoever can use the engine's socket is root on the host. If that is too much for an agent, "
            "give it a socket proxy by the option docker_host."
        )


def _image_step(platform_url: str, config: DockerAgentConfig) -> str:
    commands = image_commands(platform_url, config)
    if commands is None:
        return f"Make sure that the host has the image {config.image}, or can pull it."
    build, load = commands
    return (
        f"Make sure that the host has the image {config.image}. Build it: `{build}` (add --build-arg BASE_IMAGE=… where python:3.13-slim "
        f"cannot be pulled). Or load the one that the platform keeps, with its checksum verified: `{load}`. "
        f"Where the platform answers 404, run `{BUILD_COMMAND}` on it."
    )


def token_file_command(config: DockerAgentConfig) -> str:
    """The command that writes the token's file on the Docker host: it reads the token from the terminal, so that no history keeps it."""
    path = posix(config.token_file or TOKEN_FILE)
    return f"`sudo install -D -m 0400 -o {USER} -g {USER} /dev/stdin {path}`, then paste the token and press Enter and Ctrl-D."


def _lines(platform_url: str, token: str, config: DockerAgentConfig, by: TokenBy) -> Iterator[str]:
    yield f"docker run -d --name {posix(config.container_name)}"
    yield posix_command(["--restart", config.restart_policy, "--stop-timeout", str(STOP_TIMEOUT)])
    yield "--read-only --cap-drop ALL --security-opt no-new-privileges"
    limits = []
    if config.memory_limit:
        limits += ["--memory", config.memory_limit]
    if config.pids_limit:
        limits += ["--pids-limit", str(config.pids_limit)]
    if limits:
        yield posix_command(limits)
    if config.network:
        yield posix_command(["--network", config.network])
    for key, value in container_labels(config).items():
        yield posix_command(["--label", f"{key}={value}"])
    yield from _mounts(config, by)
    if by is TokenBy.ENV_FILE:
        yield posix_command(["--env-file", env_file_name(config)])
    for name, value in environment(platform_url, token, config, by).items():
        yield posix_command(["-e", f"{name}={value}"])
    if config.image == IMAGE:
        # Nobody publishes this name: a registry's image of it would be a stranger's.
        yield "--pull never"
    yield posix(config.image)


def _mounts(config: DockerAgentConfig, by: TokenBy) -> Iterator[str]:
    if config.socket:
        yield posix_command(["-v", f"{config.socket}:{config.socket}"])
        yield f"--group-add {posix(config.socket_group)}" if config.socket_group else f'--group-add "$(stat -c %g {posix(config.socket)})"'
    yield posix_command(["-v", f"{config.volume}:{config.state_dir or STATE_DIR}"])
    # --mount, unlike -v, refuses a source that does not exist instead of making a directory of it.
    for source, target in read_only_mounts(config, by).items():
        if source in HOST_MOUNTS:
            yield posix_command(["-v", f"{source}:{target}:ro"])
        else:
            yield posix_command(["--mount", f"type=bind,source={source},target={target},readonly"])


HOST_MOUNTS = {"/proc": "/host/proc", "/sys": "/host/sys"}
"""What ``host_metrics`` mounts: path on the host to path in the container."""


def read_only_mounts(config: DockerAgentConfig, by: TokenBy) -> dict[str, str]:
    """What is mounted read-only: path on the host to path in the container."""
    mounts = dict(HOST_MOUNTS) if config.host_metrics else {}
    if by is TokenBy.FILE:
        mounts[config.token_file or TOKEN_FILE] = TOKEN_MOUNT
    if config.ca_file:
        mounts[config.ca_file] = config.ca_file
    return mounts


def container_labels(config: DockerAgentConfig) -> dict[str, str]:
    """Labels of the container; ours cannot be overridden."""
    return {TYPE_LABEL: "docker"} | {key: value for key, value in config.extra_labels.items() if key != TYPE_LABEL}


def environment(platform_url: str, token: str, config: DockerAgentConfig, by: TokenBy) -> dict[str, str]:
    """Environment variables of the container, without the token where it comes otherwise."""
    variables = {"AGENT_TYPE": "docker", "PLATFORM_API_URL": platform_url}
    if by is TokenBy.FILE:
        variables["AGENT_TOKEN_FILE"] = TOKEN_MOUNT
    elif by is TokenBy.ENVIRONMENT:
        variables["AGENT_TOKEN"] = token
    return variables | config.environment() | dict(config.extra_environment)
