"""The events that the docker agent type records of its engine; the names are the engine's own."""

from __future__ import annotations

from collections.abc import Mapping

from app.events.event_type import ERROR, INFO, WARN, EventType

_CONTAINER = {"container.id": "Container.", "container.name": "Its name.", "container.image.name": "Its image."}
_NETWORK = {"irca.network.id": "Network.", "irca.network.name": "Its name.", "irca.network.driver": "Its driver."}
_VOLUME = {"irca.volume.name": "Volume.", "irca.volume.driver": "Its driver."}
_IMAGE = {
    "container.image.id": "Image, where the engine tells.",
    "container.image.name": "Its name.",
    "container.image.tags": "Its tag.",
    "container.image.repo_digests": "Its digest in a registry.",
}
_MISSING_BETWEEN = {"irca.gap.start_time_unix_nano": "Start of the stretch.", "irca.gap.end_time_unix_nano": "End of the stretch."}
_DIFFERENCES = {
    "irca.container.changed": "Parts that differ: image, command, env, mounts, limits and so on.",
    "irca.container.change.<part>.added": "Keys that are new, of env, labels, mounts, networks, capabilities, devices, ports and hosts.",
    "irca.container.change.<part>.removed": "Keys that are gone, of the same parts.",
    "irca.container.change.<part>.changed": "Keys whose values differ, of the same parts.",
    "irca.container.change.<part>.from": "Values before, of image, limits, restart_policy, user, privileged, ports and security.",
    "irca.container.change.<part>.to": "Values now, of the same parts.",
    "irca.container.change.hashes": "Hashes of values of env, command and entrypoint, under a key that never leaves the agent.",
}


def _docker(what: str, meaning: str, attributes: Mapping[str, str], severity: int = INFO) -> EventType:
    return EventType(f"irca.docker.{what}", severity, meaning, attributes, source="agent")


DOCKER_EVENTS = (
    _docker("container.create", "A container was made.", _CONTAINER),
    _docker("container.start", "A container started.", _CONTAINER),
    _docker(
        "container.die",
        "A container's process ended. Its severity is info for exit code 0, warn for another after a stop was asked for.",
        _CONTAINER
        | {
            "irca.container.exit_code": "Exit code; above 128, the signal that ended it is the rest.",
            "irca.container.oom_killed": "True when memory ran out in the seconds before.",
            "irca.container.stop_requested": "True when somebody had sent it a signal that ends programs.",
            "irca.container.restart_count": "How often the engine had restarted it by itself.",
            "irca.container.log.tail": "The last lines that it wrote, with the option death_logs.",
            "irca.container.log.reason": "Why there are no lines, or not all.",
        },
        ERROR,
    ),
    _docker("container.oom", "Memory ran out in a container and the kernel killed a process of it.", _CONTAINER, ERROR),
    _docker("container.kill", "A container was sent a signal.", _CONTAINER | {"irca.container.signal": "Signal, such as SIGTERM."}),
    _docker("container.stop", "A container was stopped on request.", _CONTAINER),
    _docker(
        "container.health_status",
        "A container's health changed. Its severity is warn when it is unhealthy.",
        _CONTAINER | {"irca.container.health.status": "healthy or unhealthy."},
    ),
    _docker("container.restart", "A container was restarted on request.", _CONTAINER),
    _docker("container.pause", "A container was paused.", _CONTAINER),
    _docker("container.unpause", "A paused container goes on.", _CONTAINER),
    _docker("container.rename", "A container was renamed.", _CONTAINER | {"irca.container.previous_name": "Name before."}),
    _docker("container.destroy", "A container was removed.", _CONTAINER),
    _docker("container.update", "A running container was given other limits or another restart policy.", _CONTAINER | _DIFFERENCES),
    _docker(
        "container.changed",
        "A container took the place of another of the same name, or of the same Compose project, service and number.",
        _CONTAINER | {"irca.container.previous_id": "The one before."} | _DIFFERENCES,
    ),
    _docker("network.connect", "A container was connected to a network.", _NETWORK | _CONTAINER),
    _docker("network.disconnect", "A container was disconnected from a network.", _NETWORK | _CONTAINER),
    _docker("network.create", "A network was made.", _NETWORK),
    _docker("network.destroy", "A network was removed.", _NETWORK),
    _docker("volume.create", "A volume was made, or asked for by a container that is being made.", _VOLUME),
    _docker(
        "volume.mount",
        "A volume was mounted in a container.",
        _VOLUME | _CONTAINER | {"irca.volume.destination": "Where.", "irca.volume.read_only": "Whether it may only be read."},
    ),
    _docker("volume.unmount", "A volume was unmounted from a container.", _VOLUME | _CONTAINER),
    _docker("volume.destroy", "A volume was removed.", _VOLUME),
    _docker("image.pull", "An image was pulled.", _IMAGE),
    _docker("image.tag", "An image was given a tag.", _IMAGE),
    _docker("image.untag", "An image lost a tag.", _IMAGE),
    _docker("image.delete", "An image was deleted.", _IMAGE),
    _docker("image.load", "An image was loaded from an archive.", _IMAGE),
    _docker("image.import", "An image was made of a file system's archive.", _IMAGE),
    _docker("image.build", "An image was built.", _IMAGE),
    _docker(
        "gap",
        "Events of a Docker engine may be missing: it was restarted, or more happened while nobody looked than it keeps.",
        {"irca.gap.signal": "logs.", "irca.gap.reason": "engine-restarted, engine-replaced or buffer-overflow."} | _MISSING_BETWEEN,
        WARN,
    ),
    _docker(
        "events.dropped",
        "An agent left out events of a Docker engine because too many came at a time.",
        {"irca.events.dropped": "How many.", "irca.events.dropped.kinds": "Which most, with their counts."} | _MISSING_BETWEEN,
        WARN,
    ),
)
"""In the order in which they are documented."""
