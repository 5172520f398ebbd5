"""Who a telemetry or management request comes from, once its token or credential has been checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated agent.

    A ``credential`` belongs to one instance and names it in ``instance_id``. An ``enrolment`` token belongs to an agent and may serve
    many instances: ``instance_id`` is None until the instance has been found from what the request says of its resource.
    """

    kind: Literal["credential", "enrolment"]
    agent_id: str
    agent_type: str
    environment_name: str
    instance_id: str | None = None
    token_id: str | None = None
    """The enrolment token, where it is one."""
