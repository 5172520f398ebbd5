"""A typed client of the platform's HTTP interface.

    with Client("https://rca.example.com", key) as platform:
        for agent in platform.fleet.iterate_agents(status="degraded"):
            print(agent.environment_name, agent.status_reason)

One attribute for each tag of the OpenAPI document, one method for each operation; `prometheus` has queries, `live` what happens.
"""

from __future__ import annotations

from app.client.client import Client
from app.client.errors import ClientError

__all__ = ["Client", "ClientError"]
