"""What an instance says of itself: to the platform, and in the status file. Pure functions of what was recorded."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING

from connectors._version import __version__
from connectors.core.health import Facts, health, reasons
from connectors.core.opamp import Component, ConfigStatus, Report
from connectors.core.status import AgentStatus, SpoolStatus
from connectors.core.telemetry import SCOPE_NAME, Attributes

if TYPE_CHECKING:
    from connectors.core.base_agent import BaseAgent
    from connectors.core.identity import Identity
    from connectors.core.ledger import SpoolStatistics


def report_of(agent: BaseAgent, identity: Identity, host: Attributes, told: Component, facts: Facts, remote: ConfigStatus) -> Report:
    """The report to the platform: ``host`` is what the agent runs on, ``told`` the health to tell, ``remote`` its remote configuration."""
    identifying = {
        "service.name": SCOPE_NAME,
        "service.instance.id": identity.instance_id,
        "service.version": __version__,
        "host.id": identity.fingerprint,
    }
    rest = {key: value for key, value in host.items() if key not in identifying}
    rest |= {"irca.agent.type": agent.agent_type, "irca.machine.fingerprint": identity.fingerprint}
    effective = {"platform_url": agent.platform_url} | {each.name: getattr(agent.config, each.name) for each in fields(agent.config)}
    return Report(identifying, rest, effective, told, facts.started_at, remote)


def status_of(
    agent: BaseAgent, instance_id: str, facts: Facts, heartbeat_interval: float, spool: SpoolStatistics, now: float
) -> AgentStatus:
    """The status file's content at ``now`` (Unix seconds)."""
    component = health(facts, now)
    return AgentStatus(
        pid=os.getpid(),
        version=__version__,
        agent_type=agent.agent_type,
        instance_id=instance_id,
        platform_url=agent.platform_url,
        state="healthy" if component.healthy else "degraded",
        reasons=reasons(component),
        started_at=facts.started_at,
        written_at=now,
        enrolled=facts.enrolled,
        last_collection_at=facts.last_collection_at,
        last_send_at=facts.last_send_at,
        last_heartbeat_at=facts.last_heartbeat_at,
        heartbeat_interval=heartbeat_interval,
        clock_skew=facts.clock_skew,
        spool=SpoolStatus.of(spool),
    )
