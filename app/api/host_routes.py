"""The hosts of server agents."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from app.api.dependencies import PlatformDependency, require
from app.api.parameters import InstanceId
from app.auth.service import Role
from app.errors import NotFoundError
from app.telemetry.hosts import HostView

router = APIRouter(prefix="/api/v1", tags=["hosts"], dependencies=[Depends(require(Role.VIEWER))])


@router.get("/instances/{instance_id}/host")
async def get_host(instance_id: InstanceId, platform: PlatformDependency) -> HostView:
    """The host that a server agent measures, as of its newest sample: resources, disks, filesystems, network, units, processes.

    What it reported before it fell silent stays: see ``sampled_at``. Its changes are events whose names begin with ``irca.host.``.
    """
    instance = await platform.fleet.get_instance(instance_id)
    if instance.agent_type != "server":
        raise NotFoundError(f"{instance.name} measures no host of its own: it is of type {instance.agent_type}")
    return await platform.hosts.read(
        instance.id, last_seen_at=instance.last_seen_at, interval=instance.effective_config.get("collect_interval")
    )
