"""The HTTP interface against its own OpenAPI document: whatever is sent, no server error, and every answer as it is documented."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx2
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.failures import FailureGroup
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from app.main import create_app
from app.settings import Settings

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning"),  # schemathesis does
]
KEY = "a-preset-admin-key-for-tests"
NOT_TRIED = {"GET /api/v1/live": "the live stream never ends by itself"}
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = {GenerationMode.POSITIVE: 8, GenerationMode.NEGATIVE: 6}


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("openapi")
    server = uvicorn.Server(uvicorn.Config(create_app(Settings(data_dir=folder, admin_api_key=KEY)), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, name="platform")
    thread.start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    head = {"Authorization": f"Bearer {KEY}"}
    yield schemathesis.openapi.from_url(f"{url}/openapi.json"), Known(url, head)
    server.should_exit = True
    thread.join(20)


class Known:
    """Things that there are on the platform, so that requests reach beyond the look-up of ids made up."""

    def __init__(self, url: str, head: dict[str, str]) -> None:
        with httpx2.Client(base_url=url, headers=head) as client:
            body = {"agent_type": "server", "environment_name": "prod"}
            agent = client.post("/api/v1/agent/provision", json=body).json()["agent_id"]
            group = client.post("/api/v1/groups", json={"name": "known"}).json()["id"]
            hook = client.post("/api/v1/webhooks", json={"name": "known", "url": "https://receiver.invalid/"}).json()["id"]
            tokens = client.get(f"/api/v1/agents/{agent}/tokens").json()["items"]
            event = client.get("/api/v1/events").json()["items"][0]["id"]
        self.ids = {"agent_id": agent, "group_id": group, "webhook_id": hook, "token_id": tokens[0]["id"], "event_id": event}


def test_whatever_is_sent_is_answered_as_it_is_documented(api):
    # Operations are walked by hand: schemathesis' pytest plugin does not know this version of pytest.
    schema, known = api
    tried, skipped, failures = set(), set(), {}
    for result in schema.get_all_operations():
        operation = result.ok()
        name = f"{operation.method.upper()} {operation.path}"
        if name in NOT_TRIED:
            skipped.add(name)
            continue
        for mode, examples in EXAMPLES.items():
            try:
                _try(operation, mode, examples, known.ids)
            except Unsatisfiable:  # there is nothing that is not valid about it: it takes no parameters, or any text
                assert mode is GenerationMode.NEGATIVE, name
            except (AssertionError, FailureGroup) as failure:
                failures.setdefault(name, f"{mode.value}: {failure}")
        tried.add(name)
    assert failures == {}, "\n\n".join(f"{name}: {failure}" for name, failure in failures.items())
    assert skipped == set(NOT_TRIED)
    assert tried | skipped == _documented(schema.raw_schema)
    assert len(tried) > 80


def _try(operation, mode: GenerationMode, examples: int, known: dict[str, str]) -> None:
    turns = iter(range(10_000))

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def answered(case):
        if mode is GenerationMode.POSITIVE and case.method != "DELETE" and next(turns) % 2:  # every other time something that there is
            case.path_parameters.update({name: known[name] for name in case.path_parameters if name in known})
        response = case.call(headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
        what = f"{case.method} {case.path} answered {response.status_code}: {response.text[:300]}"
        assert response.status_code < 500 or response.status_code in (501, 503), what
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400 and case.path != "/readyz":
            _has_an_errors_shape(response, case.path, what)

    answered()


def _has_an_errors_shape(response, path: str, what: str) -> None:
    problem = response.json()
    if path.startswith("/prometheus") and response.headers["content-type"] == ["application/json"]:
        assert problem["status"] == "error", what
    else:
        assert response.headers["content-type"] == ["application/problem+json"], what
        assert problem["status"] == response.status_code, what


def _documented(document: dict) -> set[str]:
    return {f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations if method != "parameters"}
