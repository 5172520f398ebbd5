"""One suite over every store that provisioning can keep its agents in."""

from __future__ import annotations

import re

import pytest

from connectors.api.agent_store import MemoryAgentStore


@pytest.fixture(params=["memory", "platform"])
def store(request, parts):
    return MemoryAgentStore() if request.param == "memory" else parts.fleet


async def test_a_new_agent_has_an_id_and_a_token_that_names_its_environment(store):
    made = await store.create_agent("server", "prod.eu-1", {"log_level": "debug"}, "tester")
    assert made.agent_id
    assert re.fullmatch(r"agent_prod\.eu-1_[A-Za-z0-9_-]{32,}", made.token)


async def test_two_provisionings_make_two_agents_with_different_tokens(store):
    first, second = [await store.create_agent("server", "prod", {}, "tester") for _ in range(2)]
    assert first.agent_id != second.agent_id
    assert first.token != second.token
