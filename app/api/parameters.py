"""Parameters that several routes take, each told once: the path's ids, and the filters of lists."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from app.fleet.tokens import TokenState
from app.fleet.views import Status
from app.groups.standing import ConfigStatus
from app.telemetry.containers import ContainerState
from app.webhooks.views import DeliveryStatus

AgentId = Annotated[str, Path(description="Id of the agent, as provisioning and the list of agents tell it.")]
InstanceId = Annotated[str, Path(description="Id of the instance: the UUID under which the running agent speaks to the platform.")]
TokenId = Annotated[str, Path(description="Id of the enrolment token; not its text.")]
KeyId = Annotated[str, Path(description="Id of the API key; not its text.")]
SessionId = Annotated[str, Path(description="Id of the browser session; not its cookie.")]
GroupId = Annotated[str, Path(description="Id of the group.")]
WebhookId = Annotated[str, Path(description="Id of the webhook's endpoint.")]
DeliveryId = Annotated[str, Path(description="Id of the delivery, as the delivery log tells it.")]
EventId = Annotated[str, Path(description="Id of the event.")]
WindowId = Annotated[str, Path(description="Id of the maintenance window.")]
ViewId = Annotated[str, Path(description="Id of the saved view.")]
ClusterUid = Annotated[str, Path(description="UID of the cluster's namespace kube-system, which stands for the cluster.")]

OfAgent = Annotated[str | None, Query(description="Only what belongs to the agent with this id.")]
OfInstance = Annotated[str | None, Query(description="Only what belongs to the instance with this id.")]
OfWebhook = Annotated[str | None, Query(description="Only deliveries to the webhook with this id.")]
OfAgentType = Annotated[str | None, Query(description="Only what belongs to agents of this type, such as kubernetes, docker or server.")]
OfEnvironment = Annotated[str | None, Query(description="Only what belongs to the environment of exactly this name.")]
OfEventName = Annotated[str | None, Query(description="Only events of exactly this name, such as irca.instance.status_changed.")]

InStatus = Annotated[Status | None, Query(description="Only those with this status.")]
InConfigStatus = Annotated[ConfigStatus | None, Query(description="Only instances whose configuration fares like this.")]
InContainerState = Annotated[ContainerState | None, Query(description="Only containers in this state.")]
InDeliveryStatus = Annotated[DeliveryStatus | None, Query(description="Only deliveries with this status.")]
InTokenState = Annotated[TokenState | None, Query(description="Only tokens in this state.")]
