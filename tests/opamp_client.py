"""A small OpAMP agent for tests: builds messages and reads answers; how they travel is the caller's."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from attribute_values import any_value

from connectors.core import opamp_pb2 as opamp

CAPABILITIES = 1 | 4 | 256 | 2048 | 8192


@dataclass
class OpampAgent:
    uid: uuid.UUID = field(default_factory=uuid.uuid4)
    fingerprint: str = "machine-1"
    host: str = "web-1"
    version: str = "0.1.0"
    sequence: int = 0
    capabilities: int = CAPABILITIES
    extra: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=lambda: {"log_level": "info"})

    def beat(self, *, full: bool = False, healthy: bool | None = None, error: str = "", goodbye: bool = False) -> bytes:
        self.sequence += 1
        message = opamp.AgentToServer(instance_uid=self.uid.bytes, sequence_num=self.sequence, capabilities=self.capabilities)
        if full:
            described = {
                "service.name": "incident-rca-agent",
                "service.version": self.version,
                "irca.machine.fingerprint": self.fingerprint,
            }
            for key, value in described.items():
                message.agent_description.identifying_attributes.add(key=key, value=any_value(value))
            for key, value in {"host.name": self.host, **self.extra}.items():
                message.agent_description.non_identifying_attributes.add(key=key, value=any_value(value))
            message.effective_config.config_map.config_map["agent.json"].body = json.dumps(self.config).encode()
        if healthy is not None or full:
            message.health.healthy = healthy is not False
            message.health.last_error = error
            message.health.component_health_map["collector/cpu"].healthy = healthy is not False
        if goodbye:
            message.agent_disconnect.SetInParent()
        return message.SerializeToString()

    def read(self, body: bytes) -> opamp.ServerToAgent:
        answer = opamp.ServerToAgent.FromString(body)
        if answer.agent_identification.new_instance_uid:
            self.uid = uuid.UUID(bytes=answer.agent_identification.new_instance_uid)
        return answer


def credential_in(answer: opamp.ServerToAgent) -> str | None:
    for header in answer.connection_settings.opamp.headers.headers:
        if header.key == "Authorization":
            return header.value.removeprefix("Bearer ")
    return None
