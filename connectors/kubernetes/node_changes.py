"""What happens to nodes: they come and go, are cordoned, tainted, upgraded, and their conditions change. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from connectors.core.telemetry import AttributeValue, Severity
from connectors.kubernetes.change_event import Finding, called, created, last_manager, message_attribute, version, who
from connectors.kubernetes.difference import Telling, difference_attributes, differences
from connectors.kubernetes.resources import Json, timestamp

AUTOMATIC_TAINTS = "node.kubernetes.io/"
"""Taints that controllers set by a node's conditions and by its being cordoned, which are told themselves."""

_SETTLING = 60.0
"""Seconds in which a new node's conditions become what they should be."""
_SOFTWARE = ("kubeletVersion", "osImage", "kernelVersion", "containerRuntimeVersion")
_TELLING = Telling(open=frozenset({"software"}))


def node_changes(before: Json | None, after: Json | None) -> Iterator[Finding]:
    """What a change of a node means. Of one that is seen for the first time, conditions that went bad some time after it was made."""
    if after is None:
        if before is not None:
            yield Finding("node.removed", "nodes", before, f"{called('nodes', before)} was removed", severity=Severity.WARN)
        return
    if before is None:
        yield Finding("node.added", "nodes", after, f"{called('nodes', after)} was added", time=created(after))
        yield from _conditions({}, after)
        return
    yield from _cordon(before, after)
    yield from _taints(before, after)
    yield from _software(before, after)
    yield from _conditions(_by_type(before), after)


def _cordon(before: Json, after: Json) -> Iterator[Finding]:
    was, now = (bool((item.get("spec") or {}).get("unschedulable")) for item in (before, after))
    if was != now:
        yield Finding(
            "node.cordoned" if now else "node.uncordoned",
            "nodes",
            after,
            f"{called('nodes', after)} was {'cordoned: it takes no new pods' if now else 'uncordoned: it takes new pods again'}",
            key=(version(after),),
            time=last_manager(before, after)[1],
            severity=Severity.WARN if now else Severity.INFO,
            attributes=who(before, after),
        )


def _taints(before: Json, after: Json) -> Iterator[Finding]:
    old, new = {"taints": _taint_texts(before)}, {"taints": _taint_texts(after)}
    found = differences(old, new)
    if found:
        yield Finding(
            "node.taints_changed",
            "nodes",
            after,
            f"The taints of {called('nodes', after)} changed: {', '.join(found['taints'].keys)}",
            key=(version(after),),
            time=last_manager(before, after)[1],
            attributes=dict(difference_attributes(old, new, found, Telling())) | who(before, after),
        )


def _software(before: Json, after: Json) -> Iterator[Finding]:
    old, new = {"software": _software_texts(before)}, {"software": _software_texts(after)}
    found = differences(old, new)
    if found and old["software"]:
        yield Finding(
            "node.upgraded",
            "nodes",
            after,
            f"{called('nodes', after)} runs other versions: {', '.join(found['software'].keys)}",
            key=(version(after),),
            attributes=dict(difference_attributes(old, new, found, _TELLING)),
        )


def _conditions(before: dict[str, Json], after: Json) -> Iterator[Finding]:
    made = created(after)
    for name, now in _by_type(after).items():
        status, changed = str(now.get("status")), timestamp(now.get("lastTransitionTime"))
        was = str(before[name].get("status")) if name in before else ""
        good = status == ("True" if name == "Ready" else "False")
        if was == status or (not was and (good or changed is None or made is None or changed - made < _SETTLING)):
            continue
        attributes: dict[str, AttributeValue] = {
            "k8s.node.condition.type": name,
            "k8s.node.condition.status": status.lower(),
            "irca.k8s.condition.reason": str(now.get("reason") or ""),
        }
        if was:
            attributes["irca.k8s.condition.previous_status"] = was.lower()
        yield Finding(
            "node.condition_changed",
            "nodes",
            after,
            f"{called('nodes', after)}: {name} is {status.lower()}{f', it was {was.lower()}' if was else ''}",
            key=(name, status, str(now.get("lastTransitionTime") or version(after))),
            time=changed,
            severity=Severity.INFO if good else Severity.ERROR if name == "Ready" else Severity.WARN,
            attributes=attributes | dict(message_attribute(now.get("message"))),
        )


def _by_type(item: Json) -> dict[str, Json]:
    return {str(condition.get("type")): condition for condition in (item.get("status") or {}).get("conditions") or ()}


def _taint_texts(item: Json) -> dict[str, str]:
    return {
        f"{taint.get('key')}:{taint.get('effect')}": str(taint.get("value") or "")
        for taint in (item.get("spec") or {}).get("taints") or ()
        if not str(taint.get("key")).startswith(AUTOMATIC_TAINTS)
    }


def _software_texts(item: Json) -> dict[str, str]:
    held = (item.get("status") or {}).get("nodeInfo") or {}
    return {key: str(held[key]) for key in _SOFTWARE if held.get(key)}
