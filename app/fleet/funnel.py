"""How far an issued deployment command has come: a pure function of the steps that were told.

issued -> downloaded -> installed -> enrolled -> first metric. The installer tells the middle two, and where it stopped and why; the
platform sees the others itself. Installers of some types and systems tell nothing: then a later step shows that the earlier ones were
taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, Field


class DeploymentStep(StrEnum):
    """What is kept of a deployment: a step that was reached, or that it failed."""

    DOWNLOADED = "downloaded"
    INSTALLED = "installed"
    ENROLLED = "enrolled"
    FIRST_METRIC = "first_metric"
    FAILED = "failed"


class StageState(StrEnum):
    """Where a stage of the funnel stands: ``passed`` means that a later one was reached and nobody told of this one."""

    REACHED = "reached"
    PASSED = "passed"
    FAILED = "failed"
    WAITING = "waiting"


class StageView(BaseModel):
    """A stage of the funnel on one host."""

    name: str = Field(description="issued, downloaded, installed, enrolled or first_metric.")
    state: StageState
    time: datetime | None = Field(description="When it was reached first, or failed.")


class FailureView(BaseModel):
    """Why a deployment stopped."""

    check: str = Field(description="The preflight item or step that failed, as the installer names it.")
    reason: str = Field(description="What went wrong, as the installer tells it.")
    time: datetime


class HostFunnelView(BaseModel):
    """How far the command has come on one host."""

    host: str = Field(description="The host's or cluster's name; empty where it was not told.")
    stages: list[StageView]
    failure: FailureView | None = Field(description="The last run's failure; null when it did not fail, or not for good.")


class FunnelView(BaseModel):
    """How far an agent's deployment command has come, on each host that it was run on."""

    agent_id: str
    issued_at: datetime = Field(description="When the deployment command was made.")
    complete: bool = Field(description="The first metrics of every host that it was run on have arrived.")
    stages: list[StageView] = Field(description="Of the host that has come furthest; all but issued are waiting while there is none.")
    hosts: list[HostFunnelView] = Field(description="The host that was heard of last comes first.")


@dataclass(frozen=True, slots=True)
class ToldStep:
    """A step as it was told. ``check`` and ``reason`` belong to a failure."""

    step: DeploymentStep
    host: str
    time: datetime
    check: str = ""
    reason: str = ""


_STAGES = (DeploymentStep.DOWNLOADED, DeploymentStep.INSTALLED, DeploymentStep.ENROLLED, DeploymentStep.FIRST_METRIC)
_WITH_INSTALLER = frozenset({"server"})
"""Types whose installers tell how far they are."""


def funnel(agent_id: str, agent_type: str, issued_at: datetime, told: Iterable[ToldStep]) -> FunnelView:
    """The funnel of an agent from the steps that were told, in any order. Stages that nobody tells for the type are left out."""
    by_host: dict[str, list[ToldStep]] = {}
    for one in sorted(told, key=lambda step: step.time):
        by_host.setdefault(one.host, []).append(one)
    stages: tuple[DeploymentStep, ...] = _STAGES
    if agent_type not in _WITH_INSTALLER:
        spoken = {one.step for steps in by_host.values() for one in steps}
        stages = tuple(s for s in _STAGES if s in spoken or s in (DeploymentStep.ENROLLED, DeploymentStep.FIRST_METRIC))
    newest_first = sorted(by_host.items(), key=lambda pair: pair[1][-1].time, reverse=True)
    hosts = [_of_host(host, issued_at, stages, steps) for host, steps in newest_first]
    furthest = max(hosts, key=_progress, default=None)
    return FunnelView(
        agent_id=agent_id,
        issued_at=issued_at,
        complete=bool(hosts) and all(host.stages[-1].state is StageState.REACHED and host.failure is None for host in hosts),
        stages=furthest.stages if furthest else _of_host("", issued_at, stages, ()).stages,
        hosts=hosts,
    )


def _of_host(host: str, issued_at: datetime, stages: Sequence[DeploymentStep], steps: Sequence[ToldStep]) -> HostFunnelView:
    first: dict[DeploymentStep, datetime] = {}
    for one in steps:
        first.setdefault(one.step, one.time)
    failure = None
    if steps and steps[-1].step is DeploymentStep.FAILED:  # whatever came after it would have been a run that went on
        failure = FailureView(check=steps[-1].check, reason=steps[-1].reason, time=steps[-1].time)
    furthest = max((place for place, stage in enumerate(stages) if stage in first), default=-1)
    views = [StageView(name="issued", state=StageState.REACHED, time=issued_at)]
    for place, stage in enumerate(stages):
        state, time = StageState.WAITING, first.get(stage)
        if time is not None:
            state = StageState.REACHED
        elif place < furthest:
            state = StageState.PASSED
        elif failure is not None and place == furthest + 1:
            state, time = StageState.FAILED, failure.time
        views.append(StageView(name=stage.value, state=state, time=time))
    return HostFunnelView(host=host, stages=views, failure=failure)


def _progress(host: HostFunnelView) -> int:
    return max(place for place, stage in enumerate(host.stages) if stage.state is StageState.REACHED)
