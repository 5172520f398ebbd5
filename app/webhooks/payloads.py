"""The shapes in which an event is delivered: the standard one, Slack's, PagerDuty's. Pure functions of the standard message."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

TemplateName = Literal["standard", "slack", "pagerduty"]

_SYMBOLS = {"error": ":red_circle:", "warn": ":large_orange_circle:", "info": ":large_green_circle:"}
_PAGERDUTY = {"error": "error", "warn": "warning", "info": "info"}
_RECOVERED = frozenset({"healthy", "stopped", "archived"})
_LONGEST_SUMMARY = 1024
_STATUS_CHANGED = "irca.instance.status_changed"
_QUIET = {"irca.instance.went_quiet": "trigger", "irca.instance.back": "resolve"}


def body_of(template: TemplateName, message: Mapping[str, Any], *, public_url: str, routing_key: str = "") -> bytes:
    """The request's body, as JSON in UTF-8.

    Args:
        template: the shape.
        message: the event as ``app.webhooks.filters.message_of`` makes it.
        public_url: the platform's URL, for links.
        routing_key: PagerDuty's integration key; other shapes have none.
    """
    shaped = message if template == "standard" else _SHAPES[template](message, public_url.rstrip("/"), routing_key)
    return json.dumps(shaped, separators=(",", ":"), ensure_ascii=False, default=str).encode()


def slack(message: Mapping[str, Any], public_url: str, _routing_key: str = "") -> dict[str, Any]:
    """An incoming webhook's message: one line of text for notifications, and blocks with the facts and a link."""
    data = message["data"]
    words = _level(data["severity"])
    headline = f"{_SYMBOLS[words]} *{_escaped(str(data.get('environment_name') or 'platform'))}*: {_escaped(_summary(message))}"
    facts = f"`{message['type']}` · {message['timestamp']}"
    if link := _link(data, public_url):
        facts += f" · <{link}|open>"
    return {
        "text": headline,
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": headline[:3000]}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": facts}]},
        ],
    }


def pagerduty(message: Mapping[str, Any], public_url: str, routing_key: str) -> dict[str, Any]:
    """An event of PagerDuty's Events API v2. One incident for each instance and kind of trouble; recovery resolves it."""
    data = message["data"]
    action, key = _pagerduty_action(message)
    event: dict[str, Any] = {"routing_key": routing_key, "event_action": action, "dedup_key": key[:255]}
    if action == "trigger":
        event["payload"] = {
            "summary": _summary(message)[:_LONGEST_SUMMARY],
            "source": str(data.get("resource", {}).get("host.name") or data.get("environment_name") or "incident-rca"),
            "severity": _PAGERDUTY[_level(data["severity"])],
            "timestamp": message["timestamp"],
            "component": data.get("agent_type") or "platform",
            "group": data.get("environment_name") or "",
            "class": message["type"],
            "custom_details": dict(data.get("attributes") or {}),
        }
        event["client"], event["client_url"] = "incident-rca", public_url
        if link := _link(data, public_url):
            event["links"] = [{"href": link, "text": "Open on the platform"}]
    return event


_SHAPES: Mapping[str, Callable[[Mapping[str, Any], str, str], dict[str, Any]]] = {"slack": slack, "pagerduty": pagerduty}


def _pagerduty_action(message: Mapping[str, Any]) -> tuple[str, str]:
    data = message["data"]
    if message["type"] == _STATUS_CHANGED:
        status = str((data.get("attributes") or {}).get("irca.status", ""))
        return ("resolve" if status in _RECOVERED else "trigger"), f"irca/status/{data.get('instance_id') or ''}"
    if message["type"] in _QUIET:
        return _QUIET[message["type"]], f"irca/status/{data.get('instance_id') or ''}"
    return "trigger", f"irca/{message['type']}/{data.get('instance_id') or data.get('agent_id') or data['id']}"


def _summary(message: Mapping[str, Any]) -> str:
    return str(message["data"].get("body") or message["type"])


def _level(severity: int) -> str:
    return "error" if severity >= 17 else "warn" if severity >= 13 else "info"  # noqa: PLR2004 - OTel's own numbers


def _link(data: Mapping[str, Any], public_url: str) -> str:
    if data.get("instance_id"):
        return f"{public_url}/instances/{data['instance_id']}"
    return f"{public_url}/agents/{data['agent_id']}" if data.get("agent_id") else ""


def _escaped(text: str) -> str:
    """Text in which Slack finds no markup of its own: what an agent reports must not mention @channel or forge links."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
