from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from console_client import ADMIN_KEY, console, provision
from opamp_client import OpampAgent, credential_in
from starlette.testclient import TestClient

from app.client import Client, ClientError
from app.client import errors as client_errors
from app.client.generated import configuration_models, fleet_models, groups_models, maintenance_models, saved_views_models, webhooks_models
from app.client.generated.agent_models import Progress, ProvisionRequest
from app.client.generated.api_keys_models import KeyRequest
from app.client.session import Session, parameters, segment

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
import generate_client

URL = "http://testserver"
NOT_HERE = {"clusters", "containers", "hosts"}
"""Tags of what takes samples; an empty platform answers these with an empty list or says that there is none."""


@pytest.fixture
def served(tmp_path) -> Iterator[TestClient]:
    with console(tmp_path / "data") as made:
        yield made


@pytest.fixture
def platform(served) -> Client:
    return Client(URL, ADMIN_KEY, http=served)


@pytest.fixture
def generator(served) -> generate_client.Generator:
    return generate_client.Generator(served.get("/openapi.json").json())


def answering(*answers: httpx2.Response | Exception) -> tuple[Session, list[httpx2.Request], list[float]]:
    """A session whose requests are answered in turn, what it asks, and how long it sleeps."""
    waiting, asked, slept = list(answers), [], []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        found = waiting.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return Session("http://platform.test", "k", http=http, sleep=slept.append), asked, slept


def problem(status: int, code: str, **more: Any) -> httpx2.Response:
    headers = more.pop("headers", {})
    return httpx2.Response(status, json={"code": code, "detail": "why", "status": status, **more}, headers=headers)


def test_what_is_generated_is_what_the_interface_says(generator):
    fresh = generator.files()
    standing = {path.name: path.read_text() for path in generate_client.FOLDER.glob("*.py")}
    assert standing == fresh, "run tools/generate_client.py"
    assert all(text.count("\n") < 500 for text in fresh.values())


def test_every_operation_has_a_method_that_takes_every_parameter(generator, platform):
    assert len(generator.operations) > 60
    for op in generator.operations:
        method = getattr(getattr(platform, op.tag), op.name)
        taken = set(inspect.signature(method).parameters)
        wanted = {generate_client.snake(p["name"]) for p in op.raw.get("parameters", ())}
        assert taken == wanted | ({"body"} if op.body is not None else set()), f"{op.method} {op.path}"
        if "cursor" in wanted and op.name.startswith("list_"):
            assert hasattr(getattr(platform, op.tag), op.name.replace("list_", "iterate_", 1))


def test_operations_kept_by_hand_are_those_of_the_document(served, platform):
    paths = served.get("/openapi.json").json()["paths"]
    live = {p["name"] for p in paths["/api/v1/live"]["get"]["parameters"]}
    assert live == {"topic", "instance", "agent", "last-event-id", "last_event_id"}
    assert {"topic", "instance", "agent", "last_event_id"} <= inspect.signature(platform.live.follow).parameters.keys()
    by_hand = {name for name, _ in inspect.getmembers(platform.prometheus, inspect.ismethod) if not name.startswith("_")}
    assert len([path for path in paths if path.startswith("/prometheus/")]) == len(by_hand)


def filled(served: TestClient, platform: Client) -> dict[str, str]:
    """An id for every name that a path has."""
    agent = provision(served, "prod")
    headers = {"Authorization": f"Bearer {agent['agent_token']}", "Content-Type": "application/x-protobuf"}
    instance = OpampAgent()
    credential = credential_in(instance.read(served.post("/v1/opamp", content=instance.beat(full=True), headers=headers).content))
    headers["Authorization"] = f"Bearer {credential}"
    for beat in (instance.beat(), instance.beat(goodbye=True)):
        assert served.post("/v1/opamp", content=beat, headers=headers).status_code == 200
    served.portal.call(served.app.state.platform.fleet.flush)
    hook = platform.webhooks.create_webhook(webhooks_models.WebhookRequest(name="hook", url="https://receiver.example.com/"))
    delivery = platform.webhooks.send_test(hook.id)
    window = body_for("MaintenanceRequest", {})
    served.post("/sign-in", data={"api_key": ADMIN_KEY})
    view = saved_views_models.SavedViewRequest(page="agents", name="mine", query={"status": "degraded"})
    return {
        "agent_id": agent["agent_id"],
        "instance_id": str(instance.uid),
        "token_id": platform.enrolment_tokens.list_tokens().items[0].id,
        "key_id": platform.api_keys.create_key(KeyRequest(name="key")).id,
        "session_id": platform.sessions.list_sessions().items[0].id,
        "webhook_id": hook.id,
        "delivery_id": delivery.id,
        "group_id": platform.groups.create_group(groups_models.GroupRequest(name="web")).id,
        "window_id": platform.maintenance.create_window(window).id,
        "event_id": next(platform.events.iterate_events()).id,
        "view_id": platform.saved_views.save_view(view).id,
        "uid": "cluster",
        "token": agent["agent_token"],
    }


NUMBERS = itertools.count()
BODIES: dict[str, Any] = {
    "ProvisionRequest": ProvisionRequest(agent_type="server", environment_name="desks"),
    "Progress": Progress(step="downloaded"),
    "KeyRequest": KeyRequest(name="second"),
    "PreviewRequest": groups_models.PreviewRequest(selector=groups_models.Selector()),
    "RotationRequest": webhooks_models.RotationRequest(overlap=60),
    "ReplayRequest": webhooks_models.ReplayRequest(),
    "ConfigurationRequest": configuration_models.ConfigurationRequest(config={"collect_interval": 20}),
    "RevertRequest": configuration_models.RevertRequest(revision=1),
}


def body_for(kind: str, ids: dict[str, str]) -> Any:
    if kind == "BulkActRequest":
        return fleet_models.BulkActRequest(agent_ids=[ids["agent_id"]], act="add-label", label="team=web")
    if kind == "GroupRequest":
        return groups_models.GroupRequest(name=f"group {next(NUMBERS)}")
    if kind == "WebhookRequest":
        return webhooks_models.WebhookRequest(name=f"hook {next(NUMBERS)}", url="https://receiver.example.com/")
    if kind == "BulkRequest":
        return configuration_models.BulkRequest(agent_ids=[ids["agent_id"]], action="label", labels={"team": "web"})
    if kind == "AgentChangeRequest":
        return configuration_models.AgentChangeRequest(labels={"team": "web"})
    if kind == "MaintenanceRequest":
        selector = maintenance_models.MaintenanceSelector(environments=["prod"])
        return maintenance_models.MaintenanceRequest(reason="upgrade", duration=3600.0, selector=selector)
    if kind == "SavedViewRequest":
        return saved_views_models.SavedViewRequest(page="agents", name="other", query={"status": "offline"})
    return BODIES[kind]


def test_a_real_platform_answers_every_operation_with_what_its_model_knows(served, platform, generator):
    ids = filled(served, platform)
    order = {"GET": 0, "PATCH": 1, "PUT": 2, "POST": 3, "DELETE": 4}
    refused = set()
    for op in sorted(generator.operations, key=lambda op: order[op.method]):
        client = platform if not op.path.endswith(("/whoami", "/progress")) else Client(URL, ids["token"], http=served)
        given = [ids[p["name"]] for p in op.parameters("path")]
        if op.body is not None:
            kind = generator.type_of(generator._body(op))
            given += [] if kind.endswith("None") else [body_for(kind, ids)]
        try:
            found = getattr(getattr(client, op.tag), op.name)(*given)
        except client_errors.NotFoundError:
            refused.add(op.tag)
            continue
        if inspect.isgenerator(found):
            assert list(found)
        elif op.answer:
            assert type(found).__name__ == generator.type_of(op.answer["application/json"]), op.path
    assert refused <= NOT_HERE


def test_lists_are_walked_page_after_page_and_filters_are_passed_on(served, platform):
    for number in range(5):
        platform.groups.create_group(groups_models.GroupRequest(name=f"group-{number}"))
    assert [g.name for g in platform.groups.iterate_groups(limit=2)] == [f"group-{n}" for n in range(5)]
    assert [g.name for g in platform.groups.iterate_groups(search="group-3")] == ["group-3"]
    assert platform.groups.list_groups(limit=2).next_cursor


def test_a_change_made_from_an_old_version_is_refused(served, platform):
    group = platform.groups.create_group(groups_models.GroupRequest(name="web"))
    changed = groups_models.GroupRequest(name="web", priority=5)
    assert platform.groups.update_group(group.id, changed, if_match=1).priority == 5
    with pytest.raises(client_errors.PreconditionFailedError) as caught:
        platform.groups.update_group(group.id, changed, if_match=1)
    assert (caught.value.code, caught.value.status) == ("precondition-failed", 412)
    platform.groups.delete_group(group.id, if_match=2)


def test_what_is_not_given_is_not_sent_and_what_is_null_is(platform):
    import msgspec

    assert msgspec.json.encode(KeyRequest(name="a")) == b'{"name":"a"}'
    assert msgspec.json.encode(KeyRequest(name="a", expires_in=None)) == b'{"name":"a","expires_in":null}'


def test_refusals_carry_code_reason_and_fields(served, platform):
    with pytest.raises(client_errors.InvalidRequestError) as caught:
        platform.groups.create_group(groups_models.GroupRequest(name=""))
    assert caught.value.code == "invalid-request"
    assert [e.field for e in caught.value.errors] == ["name"]
    assert not caught.value.retryable
    with pytest.raises(client_errors.NotFoundError):
        platform.groups.get_group("a/b?c")
    with pytest.raises(client_errors.UnauthenticatedError):
        Client(URL, "irca_wrong", http=served).groups.list_groups()
    with pytest.raises(client_errors.InvalidRequestError, match="bad_data"):
        platform.prometheus.query("sum(")


def test_queries_answer_what_prometheus_answers(platform):
    now = datetime.now(UTC)
    assert platform.prometheus.query("vector(1)")["resultType"] == "vector"
    found = platform.prometheus.query_range("vector(1)", start=now - timedelta(minutes=1), end=now, step=15)
    assert len(found["result"][0]["values"]) == 5
    assert platform.prometheus.series(["up"]) == []
    assert platform.prometheus.labels() == []
    assert platform.prometheus.label_values("job") == []
    assert platform.prometheus.metadata() == {}
    assert platform.prometheus.buildinfo()["version"]


def test_a_lost_answer_to_a_create_is_asked_for_again_under_the_same_key(served):
    lost = []

    class Lossy(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            answer = served.request(request.method, str(request.url), content=request.read(), headers=dict(request.headers))
            if not lost:
                lost.append(answer)
                raise httpx2.ReadError("the connection broke")
            return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)

    platform = Client(URL, ADMIN_KEY, http=httpx2.Client(transport=Lossy()))
    platform.session.sleep = lambda _: None
    made = platform.api_keys.create_key(KeyRequest(name="pipeline"))
    assert made.key == lost[0].json()["key"]
    assert len(platform.api_keys.list_keys().items) == 2


def test_a_busy_platform_is_asked_again_after_the_time_it_names():
    session, asked, slept = answering(
        problem(429, "too-many-requests", headers={"Retry-After": "7"}), problem(503, "overloaded"), httpx2.Response(200, json={})
    )
    assert session.request("POST", "/api/v1/x").json() == {}
    assert len(asked) == 3
    assert slept[0] == 7.0
    assert 0 < slept[1] < 2
    assert asked[0].headers["authorization"] == "Bearer k"


def test_a_wait_that_is_too_long_and_the_last_try_are_the_callers():
    session, asked, _ = answering(problem(429, "too-many-requests", headers={"Retry-After": "3600"}, retryable=True))
    with pytest.raises(client_errors.UnavailableError) as caught:
        session.request("GET", "/x")
    assert (caught.value.retry_after, caught.value.retryable, len(asked)) == (3600.0, True, 1)
    session, asked, _ = answering(*[problem(503, "overloaded")] * 4)
    with pytest.raises(client_errors.UnavailableError):
        session.request("GET", "/x")
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("method", "failure", "kind", "tries"),
    [
        ("GET", httpx2.ReadTimeout("slow"), client_errors.AnswerTimeoutError, 4),
        ("PUT", httpx2.ReadError("broke"), client_errors.NoAnswerError, 1),
        ("PUT", httpx2.ConnectError("refused"), client_errors.UnreachableError, 4),
        ("DELETE", httpx2.ReadTimeout("slow"), client_errors.AnswerTimeoutError, 1),
    ],
)
def test_what_may_have_been_done_is_not_done_twice(method, failure, kind, tries):
    session, asked, _ = answering(*[failure] * 4)
    with pytest.raises(kind) as caught:
        session.request(method, "/x")
    assert len(asked) == tries
    assert caught.value.retryable


def test_an_answer_of_something_else_is_told_as_such():
    session, _, _ = answering(httpx2.Response(404, text="<html>"), httpx2.Response(200, text="<html>"), httpx2.Response(200, json=[1]))
    with pytest.raises(client_errors.UnexpectedAnswerError, match="not as an incident-rca platform"):
        session.request("GET", "/x")
    with pytest.raises(client_errors.UnexpectedAnswerError, match="not what this version knows"):
        session.call("GET", "/x", KeyRequest)
    with pytest.raises(ClientError, match="not a Prometheus API"):
        Client("http://platform.test", http=session._http).prometheus.labels()


def test_paths_and_parameters_are_escaped_and_spelt_as_the_platform_reads_them():
    at = datetime(2026, 1, 2, tzinfo=UTC)
    assert segment("a/b ?") == "a%2Fb%20%3F"
    given = {"none": None, "yes": True, "at": at, "label": ["a=1", "b"], "n": 3}
    assert parameters(given) == (("yes", "true"), ("at", "2026-01-02T00:00:00+00:00"), ("label", "a=1"), ("label", "b"), ("n", "3"))


def test_a_client_of_its_own_closes_its_connection_and_a_given_one_stays_open(served):
    with Client(URL, ADMIN_KEY) as own:
        pass
    assert own.session._http.is_closed
    with Client(URL, ADMIN_KEY, http=served):
        pass
    assert not served.is_closed
