"""The docker agent as a ``compose.yaml``, a pure function of the configuration: what the deployment command does, for Docker Compose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from connectors.core.quoting import posix
from connectors.docker.command import STATE_DIR, STOP_TIMEOUT, TokenBy, container_labels, environment, read_only_mounts
from connectors.docker.config import IMAGE, DockerAgentConfig

_ASKED_GROUP = '"${SOCKET_GROUP:?give the group of the socket of the engine}"'
_NO_NETWORK_NAME = re.compile(r"host|none|bridge|default|container:.*")


def compose_file(platform_url: str, token: str, config: DockerAgentConfig) -> str:
    """The file's text. It holds the token unless ``token_file`` is configured; the socket's group comes from the caller's environment."""
    return "\n".join(_lines(platform_url, token, config)) + "\n"


def scalar(text: str) -> str:
    """``text`` as a YAML double-quoted scalar in which Compose finds no variables."""
    return '"' + "".join(map(_character, text)) + '"'


def _character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character == "$":
        return "$$"
    if " " <= character <= "~":
        return character
    return f"\\U{ord(character):08x}"


def _lines(platform_url: str, token: str, config: DockerAgentConfig) -> Iterator[str]:
    by = TokenBy.FILE if config.token_file else TokenBy.ENVIRONMENT
    yield from _usage(config)
    yield f"name: {scalar(re.sub('[^a-z0-9_-]', '-', config.container_name.lower()))}"
    yield "services:"
    yield "  agent:"
    yield f"    container_name: {scalar(config.container_name)}"
    yield f"    image: {scalar(config.image)}"
    if config.image == IMAGE:
        yield "    pull_policy: never"
    yield f"    restart: {scalar(config.restart_policy)}"
    yield f"    stop_grace_period: {STOP_TIMEOUT}s"
    yield "    read_only: true"
    yield "    cap_drop: [ALL]"
    yield "    security_opt: ['no-new-privileges:true']"
    yield from _limits(config)
    if _is_named(config.network):
        yield "    networks: [agent]"
    elif config.network:
        yield f"    network_mode: {scalar(config.network)}"
    if config.socket:
        yield f"    group_add: [{scalar(config.socket_group) if config.socket_group else _ASKED_GROUP}]"
    yield from _mapping("labels", container_labels(config))
    yield from _mapping("environment", environment(platform_url, token, config, by))
    yield "    volumes:"
    yield from _mounts(config, by)
    yield "volumes:"
    yield "  state:"
    yield f"    name: {scalar(config.volume)}"
    if _is_named(config.network):
        yield "networks:"
        yield "  agent:"
        yield f"    name: {scalar(config.network)}"
        yield "    external: true"


def _usage(config: DockerAgentConfig) -> Iterator[str]:
    asked = bool(config.socket and not config.socket_group)
    prefix = f'SOCKET_GROUP="$(stat -c %g {posix(config.socket)})" ' if asked else ""
    if prefix.isprintable():
        yield f"# Start:  {prefix}docker compose up -d"
        yield f"# Remove: {'SOCKET_GROUP=0 ' if asked else ''}docker compose down --volumes"


def _is_named(network: str) -> bool:
    return bool(network) and not _NO_NETWORK_NAME.fullmatch(network)


def _limits(config: DockerAgentConfig) -> Iterator[str]:
    if config.memory_limit:
        yield f"    mem_limit: {scalar(config.memory_limit)}"
    if config.pids_limit:
        yield f"    pids_limit: {config.pids_limit}"


def _mounts(config: DockerAgentConfig, by: TokenBy) -> Iterator[str]:
    yield f"      - {{type: volume, source: state, target: {scalar(config.state_dir or STATE_DIR)}}}"
    if config.socket:
        yield f"      - {{type: bind, source: {scalar(config.socket)}, target: {scalar(config.socket)}}}"
    for source, target in read_only_mounts(config, by).items():
        # A source that does not exist is refused instead of made as a directory.
        options = "read_only: true, bind: {create_host_path: false}"
        yield f"      - {{type: bind, source: {scalar(source)}, target: {scalar(target)}, {options}}}"


def _mapping(key: str, values: Mapping[str, str]) -> Iterator[str]:
    yield f"    {key}:"
    for name, value in values.items():
        yield f"      {scalar(name)}: {scalar(value)}"
