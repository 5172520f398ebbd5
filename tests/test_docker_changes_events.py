"""What an engine's event becomes."""

from __future__ import annotations

import pytest
from watched_engine import SECOND

from app.events.catalogue import CATALOGUE
from connectors.core.telemetry import Severity
from connectors.docker.events import ACTIONS, NAMES, EngineEvent, RateLimit, identity, image_attributes, parse, signal_name, to_event


def event(kind="container", action="start", actor="c" * 64, detail="", **attributes):
    return EngineEvent(kind, action, actor, 5 * SECOND, attributes, detail)


def test_every_event_that_the_agent_knows_is_in_the_catalogue_and_the_other_way_round():
    catalogued = {name for name in CATALOGUE if name.startswith("irca.docker.")}

    assert catalogued == NAMES
    assert {CATALOGUE[name].source for name in catalogued} == {"agent"}


def test_what_the_engine_says_is_read():
    line = b'{"Type":"container","Action":"health_status: unhealthy","Actor":{"ID":"c1","Attributes":{"name":"web"}},"timeNano":7}'

    assert parse(line) == EngineEvent("container", "health_status", "c1", 7, {"name": "web"}, "unhealthy")
    assert parse(b'{"Type":"image","Action":"pull","time":3}') == EngineEvent("image", "pull", "", 3 * SECOND)


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"3", b'{"Type":"container"}', b'{"Type":1,"Action":"x","Actor":3}'])
def test_what_is_no_event_is_left_out(line):
    assert parse(line) is None


def test_health_checks_and_terminals_make_no_noise():
    noise = ["exec_create", "exec_start", "exec_die", "top", "attach", "resize", "export"]

    assert [action for action in noise if event(action=action).is_recorded] == []
    assert not event("plugin", "enable").is_recorded


def test_the_same_thing_told_again_has_the_same_id():
    one = event(name="web")

    assert identity("E", one) == identity("E", event(name="web"))
    others = [event(action="die"), event(actor="d" * 64), event("volume"), event(detail="x")]
    assert len({identity("E", each) for each in [one, *others]} | {identity("F", one)}) == 6
    assert len(identity("E", one)) == 32


@pytest.mark.parametrize("kind", list(ACTIONS))
def test_every_attribute_of_every_event_is_in_the_catalogue(kind):
    attributes = {
        "name": "n",
        "container": "c1",
        "exitCode": "1",
        "signal": "9",
        "oldName": "/o",
        "read/write": "true",
        "destination": "/d",
    }
    resource = {"container.id": "c1", "container.name": "web", "container.image.name": "app", "container.runtime.name": "docker"}
    for action in ACTIONS[kind]:
        made = to_event("E", event(kind, action, "team/app:1", "healthy", **attributes), resource if kind != "image" else {})
        known = CATALOGUE[made.name].attributes
        assert set(made.attributes) <= set(known) | {"container.id", "container.name", "container.image.name"}, action
        assert made.body


def test_deaths_are_graded():
    def severity(code, **facts):
        from connectors.docker.events import Death

        return to_event("E", event(action="die", exitCode=code), {}, death=Death(**facts)).severity

    assert severity("0") is Severity.INFO
    assert severity("1") is Severity.ERROR
    assert severity("143", stop_requested=True) is Severity.WARN
    assert severity("137", oom_killed=True, stop_requested=True) is Severity.ERROR
    assert severity("nonsense") is Severity.ERROR
    assert to_event("E", event(action="oom"), {}).severity is Severity.ERROR
    assert to_event("E", event(action="health_status", detail="unhealthy"), {}).severity is Severity.WARN
    assert to_event("E", event(action="health_status", detail="healthy"), {}).severity is Severity.INFO


@pytest.mark.parametrize(
    ("made", "body"),
    [
        (event("network", "connect", "n1", name="front"), "web was connected to the network front"),
        (event("network", "create", "n1" * 32, name=""), "web was created the network n1n1n1n1n1n1"),
        (event("volume", "mount", "data"), "The volume data was mounted in web"),
        (event(action="kill", signal="9"), "web was sent SIGKILL"),
        (event(action="rename", oldName="/old", name="web"), "old was renamed to web"),
        (event(action="die", exitCode="3"), "web ended with exit code 3"),
    ],
)
def test_events_are_said_in_words(made, body):
    assert to_event("E", made, {"container.id": "c1", "container.name": "web"}).body == body


def test_a_network_of_its_own_is_said_in_words():
    assert to_event("E", event("network", "create", "n1", name="front"), {}).body == "The network front was created"
    assert to_event("E", event("image", "tag", "sha256:1", name="app:2"), {}).body == "The image app:2 was tagged"


def test_signals_and_images_have_their_names():
    assert [signal_name(number) for number in ("9", "15", "36", "x")] == ["SIGKILL", "SIGTERM", "36", "x"]
    assert image_attributes("sha256:1") == {"container.image.id": "sha256:1"}
    assert image_attributes("r:5/a:1@sha256:2") == {
        "container.image.name": "r:5/a",
        "container.image.tags": ["1"],
        "container.image.repo_digests": ["r:5/a@sha256:2"],
    }


def test_a_storm_leaves_room_for_what_is_vital_and_is_counted():
    limit = RateLimit(10)
    ordinary, vital = event("network", "connect"), event(action="die")

    assert [limit.admits(ordinary, SECOND) for _ in range(8)] == [True] * 5 + [False] * 3
    assert [limit.admits(vital, SECOND) for _ in range(6)] == [True] * 5 + [False]
    assert limit.settle(SECOND + 1) is None
    assert limit.admits(ordinary, 2 * SECOND)
    assert limit.settle(2 * SECOND) == ({"network.connect": 3, "container.die": 1}, SECOND)
    assert limit.settle(3 * SECOND) is None
