"""Enrolment: tokens in, instances with credentials of their own out.

A token ``agent_<environment>_<random>`` is kept as a digest, with an expiry and a number of machines that it may enrol; the same
machine again is free. A kubernetes token counts clusters instead: one that has used it may enrol pods for ever, past the token's expiry
too, for pods are replaced for years and lose their credential with their disk; only revocation ends that. First contact exchanges the
token for the instance's own credential. The new credential is a *candidate* until the instance has used it; only then is the old one
dropped, so a lost answer locks nobody out.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.audit.records import SYSTEM, Actor, Target
from app.audit.service import AuditService
from app.auth.principal import Principal
from app.auth.rate_limit import FailureLimit
from app.db.models import EnrolmentTokenRow, TokenUseRow
from app.db.session import Database
from app.errors import (
    ClusterUnknownError,
    ConflictError,
    NotFoundError,
    TokenExpiredError,
    TokenRevokedError,
    TokenUnknownError,
    TokenUsedUpError,
    UnauthenticatedError,
)
from app.events import catalogue
from app.events.event_type import EventType
from app.events.records import EventRecord
from app.events.service import EventService
from app.fleet import repository
from app.fleet.deployments import Deployments
from app.fleet.registry import Agent, Instance, Registry
from app.fleet.status import late_after
from app.fleet.views import Status

FINGERPRINT = "irca.machine.fingerprint"
CLUSTER = "k8s.cluster.uid"
SPLIT_WINDOW = 600.0
"""Seconds within which a second replacement of an instance that is still talking means two writers, not a reinstallation."""

CLUSTER_RETRY = 10.0
"""Seconds after which a pod that could not name its cluster should try again."""
TOLD_AGAIN = 600.0
"""Seconds after which the same refusal of the same host is recorded again."""
REFUSED_BURST, REFUSED_EVERY = 30, 10.0
"""Bad tokens and credentials that an address may show at once, and seconds after which it may show one more; hosts may share it."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The outcome of an enrolment: the instance, its new credential's text, and whether it must adopt another identity."""

    instance: Instance
    credential: str | None
    renamed: bool


def digest(text: str) -> bytes:
    """What is stored of a token or credential: long random texts need no slow hash."""
    return hashlib.sha256(text.encode()).digest()


class Enrolment:
    """Tokens, credentials and first contacts."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        events: EventService,
        audit: AuditService,
        clock: Callable[[], float],
        interval: float,
        deployments: Deployments,
    ) -> None:
        self._database = database
        self._deployments = deployments
        self._registry = registry
        self._events = events
        self._audit = audit
        self._clock = clock
        self._interval = interval
        self._tokens: dict[bytes, EnrolmentTokenRow] = {}
        self._replaced: dict[str, float] = {}
        self._told: dict[tuple[str, ...], float] = {}
        self._lock = asyncio.Lock()
        self._changes = 0
        """How often tokens were revoked or rotated: what was read of one before is not kept after."""
        self.refused = FailureLimit(REFUSED_BURST, REFUSED_EVERY, clock)
        """Failures by address. Only who has failed is asked: a good credential passes, whatever its neighbours do."""

    async def issue_token(self, session: AsyncSession, agent: Agent, lifetime: float, max_uses: int = 1) -> tuple[str, EnrolmentTokenRow]:
        """A new token for ``agent`` in the caller's transaction: its text, shown once, and its record."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        head = f"agent_{agent.environment_name}_"
        text = head + secrets.token_urlsafe(24)
        row = EnrolmentTokenRow(
            id=str(uuid.uuid4()),
            agent_id=agent.id,
            prefix=text[: len(head) + 4],
            token_hash=digest(text),
            max_uses=max_uses,
            created_at=now,
            expires_at=datetime.fromtimestamp(self._clock() + lifetime, UTC),
            revoked_at=None,
        )
        session.add(row)
        return text, row

    async def principal(self, text: str) -> Principal:
        """Who sends with this credential or token.

        Raises:
            UnauthenticatedError: unknown, expired or revoked; the subclass and code tell which.
        """
        instance = self._registry.by_credential.get(digest(text))
        if instance is not None:
            agent = instance.agent
            return Principal("credential", agent.id, agent.agent_type, agent.environment_name, instance.id)
        token = await self.token(text)
        agent = self._registry.agents[token.agent_id]
        return Principal("enrolment", agent.id, agent.agent_type, agent.environment_name, None, token.id)

    async def token(self, text: str) -> EnrolmentTokenRow:
        """The valid token of this text; a kubernetes one that has expired only for the cluster that :meth:`enrol` finds to have used it.

        Raises:
            UnauthenticatedError: as :meth:`principal`.
        """
        hashed = digest(text)
        row = self._tokens.get(hashed)
        while row is None:
            changes = self._changes
            async with self._database.read() as session:
                row = await repository.find_token(session, hashed)
            if row is None or row.agent_id not in self._registry.agents:
                raise TokenUnknownError("this token or credential is not known to the platform: provision the environment again")
            if changes != self._changes:
                row = None  # one was revoked meanwhile, perhaps this one
                continue
            self._tokens[hashed] = row
        if row.revoked_at is not None:
            raise _revoked()
        if self._expired(row) and not await self._is_bound(row):
            raise _expiry(row)
        return row

    def _expired(self, token: EnrolmentTokenRow) -> bool:
        return token.expires_at.timestamp() <= self._clock()

    async def _is_bound(self, token: EnrolmentTokenRow) -> bool:
        """Whether a cluster has used this token."""
        if not self._registry.agents[token.agent_id].has_pods:
            return False
        async with self._database.read() as session:
            return await repository.count_uses(session, token.id) > 0

    async def revoke_token(self, token_id: str, actor: Actor = SYSTEM, *, revoke_instances: bool = False) -> int:
        """Revoke a token, at once, with ``revoke_instances`` also the credentials of the instances that came by it; how many those were.

        Otherwise these keep their credentials. A token that has been revoked before stays as it is.

        Raises:
            NotFoundError: no such token.
        """
        async with self._lock:
            records: list[EventRecord] = []
            async with self._database.write() as session:
                row, agent = await self._token_row(session, token_id)
                instances = self.came_by(row.id, with_credential=True) if revoke_instances else []
                if row.revoked_at is None:
                    row.revoked_at = datetime.fromtimestamp(self._clock(), UTC)
                    body = f"Enrolment token {row.prefix}… was revoked."
                    records.append(self._event(catalogue.TOKEN_REVOKED, body, {"irca.token.prefix": row.prefix}, agent))
                records += [self._credential_revoked(instance) for instance in instances]
                if instances:
                    await repository.drop_credentials(session, row.id)
                if records:
                    await self._events.add_many(session, records)
                    after = {"instances_revoked": len(instances)} if revoke_instances else None
                    self._audit.add(session, actor, "token.revoke", _token_target(row, agent), after=after)
            self._forget(row)
            for instance in instances:
                self._registry.set_credentials(instance, None, None)
        self._events.publish(records)
        return len(instances)

    async def rotate_token(self, token_id: str, overlap: float, actor: Actor = SYSTEM) -> tuple[str, EnrolmentTokenRow]:
        """A new token in the place of one: its text, shown once, and its record. The one before expires after ``overlap`` seconds.

        The new one lasts as long as the one before was meant to, and enrols as many machines.

        Raises:
            NotFoundError: no such token.
            ConflictError: it has been revoked.
        """
        async with self._lock:
            async with self._database.write() as session:
                row, agent = await self._token_row(session, token_id)
                if row.revoked_at is not None:
                    raise ConflictError("this enrolment token has been revoked: provision again for a new one")
                lifetime = (row.expires_at - row.created_at).total_seconds()
                text, issued = await self.issue_token(session, agent, lifetime, row.max_uses)
                row.expires_at = min(row.expires_at, datetime.fromtimestamp(self._clock() + overlap, UTC))
                after = {"token_prefix": issued.prefix, "expires_at": issued.expires_at.isoformat(), "overlap": overlap}
                self._audit.add(session, actor, "token.rotate", _token_target(row, agent), after=after)
            self._forget(row)
        return text, issued

    async def revoke_credential(self, instance: Instance, actor: Actor = SYSTEM) -> None:
        """Revoke an instance's credential, at once."""
        await self.revoke_credentials([instance], actor)

    async def revoke_credentials(self, instances: Sequence[Instance], actor: Actor = SYSTEM) -> None:
        """Revoke the credentials of instances, at once: all in one transaction, each audited."""
        records = [self._credential_revoked(instance) for instance in instances]
        async with self._lock:
            async with self._database.write() as session:
                await repository.drop_credentials_of(session, [instance.id for instance in instances])
                await self._events.add_many(session, records)
                for instance in instances:
                    target = Target("instance", instance.id, instance.name, instance.agent.environment_name)
                    self._audit.add(session, actor, "credential.revoke", target)
            for instance in instances:
                self._registry.set_credentials(instance, None, None)
        self._events.publish(records)

    def came_by(self, token_id: str, *, with_credential: bool = False) -> list[Instance]:
        """The instances that came by this token last, by name; with ``with_credential`` those that have one."""
        found = [i for i in self._registry.instances.values() if i.token_id == token_id and (i.has_credential or not with_credential)]
        return sorted(found, key=lambda i: (i.name, i.id))

    def _credential_revoked(self, instance: Instance) -> EventRecord:
        return self._event(catalogue.CREDENTIAL_REVOKED, f"The credential of {instance.name} was revoked.", {}, instance)

    def _forget(self, token: EnrolmentTokenRow) -> None:
        """Read a token that has changed anew from now on."""
        self._changes += 1
        self._tokens.pop(token.token_hash, None)

    async def _token_row(self, session: AsyncSession, token_id: str) -> tuple[EnrolmentTokenRow, Agent]:
        row = await session.get(EnrolmentTokenRow, token_id)
        if row is None:
            raise NotFoundError(f"there is no enrolment token {token_id}")
        return row, self._registry.agents[row.agent_id]

    async def prove(self, instance: Instance, used: bytes) -> None:
        """The instance has used the credential of digest ``used``: if it was the candidate, it replaces the old one."""
        async with self._lock:
            if used != instance.candidate_hash:  # proven, or revoked, meanwhile
                return
            async with self._database.write() as session:
                await repository.save_credentials(session, instance.id, used, None)
            self._registry.set_credentials(instance, used, None)

    async def enrol(self, token: EnrolmentTokenRow, uid: str, resource: Mapping[str, Any], *, offer_credential: bool) -> Enrolled:
        """Enrol the instance that says it is ``uid`` on the machine that ``resource`` describes.

        Raises:
            TokenRevokedError: the token was revoked a moment ago.
            TokenUsedUpError: the token has enrolled as many machines (or clusters) as it may.
            TokenExpiredError: the token has expired, and this cluster has not used it before.
            ClusterUnknownError: a pod cannot tell yet which cluster it is in.
        """
        agent = self._registry.agents[token.agent_id]
        async with self._lock:
            async with self._database.write() as session:
                token, _ = await self._token_row(session, token.id)
                if token.revoked_at is not None:
                    raise _revoked()
                await self._use(session, token, agent, resource)
                enrolled, records = await self._admit(session, agent, uid, resource, offer_credential=offer_credential, token=token)
            self._events.publish(records)
            return enrolled

    async def split(self, instance: Instance, uid: str, resource: Mapping[str, Any]) -> Enrolled:
        """Give an identity and a credential of its own to a second machine that came with ``instance``'s credential (a cloned disk)."""
        async with self._lock, self._database.write() as session:
            enrolled, records = await self._admit(session, instance.agent, uid, resource, offer_credential=True, original=instance)
        self._events.publish(records)
        return enrolled

    async def refuse(self, exc: UnauthenticatedError | ClusterUnknownError, text: str, client: str, host: str = "") -> None:
        """Record that a first contact was refused. The token's own text is never kept, only its prefix as lists show it.

        The same refusal of the same host is recorded once in :data:`TOLD_AGAIN`.

        Args:
            exc: why.
            text: the token or credential; empty where none was shown, which is counted and not recorded.
            client: address of the one that tried.
            host: what it calls itself, where it told.

        Raises:
            TooManyRequestsError: too much was refused from this address; nothing was recorded.
        """
        if not exc.retryable:
            self.refused.count(client)
        self._told = {key: time for key, time in self._told.items() if self._clock() - time < TOLD_AGAIN}
        told = digest(text).hex(), client, exc.code, host
        if not text or told in self._told or (not host and any(key[:3] == told[:3] for key in self._told)):
            return
        self._told[told] = self._clock()
        row = self._tokens.get(digest(text))
        prefix = row.prefix if row else self._environment_part(text)
        attributes = {"irca.refusal": exc.code, "irca.token.prefix": prefix, "client.address": client}
        if host:
            attributes["host.name"] = host
        agent = self._registry.agents.get(row.agent_id) if row else None
        who = f"{host} ({client})" if host else client
        record = self._event(catalogue.ENROLMENT_REFUSED, f"First contact from {who} was refused: {exc.reason}", attributes, agent)
        await self._events.record([record])

    def _environment_part(self, text: str) -> str:
        """The beginning of an unknown token, as far as it names an environment of the fleet: what follows may be secret elsewhere."""
        heads = (f"agent_{agent.environment_name}" for agent in self._registry.agents.values())
        return max((head for head in heads if text.startswith(head + "_")), key=len, default="")

    async def _use(self, session: AsyncSession, token: EnrolmentTokenRow, agent: Agent, resource: Mapping[str, Any]) -> None:
        machine, (one, several) = _machine(resource), ("machine", "machines")
        if agent.has_pods:
            machine, (one, several) = str(resource.get(CLUSTER) or "")[:200], ("cluster", "clusters")
            if not machine:
                raise ClusterUnknownError(
                    f"the pod does not say which cluster it is in ({CLUSTER}): it must read the namespace kube-system before it can join",
                    retry_after=CLUSTER_RETRY,
                )
        if await repository.find_use(session, token.id, machine) is not None:
            return
        if self._expired(token):
            raise _expiry(token)
        if await repository.count_uses(session, token.id) >= token.max_uses:
            noun = one if token.max_uses == 1 else several
            raise TokenUsedUpError(f"this enrolment token may enrol {token.max_uses} {noun} and has done so: provision again for another")
        session.add(TokenUseRow(token_id=token.id, machine=machine, used_at=datetime.fromtimestamp(self._clock(), UTC)))

    async def _admit(
        self,
        session: AsyncSession,
        agent: Agent,
        uid: str,
        resource: Mapping[str, Any],
        *,
        offer_credential: bool,
        token: EnrolmentTokenRow | None = None,
        original: Instance | None = None,
    ) -> tuple[Enrolled, list[EventRecord]]:
        now, fingerprint = self._clock(), _fingerprint(uid, resource)
        known = None if original else self._same(agent, uid, fingerprint, now)
        clash = original or (self._registry.instances.get(uid) if known is None else None)
        records: list[EventRecord] = []
        instance = known or Instance(
            id=uid if uid not in self._registry.instances else str(uuid.uuid4()),
            agent=agent,
            fingerprint=fingerprint,
            name=instance_name(uid, resource),
            status_since=now,
            first_seen=now,
            interval=self._interval,
        )
        if clash is not None:
            attributes = {"irca.instance.original": clash.id}
            records.append(
                self._event(catalogue.INSTANCE_SPLIT, f"{instance.name} used the identity of {clash.name}.", attributes, instance)
            )
        if instance.agent is not agent:
            attributes = {"irca.agent.previous": instance.agent.id}
            previous = instance.agent
            self._registry.move(instance, agent)
            body = f"{instance.name} moved from {previous.environment_name} to {agent.environment_name}."
            records.append(self._event(catalogue.INSTANCE_MOVED, body, attributes, instance))
        instance.fingerprint = fingerprint
        instance.token_id = token.id if token else (original.token_id if original else None)
        credential = "cred_" + secrets.token_urlsafe(32) if offer_credential else None
        if known is not None:
            self._replaced[instance.id] = now
        enrolled = {"irca.token.prefix": token.prefix if token else "", "irca.instance.replaced": known is not None}
        records.append(
            self._event(catalogue.INSTANCE_ENROLLED, f"{instance.name} enrolled in {agent.environment_name}.", enrolled, instance)
        )
        if known is None:
            self._registry.add_instance(instance)
        if credential is not None:
            self._registry.set_credentials(instance, instance.credential_hash, digest(credential))
        await repository.save_instance(session, instance.columns())
        self._deployments.enrolled(session, instance, resource)
        for record in records:
            await self._events.add(session, record)
        return Enrolled(instance, credential, renamed=instance.id != uid), records

    def _same(self, agent: Agent, uid: str, fingerprint: str, now: float) -> Instance | None:
        """The known instance that this contact is, if any."""
        existing = self._registry.instances.get(uid)
        if existing is not None and (existing.fingerprint == fingerprint or not existing.fingerprint):
            return existing
        if existing is not None or agent.agent_type == "kubernetes":
            return None  # another machine under this identity; and pods come and go, each on its own
        for candidate in self._registry.of_machine(agent, fingerprint):
            talking = candidate.heard is not None and now - candidate.heard < late_after(candidate.interval)
            running = talking and candidate.status is not Status.STOPPED
            if not (running and now - self._replaced.get(candidate.id, 0.0) < SPLIT_WINDOW):
                return candidate
        return None

    def _event(self, kind: EventType, body: str, attributes: Mapping[str, Any], of: Agent | Instance | None) -> EventRecord:
        about: dict[str, str] = {}
        if isinstance(of, Instance):
            about = of.about()
        elif of is not None:
            about = {"agent_id": of.id, "agent_type": of.agent_type, "environment_name": of.environment_name}
        now = int(self._clock() * 1e9)
        return catalogue.make_event(kind, time_unix_nano=now, body=body, attributes=attributes, about=about)


def instance_name(uid: str, resource: Mapping[str, Any]) -> str:
    """What people call an instance: its pod, container or host, else its id."""
    for key in ("k8s.pod.name", "host.name", "container.name", "service.name"):
        if resource.get(key):
            return str(resource[key])[:255]
    return uid


def _fingerprint(uid: str, resource: Mapping[str, Any]) -> str:
    return str(resource.get(FINGERPRINT) or resource.get("host.id") or resource.get("service.instance.id") or uid)[:200]


def _machine(resource: Mapping[str, Any]) -> str:
    return str(_fingerprint("", resource) or "unknown")[:200]


def _token_target(row: EnrolmentTokenRow, agent: Agent) -> Target:
    return Target("token", row.id, f"{row.prefix}…", agent.environment_name)


def _revoked() -> TokenRevokedError:
    return TokenRevokedError("this enrolment token has been revoked")


def _expiry(token: EnrolmentTokenRow) -> TokenExpiredError:
    return TokenExpiredError(f"this enrolment token expired at {token.expires_at:%Y-%m-%d %H:%M} UTC: provision the environment again")
