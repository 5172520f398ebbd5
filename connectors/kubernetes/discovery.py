"""Where the API has a kind, chosen from what the cluster says that it serves: pure functions over its discovery documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from connectors.kubernetes.kinds import Kind

Json = Mapping[str, Any]


def group_versions(groups: Json) -> Mapping[str, frozenset[str]]:
    """The versions of each API group, from the document of ``/apis`` (an APIGroupList). The core group is not in it: it is ``v1``."""
    found = {"": frozenset({"v1"})}
    for group in groups.get("groups") or ():
        found[str(group.get("name") or "")] = frozenset(str(each.get("version") or "") for each in group.get("versions") or ())
    return found


def candidates(kind: Kind, served: Mapping[str, frozenset[str]]) -> Sequence[str]:
    """The paths of the API groups' versions that may have the kind, newest first."""
    versions = served.get(kind.group, frozenset())
    return [base_path(kind.group, version) for version in kind.versions if version in versions]


def base_path(group: str, version: str) -> str:
    """The path of an API group's version; its document there is an APIResourceList."""
    return f"/apis/{group}/{version}" if group else f"/api/{version}"


def serves(resources: Json, name: str) -> bool:
    """Whether an APIResourceList holds the resource ``name``, to be listed and watched."""
    return any(each.get("name") == name and {"list", "watch"} <= set(each.get("verbs") or ()) for each in resources.get("resources") or ())


def path_of(kind: Kind, served: Mapping[str, frozenset[str]], resources: Mapping[str, Json]) -> str | None:
    """The path that lists the kind in the whole cluster, in the newest version that has it; None when none has.

    ``resources`` are the APIResourceLists by :func:`base_path`. A group's version may lack a kind that a later release of Kubernetes
    added to it: in 1.20, ``batch/v1`` has no cron jobs.
    """
    return next((f"{base}/{kind.name}" for base in candidates(kind, served) if serves(resources.get(base) or {}, kind.name)), None)
