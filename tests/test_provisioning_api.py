"""The provisioning routes, mounted in both of the promised ways."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from connectors.agent_factory import AgentFactory


def _alone() -> FastAPI:
    from connectors.api import router

    app = FastAPI()
    app.include_router(router)
    return app


def _by_the_older_path() -> FastAPI:
    from app.api.agent_routes import router

    app = FastAPI()
    app.include_router(router)
    return app


@pytest.fixture(params=[_alone, _by_the_older_path])
def client(request):
    return TestClient(request.param(), base_url="http://localhost:8000")


def provision(client, **body):
    return client.post("/api/v1/agent/provision", json=body)


def test_the_specifications_kubernetes_example_works_verbatim(client):
    response = provision(
        client, agent_type="kubernetes", environment_name="prod-cluster", config={"namespace": "monitoring", "replicas": 2}
    )
    assert response.status_code == 200
    answer = response.json()
    assert answer["agent_type"] == "kubernetes"
    assert answer["environment_name"] == "prod-cluster"
    assert answer["agent_token"].startswith("agent_prod-cluster_")
    assert answer["deployment_command"].startswith("helm repo add incident-rca ")
    assert "helm upgrade --install incident-rca " in answer["deployment_command"].replace(" \\\n ", "")
    assert "monitoring" in answer["deployment_command"]
    assert answer["agent_token"] in answer["deployment_command"]
    assert answer["instructions"].startswith("1. ")
    assert answer["agent_token"] not in answer["uninstall_command"]


@pytest.mark.parametrize("agent_type", AgentFactory.supported_types())
def test_every_type_can_be_provisioned(client, agent_type):
    answer = provision(client, agent_type=agent_type, environment_name="e").json()
    assert "http://localhost:8000" in answer["deployment_command"]


def test_the_types_are_listed_with_where_they_run_and_their_schema(client):
    types = {t["name"]: t for t in client.get("/api/v1/agent/types").json()["types"]}
    assert set(types) == set(AgentFactory.supported_types())
    for kind in types.values():
        assert kind["available"]
        assert kind["description"]
        assert kind["runs_on"]
        assert kind["config_schema"]["additionalProperties"] is False
        assert all(option.get("description") for option in kind["config_schema"]["properties"].values())


def test_an_unknown_type_is_told_the_known_ones(client):
    response = provision(client, agent_type="mainframe", environment_name="e")
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "unknown-agent-type"
    assert problem["errors"][0]["field"] == "agent_type"
    for known in AgentFactory.supported_types():
        assert known in problem["detail"]


@pytest.mark.parametrize(
    ("config", "field", "expectation"),
    [
        ({"no_such_option": 1}, "config.no_such_option", "known options"),
        ({"collect_interval": "soon"}, "config.collect_interval", "number"),
        ({"collect_interval": 0}, "config.collect_interval", "greater than or equal to 1"),
        ({"log_level": "loud"}, "config.log_level", "'debug'"),
        ({"labels": {"a": 1}}, "config.labels.a", "string"),
    ],
)
def test_a_bad_option_is_refused_by_name_with_what_was_expected(client, config, field, expectation):
    response = provision(client, agent_type="server", environment_name="e", config=config)
    assert response.status_code == 422
    problem = response.json()
    assert problem["errors"][0]["field"] == field
    assert expectation in problem["detail"]


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a;rm -rf", "$(id)", "a" * 64, "ä", "a\n"])
def test_a_bad_environment_name_is_refused(client, name):
    response = provision(client, agent_type="server", environment_name=name)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "environment_name"


@pytest.mark.parametrize("name", ["a", "1", "prod-cluster", "eu.west_1", "a" * 63])
def test_a_good_environment_name_is_taken(client, name):
    assert provision(client, agent_type="server", environment_name=name).status_code == 200


def test_an_application_may_hand_in_its_own_store_and_url():
    class Store:
        async def create_agent(self, agent_type, environment_name, config, actor):
            from connectors.api.agent_store import ProvisionedAgent

            return ProvisionedAgent("my-id", "agent_e_mine")

    app = _alone()
    app.state.agent_store = Store()
    app.state.agent_platform_url = "https://irca.example.com/base/"
    answer = provision(TestClient(app), agent_type="docker", environment_name="e").json()
    assert answer["agent_id"] == "my-id"
    assert "PLATFORM_API_URL=https://irca.example.com/base" in answer["deployment_command"]
