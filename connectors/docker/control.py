"""Starting and stopping the deployed agent, by its container's name."""

from __future__ import annotations

from typing import Any

from connectors.core.errors import ControlError, NotDeployedError
from connectors.docker.command import STOP_TIMEOUT, TYPE_LABEL
from connectors.docker.config import DockerAgentConfig
from connectors.docker.engine import Engine
from connectors.docker.stats import split_image


def start(engine: Engine, config: DockerAgentConfig) -> None:
    """``docker start`` of the agent's container; a paused one is resumed. Starting a running one changes nothing.

    Raises:
        ControlError: as :meth:`connectors.docker.engine.Engine.client`, or the name belongs to a container that is not ours.
    """
    inspection = _inspect(engine, config)
    with engine.client() as client:
        identity, state = inspection["Id"], inspection["State"]
        if state.get("Paused"):
            client.unpause(identity)
        else:
            client.start(identity)


def stop(engine: Engine, config: DockerAgentConfig) -> None:
    """``docker stop`` of the agent's container. Stopping a stopped one changes nothing.

    Raises:
        ControlError: as :func:`start`.
    """
    inspection = _inspect(engine, config)
    with engine.client() as client:
        identity, state = inspection["Id"], inspection["State"]
        if state.get("Paused"):
            client.unpause(identity)  # a paused process cannot act on SIGTERM: it would be killed with its data unsent
        client.stop(identity, timeout=STOP_TIMEOUT)


def _not_deployed(config: DockerAgentConfig) -> NotDeployedError:
    return NotDeployedError(f"there is no container named {config.container_name!r}: run the deployment command first")


def _inspect(engine: Engine, config: DockerAgentConfig) -> dict[str, Any]:
    """What the engine knows about the agent's container.

    Raises:
        NotDeployedError: there is no container of that name.
        ControlError: there is one, but it is not an agent of ours.
    """
    try:
        with engine.client() as client:
            inspection: dict[str, Any] = client.inspect_container(config.container_name)
    except NotDeployedError as exc:
        raise _not_deployed(config) from exc
    # The engine also looks containers up by a prefix of their id.
    if inspection["Name"].lstrip("/") != config.container_name:
        raise _not_deployed(config)
    described = inspection["Config"]
    labelled = TYPE_LABEL in (described.get("Labels") or {})
    if not labelled and split_image(described.get("Image") or "").name != split_image(config.image).name:
        raise ControlError(
            f"the name {config.container_name!r} is taken by a container that is not an incident-rca agent "
            f"(image {described.get('Image')!r}): give the agent another container_name, or remove that container"
        )
    return inspection
