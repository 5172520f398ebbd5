"""The fleet in memory: every agent and instance, with the indexes that the hot paths need. The database is its durable copy."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from app.db.models import AgentRow, InstanceRow
from app.fleet import status as rules
from app.fleet.views import AgentView, ComponentHealthView, InstanceSummary, InstanceView, Status


@dataclass(slots=True, eq=False)
class Agent:
    """An agent and its instances by id."""

    id: str
    agent_type: str
    environment_name: str
    config: dict[str, Any]
    labels: dict[str, str]
    created_at: datetime
    instances: dict[str, Instance] = field(default_factory=dict)
    nodes: frozenset[str] | None = None
    """Names of the nodes of a kubernetes agent's cluster, as it last reported them; None while they are not known."""
    maintenance_until: float | None = None
    """Until when its events are muted, in seconds since the epoch; None outside maintenance windows."""

    @classmethod
    def of(cls, row: AgentRow) -> Agent:
        """The agent that a row holds."""
        return cls(row.id, row.agent_type, row.environment_name, dict(row.config), dict(row.labels), row.created_at)

    @property
    def has_pods(self) -> bool:
        """Whether its instances are pods, which are replaced rather than repaired."""
        return self.agent_type == "kubernetes"

    def status(self) -> tuple[Status, str]:
        """The worst status among its instances and the reason given there; of a kubernetes agent as of its living pods."""
        if self.has_pods:
            status, reason = rules.of_pods([i.pod() for i in self.instances.values() if not i.passed_on], self.nodes)
            return status, reason or self._reason(status)
        if len(self.instances) == 1:
            [only] = self.instances.values()
            return only.status, only.status_reason
        worst = rules.worst([i.status for i in self.instances.values()])
        return worst, self._reason(worst)

    def replaced(self) -> set[str]:
        """Ids of its pods that are gone and no loss."""
        if not self.has_pods:
            return set()
        pods = {i.id: i.pod() for i in self.instances.values()}
        passed_on = {i.id for i in self.instances.values() if i.passed_on}
        living = {pod.work for key, pod in pods.items() if pod.lives and key not in passed_on}
        if living:
            return passed_on | {key for key, pod in pods.items() if rules.is_replaced(pod, living, self.nodes)}
        archived = [i for i in self.instances.values() if i.status is Status.ARCHIVED]
        if len(archived) == len(self.instances):  # the last that was heard stands for them
            archived = sorted(archived, key=lambda i: i.last_seen or 0.0)[:-1]
        return {i.id for i in archived}

    def view(self, *, with_replaced: bool = False) -> AgentView:
        """What API and pages show; of the pods that were replaced only how many they are, unless they are asked for."""
        status, reason = self.status()
        replaced = self.replaced()
        current = [i for i in self.instances.values() if i.id not in replaced]
        present = [i for i in current if i.status is not Status.ARCHIVED] or current
        listed = sorted(self.instances.values() if with_replaced else current, key=lambda i: (-rules.severity(i.status), i.name, i.id))
        if not self.instances:
            reason = "no contact yet"
        heard = [i.last_seen for i in present if i.last_seen is not None]
        return AgentView(
            id=self.id,
            agent_type=self.agent_type,
            environment_name=self.environment_name,
            status=status,
            status_reason=reason,
            version=_oldest(present),
            last_seen_at=moment(max(heard, default=None)),
            created_at=self.created_at,
            maintenance_until=moment(self.maintenance_until),
            labels=self.labels,
            config=self.config,
            instances=[i.summary(replaced=i.id in replaced) for i in listed],
            replaced_pods=len(replaced),
        )

    def version(self) -> str:
        """Version of its present instances; the oldest where they differ, empty before the first contact."""
        return _oldest(self._present())

    def last_heard(self) -> float | None:
        """When one of its present instances was last seen, in seconds since the epoch."""
        return max((i.last_seen for i in self._present() if i.last_seen is not None), default=None)

    def _present(self) -> list[Instance]:
        if len(self.instances) == 1 and not self.has_pods:  # as most are; lists ask this of ten thousand
            return list(self.instances.values())
        replaced = self.replaced()
        current = [i for i in self.instances.values() if i.id not in replaced]
        return [i for i in current if i.status is not Status.ARCHIVED] or current

    def _reason(self, status: Status) -> str:
        return next((i.status_reason for i in self.instances.values() if i.status is status and i.status_reason), "")


@dataclass(slots=True, eq=False)
class Instance:
    """An instance as last heard. ``last_seen`` and ``heard`` are seconds since the epoch.

    ``heard`` is what the status is judged by: it equals ``last_seen`` but for the time right after a start of the platform, when
    silence before it is nobody's fault but ours.
    """

    id: str
    agent: Agent
    fingerprint: str
    name: str
    version: str = ""
    resource: dict[str, Any] = field(default_factory=dict)
    effective_config: dict[str, Any] = field(default_factory=dict)
    components: list[dict[str, Any]] = field(default_factory=list)
    healthy: bool | None = None
    last_error: str = ""
    status: Status = Status.PENDING
    status_reason: str = ""
    status_since: float = 0.0
    passed_on: bool = False
    """A pod that has fallen silent, on its way to offline, while another does its work."""
    first_seen: float = 0.0
    last_seen: float | None = None
    heard: float | None = None
    interval: float = 30.0
    good_beats: int = 0
    said_goodbye: bool = False
    setbacks: int = 0
    recovered_at: float | None = None
    quiet_since: float | None = None
    """When it was last heard before it was told to be quiet; None while it is not. It is kept in the archive, too."""
    quiet_muted: bool = False
    """That it is quiet was told in maintenance only, which is to nobody."""
    returned_at: float | None = None
    """When a quiet one was heard again and began to recover."""
    revived_at: float | None = None
    credential_hash: bytes | None = None
    candidate_hash: bytes | None = None
    token_id: str | None = None
    """The enrolment token that it came by last."""
    sequence_num: int | None = None
    described: bool = False
    uid: bytes = field(init=False)
    """The OpAMP instance_uid: the id's 16 bytes."""

    def __post_init__(self) -> None:
        """Keep the bytes: every heartbeat compares them."""
        self.uid = uuid.UUID(self.id).bytes

    @classmethod
    def of(cls, row: InstanceRow, agent: Agent, started: float, interval: float) -> Instance:
        """The instance that a row holds, to be judged from ``started`` on."""
        last_seen = row.last_seen_at.timestamp() if row.last_seen_at else None
        silent_before = row.status in (Status.OFFLINE, Status.STOPPED, Status.ARCHIVED)
        return cls(
            id=row.id,
            agent=agent,
            fingerprint=row.fingerprint,
            name=row.name,
            version=row.version,
            resource=dict(row.resource),
            effective_config=dict(row.effective_config),
            components=list(row.components),
            healthy=row.healthy,
            last_error=row.last_error,
            status=Status(row.status),
            status_reason=row.status_reason,
            status_since=row.status_since.timestamp(),
            first_seen=row.first_seen_at.timestamp(),
            last_seen=last_seen,
            heard=last_seen if last_seen is None or silent_before else max(last_seen, started),
            interval=interval,
            good_beats=row.good_beats,
            said_goodbye=row.said_goodbye,
            quiet_since=_seconds(row.quiet_since),
            revived_at=_seconds(row.revived_at),
            credential_hash=row.credential_hash,
            candidate_hash=row.candidate_hash,
            token_id=row.token_id,
        )

    def columns(self) -> dict[str, Any]:
        """Its row's values."""
        return {
            "id": self.id,
            "agent_id": self.agent.id,
            "fingerprint": self.fingerprint,
            "name": self.name,
            "version": self.version,
            "resource": self.resource,
            "effective_config": self.effective_config,
            "components": self.components,
            "healthy": self.healthy,
            "last_error": self.last_error,
            "status": self.status.value,
            "status_reason": self.status_reason,
            "status_since": moment(self.status_since),
            "first_seen_at": moment(self.first_seen),
            "last_seen_at": moment(self.last_seen),
            "good_beats": self.good_beats,
            "said_goodbye": self.said_goodbye,
            "quiet_since": moment(self.quiet_since),
            "revived_at": moment(self.revived_at),
            "credential_hash": self.credential_hash,
            "candidate_hash": self.candidate_hash,
            "token_id": self.token_id,
        }

    @property
    def has_credential(self) -> bool:
        """Whether it has a credential, proven or not; one whose credential was revoked has none."""
        return self.credential_hash is not None or self.candidate_hash is not None

    def facts(self) -> rules.Facts:
        """What its status is judged by."""
        return rules.Facts(
            self.heard, self.interval, self.healthy, self.last_error, self.good_beats, self.said_goodbye, self.setbacks, self.revived_at
        )

    def pod(self) -> rules.Pod:
        """What its agent's status and its own are judged by where instances are pods."""
        return rules.Pod(pod_work(self.resource, self.effective_config), self.status)

    def about(self) -> dict[str, str]:
        """The fields that tie an event to it."""
        return {
            "agent_id": self.agent.id,
            "instance_id": self.id,
            "agent_type": self.agent.agent_type,
            "environment_name": self.agent.environment_name,
        }

    def summary(self, *, replaced: bool = False) -> InstanceSummary:
        """What its agent's row shows of it."""
        return InstanceSummary(
            id=self.id,
            name=self.name,
            status=self.status,
            status_reason=self.status_reason,
            version=self.version,
            last_seen_at=moment(self.last_seen),
            replaced=replaced,
        )

    def view(self, *, replaced: bool = False) -> InstanceView:
        """What API and pages show."""
        return InstanceView(
            **self.summary(replaced=replaced).model_dump(),
            agent_id=self.agent.id,
            agent_type=self.agent.agent_type,
            environment_name=self.agent.environment_name,
            status_since=datetime.fromtimestamp(self.status_since, UTC),
            first_seen_at=datetime.fromtimestamp(self.first_seen, UTC),
            maintenance_until=moment(self.agent.maintenance_until),
            healthy=self.healthy,
            components=[ComponentHealthView(**c) for c in self.components],
            resource=self.resource,
            effective_config=self.effective_config,
        )


class Registry:
    """Agents and instances by id, instances by the digest of their credential, candidates included."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self.instances: dict[str, Instance] = {}
        self.by_credential: dict[bytes, Instance] = {}

    def load(self, agents: list[AgentRow], instances: list[InstanceRow], started: float, interval: float) -> None:
        """Take in what the database holds."""
        for agent_row in agents:
            self.add_agent(Agent.of(agent_row))
        for row in instances:
            self.add_instance(Instance.of(row, self.agents[row.agent_id], started, interval))

    def add_agent(self, agent: Agent) -> None:
        """Add an agent."""
        self.agents[agent.id] = agent

    def add_instance(self, instance: Instance) -> None:
        """Add an instance to its agent and to the indexes."""
        self.instances[instance.id] = instance
        instance.agent.instances[instance.id] = instance
        for digest in (instance.credential_hash, instance.candidate_hash):
            if digest is not None:
                self.by_credential[digest] = instance

    def move(self, instance: Instance, agent: Agent) -> None:
        """Let ``instance`` belong to ``agent`` from now on."""
        instance.agent.instances.pop(instance.id, None)
        instance.agent = agent
        agent.instances[instance.id] = instance

    def set_credentials(self, instance: Instance, credential: bytes | None, candidate: bytes | None) -> None:
        """Replace both digests; the ones that are dropped stop working at once."""
        for digest in (instance.credential_hash, instance.candidate_hash):
            if digest is not None:
                self.by_credential.pop(digest, None)
        instance.credential_hash, instance.candidate_hash = credential, candidate
        for digest in (credential, candidate):
            if digest is not None:
                self.by_credential[digest] = instance

    def of_machine(self, agent: Agent, fingerprint: str) -> Iterator[Instance]:
        """The instances of ``agent`` on this machine."""
        return (i for i in agent.instances.values() if i.fingerprint == fingerprint)


def pod_work(resource: Mapping[str, Any], effective_config: Mapping[str, Any]) -> str:
    """What a pod of a kubernetes agent does: watch the cluster, or measure the node that it runs on."""
    if effective_config.get("view") == "node":
        return rules.NODE_VIEW + str(resource.get("k8s.node.name", ""))
    return rules.CLUSTER_VIEW


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def moment(seconds: float | None) -> Any:
    """Seconds since the epoch as an aware datetime; None stays None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _oldest(instances: list[Instance]) -> str:
    if len(instances) == 1:
        return instances[0].version
    return min((i.version for i in instances if i.version), default="", key=rules.version_key)
