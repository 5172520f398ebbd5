"""The OpAMP exchange: one AgentToServer in, one ServerToAgent out. The heartbeat path touches memory only."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from app.errors import ClusterUnknownError, MalformedBodyError, UnauthenticatedError
from app.fleet import status as rules
from app.fleet.enrolment import FINGERPRINT, Enrolled, Enrolment, digest, instance_name
from app.fleet.registry import Instance, Registry
from connectors.core import opamp_pb2 as opamp

CAPABILITIES = 1 | 2 | 4 | 32
"""AcceptsStatus, OffersRemoteConfig, AcceptsEffectiveConfig, OffersConnectionSettings."""
ACCEPTS_CONNECTION_SETTINGS = 256
REPORT_FULL_STATE = 1
_MAX_TEXT = 4096
_MAX_COMPONENTS = 100

RemoteConfiguration = Callable[[Instance, opamp.AgentToServer, opamp.ServerToAgent], float | None]
"""Takes what a message tells of remote configuration and offers it in the answer; the seconds between heartbeats that the instance
should keep from now on, None for no change. Touches memory only."""


class Exchange:
    """Answers AgentToServer messages and keeps what they tell."""

    def __init__(self, registry: Registry, enrolment: Enrolment, clock: Callable[[], float], interval: float) -> None:
        self._registry = registry
        self._enrolment = enrolment
        self._clock = clock
        self._interval = interval
        self.changed: set[Instance] = set()
        """Instances heard since the last flush."""
        self.remote_configuration: RemoteConfiguration | None = None

    async def answer(self, bearer: str, body: bytes, client: str) -> bytes:
        """The serialised answer to the serialised message ``body`` of whoever holds ``bearer``.

        Raises:
            UnauthenticatedError: the token or credential is not valid; the code tells why.
            ClusterUnknownError: a pod introduces itself without its cluster; it may try again.
            TooManyRequestsError: as :meth:`app.fleet.enrolment.Enrolment.refuse`.
            MalformedBodyError: the body is not an AgentToServer message.
        """
        message = opamp.AgentToServer()
        try:
            message.ParseFromString(body)
        except DecodeError as exc:
            raise MalformedBodyError("the body is not an OpAMP AgentToServer message") from exc
        used = digest(bearer)
        instance = self._registry.by_credential.get(used)
        reply = opamp.ServerToAgent(instance_uid=message.instance_uid, capabilities=CAPABILITIES)
        if instance is None or instance.uid != message.instance_uid:
            uid = _uid(message.instance_uid)
            try:
                instance = await self._first_contact(bearer, uid, instance, message, reply)
            except (UnauthenticatedError, ClusterUnknownError) as exc:
                host = instance_name("", description(message.agent_description))
                await self._enrolment.refuse(exc, bearer, client, host)
                raise
            if instance is None:
                reply.flags = REPORT_FULL_STATE
                return reply.SerializeToString()
        elif used == instance.candidate_hash:
            await self._enrolment.prove(instance, used)
        if self._take(instance, message):
            reply.flags = REPORT_FULL_STATE
        interval = self._interval if message.HasField("agent_description") else None
        if self.remote_configuration is not None and not instance.said_goodbye:
            interval = self.remote_configuration(instance, message, reply) or interval
        if interval is not None and message.capabilities & ACCEPTS_CONNECTION_SETTINGS:
            self._offer(reply, None, interval)
        return reply.SerializeToString()

    async def _first_contact(
        self, bearer: str, uid: str, holder: Instance | None, message: opamp.AgentToServer, reply: opamp.ServerToAgent
    ) -> Instance | None:
        """The instance that this contact is, enrolled if need be; None when its description is needed to tell."""
        token = None if holder else await self._enrolment.token(bearer)
        if token is not None:
            known = self._registry.instances.get(uid)
            if known is not None and known.agent.id == token.agent_id and not message.HasField("agent_description"):
                return known  # a client that stays with its token
        if not message.HasField("agent_description"):
            return None
        resource = description(message.agent_description)
        if holder is not None and resource.get(FINGERPRINT, "") == holder.fingerprint:
            reply.agent_identification.new_instance_uid = holder.uid  # it lost its identity and kept its credential
            return holder
        offer = bool(message.capabilities & ACCEPTS_CONNECTION_SETTINGS)
        new_uid = uid or str(uuid.uuid4())
        enrolled: Enrolled
        if holder is not None:
            enrolled = await self._enrolment.split(holder, new_uid, resource)
        else:
            assert token is not None  # noqa: S101 - there is a holder or there is a token
            enrolled = await self._enrolment.enrol(token, new_uid, resource, offer_credential=offer)
        if enrolled.renamed or not uid:
            reply.agent_identification.new_instance_uid = enrolled.instance.uid
        if enrolled.credential is not None:
            self._offer(reply, enrolled.credential)
        return enrolled.instance

    def _offer(self, reply: opamp.ServerToAgent, credential: str | None, interval: float | None = None) -> None:
        settings = reply.connection_settings.opamp
        settings.heartbeat_interval_seconds = max(1, round(interval or self._interval))
        if credential is not None:
            settings.headers.headers.add(key="Authorization", value=f"Bearer {credential}")
        reply.connection_settings.hash = b""
        reply.connection_settings.hash = digest(reply.connection_settings.SerializeToString(deterministic=True).hex())

    def _take(self, instance: Instance, message: opamp.AgentToServer) -> bool:
        """Keep what ``message`` tells; whether the full state must be asked for."""
        now = self._clock()
        silence = None if instance.heard is None else now - instance.heard
        if message.HasField("agent_description"):
            instance.resource = description(message.agent_description)
            instance.name = instance_name(instance.id, instance.resource)
            instance.version = str(instance.resource.get("service.version", ""))[:64]
            instance.described = True
        if message.HasField("health"):
            instance.healthy = message.health.healthy
            instance.last_error = message.health.last_error[:_MAX_TEXT]
            instance.components = _components(message.health)
        if message.HasField("effective_config"):
            instance.effective_config = _effective(message.effective_config)
        instance.said_goodbye = message.HasField("agent_disconnect")
        healthy = instance.healthy is not False
        instance.good_beats = rules.count_beat(instance.good_beats, healthy, silence, instance.interval, rules.MOST_GOOD_BEATS)
        instance.last_seen = instance.heard = now
        previous, instance.sequence_num = instance.sequence_num, message.sequence_num
        self.changed.add(instance)
        if message.HasField("agent_description"):
            return False
        return not instance.described or previous is None or message.sequence_num not in (previous, previous + 1)


def description(message: opamp.AgentDescription) -> dict[str, Any]:
    """All attributes of an agent's description, identifying ones last so that they win."""
    return {**attributes(message.non_identifying_attributes), **attributes(message.identifying_attributes)}


def attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """OTLP attributes as JSON-able values."""
    return {pair.key: _plain(pair.value) for pair in pairs}


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_plain(v) for v in value.array_value.values]
    if kind == "kvlist_value":
        return attributes(value.kvlist_value.values)
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind)


def _uid(raw: bytes) -> str:
    if not raw:
        return ""
    if len(raw) != 16:  # noqa: PLR2004 - the specification's length
        raise MalformedBodyError("instance_uid must have 16 bytes")
    return str(uuid.UUID(bytes=raw))


def _components(health: opamp.ComponentHealth) -> list[dict[str, Any]]:
    parts = sorted(health.component_health_map.items())[:_MAX_COMPONENTS]
    return [
        {"name": name[:200], "healthy": part.healthy, "status": part.status[:200], "last_error": part.last_error[:_MAX_TEXT]}
        for name, part in parts
    ]


def _effective(config: opamp.EffectiveConfig) -> dict[str, Any]:
    """The reported configuration: one JSON file as it is, several or other ones by file name."""
    files: dict[str, Any] = {}
    for name, file in config.config_map.config_map.items():
        text = file.body.decode(errors="replace")
        try:
            files[name] = json.loads(text)
        except ValueError:
            files[name] = text
    if len(files) == 1 and isinstance(only := next(iter(files.values())), dict):
        return dict(only)
    return files
