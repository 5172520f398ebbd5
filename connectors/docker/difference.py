"""How a container differs from its predecessor of the same name: pure functions of the engine's inspections.

A *description* is what of an inspection is compared: parts (``env``, ``limits`` …), each a mapping of keys to texts. It is what is
remembered on disk, so it holds no secret: what a person may have put a secret in (values of environment variables and labels, commands,
options of drivers) is there as a keyed hash, whose key never leaves the agent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.core.telemetry import AttributeValue
from connectors.docker.events import bounded

Json = Mapping[str, Any]
Parts = Mapping[str, Mapping[str, str]]

OPEN = ("image", "limits", "restart_policy", "user", "privileged", "ports", "security")
"""Parts whose values are sent, before and after."""
BY_KEY = ("env", "labels", "mounts", "networks", "capabilities", "devices", "ports", "hosts")
"""Parts of many entries, whose keys are sent by what became of them."""
HASHED = ("env", "command", "entrypoint")
"""Parts whose keyed hashes are sent, so that a value that comes back can be recognised."""
VOLATILE_LABELS = frozenset({"com.docker.compose.replace", "com.docker.compose.config-hash", "com.docker.compose.image"})
"""Labels that Compose sets anew whenever it makes a container again: what made it do so shows in the other parts."""
WHOLE = "all"
"""The key of parts that are one text."""

_MAX_KEYS = 100
_LIMITS = (
    "Memory", "MemorySwap", "MemoryReservation", "NanoCpus", "CpuShares", "CpuPeriod", "CpuQuota", "CpusetCpus", "CpusetMems",
    "PidsLimit", "BlkioWeight", "ShmSize", "OomKillDisable", "OomScoreAdj",
)  # fmt: skip
_SECURITY = ("ReadonlyRootfs", "PidMode", "IpcMode", "UTSMode", "UsernsMode", "CgroupnsMode", "Runtime")


@dataclass(frozen=True, slots=True)
class Description:
    """What is remembered of a container."""

    identity: str
    name: str
    parts: Parts

    def to_json(self) -> str:
        """Its form on disk."""
        return json.dumps({"id": self.identity, "name": self.name, "parts": self.parts}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Description | None:
        """Read :meth:`to_json` back; None for what is not readable."""
        try:
            held = json.loads(text)
            parts = {str(part): {str(k): str(v) for k, v in entries.items()} for part, entries in held["parts"].items()}
            return cls(str(held["id"]), str(held["name"]), parts)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class PartDifference:
    """Keys of one part by what became of them."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.added, *self.removed, *self.changed)


def key_of(name: str, labels: Json) -> str:
    """What a container and its successor have in common: Compose project, service and number, or else the name.

    One-off containers (``docker compose run``) succeed nobody and are known by their names.
    """
    project, service = labels.get("com.docker.compose.project"), labels.get("com.docker.compose.service")
    if project and service and str(labels.get("com.docker.compose.oneoff", "")).lower() != "true":
        return json.dumps(["compose", project, service, labels.get("com.docker.compose.container-number", "1")])
    return json.dumps(["name", name])


def hasher(salt: bytes) -> Callable[[str], str]:
    """A keyed hash of texts, 16 hexadecimal digits. Without ``salt`` nobody can try out values against it."""
    return lambda text: hmac.new(salt, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]


def describe(inspection: Json, hashed: Callable[[str], str], digests: Sequence[str] = ()) -> Description:
    """What is compared of an inspection (``/containers/<id>/json``). ``digests`` are the image's repository digests, where known."""
    config, host = inspection.get("Config") or {}, inspection.get("HostConfig") or {}
    networks = (inspection.get("NetworkSettings") or {}).get("Networks") or {}
    restart = host.get("RestartPolicy") or {}
    retries = restart.get("MaximumRetryCount") or 0
    parts: dict[str, Mapping[str, str]] = {
        "image": _image(inspection, config, digests),
        "command": _whole(config.get("Cmd"), hashed),
        "entrypoint": _whole(config.get("Entrypoint"), hashed),
        "env": {key: hashed(value) for key, _, value in (str(entry).partition("=") for entry in config.get("Env") or ())},
        "labels": {key: hashed(str(value)) for key, value in (config.get("Labels") or {}).items() if key not in VOLATILE_LABELS},
        "mounts": dict(_mounts(inspection, host, hashed)),
        "ports": dict(_ports(host)),
        "limits": dict(_limits(host)),
        "restart_policy": {WHOLE: f"{restart.get('Name') or 'no'}{f':{retries}' if retries else ''}"},
        "networks": dict.fromkeys(networks, "") or {str(host.get("NetworkMode") or "default"): ""},
        "user": {WHOLE: str(config.get("User") or "")},
        "capabilities": {
            f"{sign}{str(name).upper().removeprefix('CAP_')}": ""
            for sign, field in (("+", "CapAdd"), ("-", "CapDrop"))
            for name in host.get(field) or ()
        },
        "privileged": {WHOLE: str(bool(host.get("Privileged"))).lower()},
        "security": {key: str(host[key]) for key in _SECURITY if host.get(key)} | _set("SecurityOpt", host.get("SecurityOpt")),
        "devices": {str(device.get("PathInContainer") or device): hashed(_text(device)) for device in host.get("Devices") or ()},
        "healthcheck": _whole(config.get("Healthcheck"), hashed),
        "working_dir": {WHOLE: hashed(str(config.get("WorkingDir") or ""))},
        "stop": {WHOLE: hashed(_text([config.get("StopSignal") or "SIGTERM", config.get("StopTimeout")]))},
        "logging": _whole(host.get("LogConfig"), hashed),
        "hosts": {
            str(entry).split(":", 1)[0]: hashed(str(entry))
            for field in ("ExtraHosts", "Dns", "DnsSearch")
            for entry in host.get(field) or ()
        },
        "tty": {WHOLE: str(bool(config.get("Tty"))).lower()},
    }
    return Description(str(inspection["Id"]), str(inspection.get("Name") or "").lstrip("/"), parts)


def differences(before: Parts, after: Parts) -> dict[str, PartDifference]:
    """The parts that differ. A part that either side lacks (it was remembered by another version of the agent) is not compared."""
    found = {}
    for part in before.keys() & after.keys():
        old, new = before[part], after[part]
        if old != new:
            found[part] = PartDifference(
                added=tuple(sorted(new.keys() - old.keys())),
                removed=tuple(sorted(old.keys() - new.keys())),
                changed=tuple(sorted(key for key in new.keys() & old.keys() if new[key] != old[key])),
            )
    if "image" in found and not _other_image(before["image"], after["image"]):
        del found["image"]
    return dict(sorted(found.items()))


def difference_attributes(before: Parts, after: Parts, found: Mapping[str, PartDifference]) -> Iterator[tuple[str, AttributeValue]]:
    """What differs, as attributes of an event: keys, for some parts values, for some keyed hashes. Lists are bounded."""
    yield "irca.container.changed", list(found)
    hashes: list[str] = []
    for part, difference in found.items():
        if part in BY_KEY:
            for became in ("added", "removed", "changed"):
                if keys := getattr(difference, became):
                    yield f"irca.container.change.{part}.{became}", bounded(keys, _MAX_KEYS)
        if part in OPEN:
            yield f"irca.container.change.{part}.from", _values(before[part], difference.keys)
            yield f"irca.container.change.{part}.to", _values(after[part], difference.keys)
        if part in HASHED:
            hashes += [
                f"{part}={after[part][key]}" if key == WHOLE else f"{part}.{key}={after[part][key]}"
                for key in (*difference.added, *difference.changed)
            ]
    if hashes:
        yield "irca.container.change.hashes", bounded(hashes, _MAX_KEYS)


def summary(found: Mapping[str, PartDifference]) -> str:
    """What differs, in words: ``image, env (2 keys)``."""
    return ", ".join(
        f"{part} ({len(d.keys)} {'keys' if len(d.keys) > 1 else 'key'})" if part in BY_KEY else part for part, d in found.items()
    )


def _image(inspection: Json, config: Json, digests: Sequence[str]) -> dict[str, str]:
    found = {"reference": str(config.get("Image") or ""), "id": str(inspection.get("Image") or "")}
    return found | ({"digests": " ".join(sorted(digests))} if digests else {})


def _other_image(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether it is another image or reference: digests alone come and go with pushes and pulls of the same image."""
    return any(before.get(key) != after.get(key) for key in ("reference", "id"))


def _whole(value: Any, hashed: Callable[[str], str]) -> dict[str, str]:
    return {WHOLE: hashed(_text(value))} if value else {}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _mounts(inspection: Json, host: Json, hashed: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    for mount in inspection.get("Mounts") or ():
        source = mount.get("Name") or mount.get("Source") or ""
        if mount.get("Type") == "volume" and _is_anonymous(source):
            source = ""  # each container has its own
        yield str(mount.get("Destination") or ""), hashed(_text([mount.get("Type"), source, bool(mount.get("RW"))]))
    for target, options in (host.get("Tmpfs") or {}).items():
        yield str(target), hashed(_text(["tmpfs", options]))


def _is_anonymous(name: str) -> bool:
    return len(name) == 64 and all(c in "0123456789abcdef" for c in name)  # noqa: PLR2004 - the engine's own name for it: 32 bytes in hexadecimal


def _ports(host: Json) -> Iterator[tuple[str, str]]:
    for port, bindings in (host.get("PortBindings") or {}).items():
        yield str(port), " ".join(sorted(f"{b.get('HostIp') or '*'}:{b.get('HostPort') or '*'}" for b in bindings or ()))
    if host.get("PublishAllPorts"):
        yield "all", "*"


def _limits(host: Json) -> Iterator[tuple[str, str]]:
    for key in _LIMITS:
        if (value := host.get(key)) and value != -1:  # the engine says "none" as 0, null, -1 or an empty text
            yield key, str(value)
    for limit in host.get("Ulimits") or ():
        yield f"Ulimit.{limit.get('Name')}", f"{limit.get('Soft')}:{limit.get('Hard')}"


def _set(key: str, values: Iterable[Any] | None) -> dict[str, str]:
    return {key: " ".join(sorted(str(value)[:200] for value in values))} if values else {}


def _values(entries: Mapping[str, str], keys: Iterable[str]) -> list[str]:
    texts = [entries[key] if key == WHOLE else f"{key}={entries[key]}" for key in keys if key in entries]
    return bounded(texts, _MAX_KEYS)
