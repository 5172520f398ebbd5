"""A real server agent under the remote configuration of a real platform: applied, refused and rolled back, and remembered."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from waiting import eventually

from connectors.agent_factory import AgentFactory
from tests.configured_agent import running
from tests.served_platform import ADMIN_KEY, serve

pytestmark = pytest.mark.sockets


class Client:
    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, body: object = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def until(self, path: str, holds: Callable[[Any], bool]) -> Any:
        answers: list[Any] = []

        def held() -> bool:
            answers[:] = [self.call("GET", path)]
            return holds(answers[0])

        eventually(held, why=lambda: answers)
        return answers[0]


def values(found: Any) -> dict[str, Any]:
    return {option["key"]: option["value"] for option in found["options"]}


def test_a_pushed_configuration_is_proven_by_the_agent_and_a_bad_one_is_rolled_back_and_explained(tmp_path, free_port):
    with serve(tmp_path / "platform") as served:
        client = Client(served.url)
        made = client.call("POST", "/api/v1/agent/provision", {"agent_type": "server", "environment_name": "prod"})
        own = {
            "state_dir": str(tmp_path / "agent"),
            "collect_interval": 1,
            "heartbeat_interval": 5,
            "change_watchers": [],
            "locked_options": ["top_processes"],
        }
        agent = AgentFactory.create_agent("server", served.url, made["agent_token"], own)
        with running(agent) as codes:
            instance = agent.runtime.instance_id
            path, desired = f"/api/v1/instances/{instance}/configuration", f"/api/v1/agents/{made['agent_id']}/configuration"

            def push(values: dict[str, Any]) -> None:
                client.call("PUT", desired, {"config": values})
                agent.runtime._wake_heartbeat.set()  # in place of waiting for the next one

            time.sleep(1)
            push({"cpu_per_core": False, "top_processes": 3})
            found = client.until(path, lambda found: found["status"] == "applied")
            assert values(found)["cpu_per_core"] is False
            assert values(found)["top_processes"] == 0, "what the host's owner locked stays"

            push({"collectors": ["cpu"], "custom_prometheus": {"app": f"http://127.0.0.1:{free_port}/"}})
            found = client.until(path, lambda found: found["status"] == "failed")
            assert f"custom/app: http://127.0.0.1:{free_port} cannot be reached" in found["reason"]
            client.until(path, lambda found: values(found)["custom_prometheus"] == {} and values(found)["cpu_per_core"] is False)

            push({"custom_commands": ["anything"]})
            found = client.until(path, lambda found: found["status"] == "failed")
            client.until(path, lambda found: "no command 'anything' is declared" in found["reason"])
            assert not codes

            push({"cpu_per_core": False})
            client.until(path, lambda found: found["status"] == "applied")
        again = AgentFactory.create_agent("server", served.url, made["agent_token"], own)
        assert again.runtime._config.cpu_per_core is False
        again.runtime.close()
