"""The watch of an engine: every change once, across cuts, restarts and storms."""

from __future__ import annotations

import json
import sqlite3
import struct
import threading
import time
from contextlib import contextmanager

import pytest
from event_engine import running_event_engine

from app.events.catalogue import CATALOGUE
from connectors.agent_factory import AgentFactory
from connectors.core.errors import CollectorError
from connectors.core.telemetry import Severity
from connectors.docker import event_stream
from connectors.docker.changes import ChangeWatch
from connectors.docker.config import DockerAgentConfig
from connectors.docker.difference import describe, hasher
from connectors.docker.engine import Engine
from connectors.docker.events import ACTIONS, NAMES, EngineEvent, RateLimit, identity, image_attributes, parse, signal_name, to_event
from connectors.docker.predecessors import FILE, Mark, Predecessors

SECOND = 1_000_000_000


@pytest.fixture
def engine():
    with running_event_engine() as made:
        yield made


class Watch:
    """A watch in a thread, as the runtime has it: what it told, and what it ended with."""

    def __init__(self, engine, state_dir, *, again=None, quiet=60.0, timeout=2.0, **config):
        self.told = []
        self.error = None
        self.stopping = threading.Event()
        made = Engine({}, host=engine.host, timeout=timeout)
        self.watch = again or ChangeWatch(made, DockerAgentConfig.from_mapping(config), state_dir, quiet=quiet)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self.watch.run(self.told.append, self.stopping)
        except CollectorError as exc:
            self.error = exc

    def names(self):
        return [event.name.removeprefix("irca.docker.") for event in self.told]

    def wait(self, name, count=1):
        until(lambda: self.names().count(name) >= count or not self.thread.is_alive())
        return [event for event in self.told if event.name == f"irca.docker.{name}"]

    def ended(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.error

    def stop(self):
        self.stopping.set()
        self.ended()


@contextmanager
def watching(engine, state_dir, **options):
    follows = engine.requests.count("/events")
    watch = Watch(engine, state_dir, **options)
    # The first request for events looks back, the second follows.
    until(lambda: engine.requests.count("/events") >= follows + 2 or not watch.thread.is_alive())
    try:
        yield watch
    finally:
        watch.stop()


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


# What an engine's event becomes.


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


# Following an engine.


def test_what_happens_to_a_container_is_told_once_and_in_order(engine, tmp_path):
    web = engine.add("web", number=1, Labels={"com.docker.compose.service": "web", "secret": "xyzzy"})
    with watching(engine, tmp_path) as watch:
        for action in ("create", "start", "pause", "unpause", "exec_create: sh -c true", "top", "health_status: unhealthy", "destroy"):
            engine.say("container", action, web, name="web", image="team/app:1.2", secret="xyzzy")
        watch.wait("container.destroy")

    actions = ["create", "start", "pause", "unpause", "health_status", "destroy"]
    assert watch.names() == [f"container.{action}" for action in actions]
    health = watch.told[4]
    assert health.attributes["irca.container.health.status"] == "unhealthy"
    assert health.attributes["container.name"] == "web"
    assert health.resource == {
        "container.id": web,
        "container.name": "web",
        "container.image.name": "team/app",
        "container.image.tags": ["1.2"],
        "container.image.id": "sha256:" + "b" * 64,
        "container.image.repo_digests": ["team/app@sha256:99"],
        "container.runtime.name": "docker",
        "container.label.com.docker.compose.service": "web",
    }
    assert "xyzzy" not in json.dumps([dict(e.attributes) | dict(e.resource) for e in watch.told])


def test_a_death_by_memory_is_told_as_such(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as watch:
        engine.say("container", "start", web, name="web", image="team/app:1.2")
        engine.say("container", "oom", web, name="web")
        engine.say("container", "die", web, name="web", exitCode="137")
        [died] = watch.wait("container.die")

    assert died.severity is Severity.ERROR
    assert died.attributes["irca.container.exit_code"] == 137
    assert died.attributes["irca.container.oom_killed"] is True
    assert died.attributes["irca.container.stop_requested"] is False
    assert died.body == "web ended with exit code 137: out of memory"


def test_word_of_memory_that_comes_after_the_death_still_counts(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as watch:
        engine.say("container", "die", web, name="web", exitCode="137")
        engine.say("container", "oom", web, name="web")
        [died] = watch.wait("container.die")

    assert died.attributes["irca.container.oom_killed"] is True


def test_the_engines_own_word_on_memory_counts_when_it_is_about_this_death(engine, tmp_path):
    one, two = engine.add("one", number=1), engine.add("two", number=2)
    with watching(engine, tmp_path) as watch:
        now = time.time_ns()
        engine.finish(one, now, OOMKilled=True)
        engine.finish(two, now - 60 * SECOND, OOMKilled=True)
        for name, identity_ in (("one", one), ("two", two)):
            engine.say("container", "die", identity_, at=now, name=name, exitCode="1")
        died = watch.wait("container.die", 2)

    assert [e.attributes["irca.container.oom_killed"] for e in died] == [True, False]
    assert [e.attributes.get("irca.container.restart_count") for e in died] == [2, None]


def test_a_stop_that_was_asked_for_is_no_error(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as watch:
        engine.say("container", "kill", web, name="web", signal="15")
        engine.say("container", "die", web, name="web", exitCode="143")
        engine.say("container", "kill", web, name="web", signal="1")
        engine.say("container", "die", web, name="web", exitCode="1")
        died = watch.wait("container.die", 2)

    assert [e.attributes["irca.container.stop_requested"] for e in died] == [True, False]
    assert [e.severity for e in died] == [Severity.WARN, Severity.ERROR]


def test_networks_and_volumes_name_their_container(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as watch:
        engine.say("network", "connect", "n1", name="front", type="bridge", container=web)
        engine.say("volume", "mount", "data", driver="local", container=web, destination="/data", **{"read/write": "false"})
        engine.say("image", "pull", "team/app:2", name="team/app")
        watch.wait("image.pull")

    connected, mounted, pulled = watch.told
    assert connected.attributes["container.name"] == connected.resource["container.name"] == "web"
    assert connected.attributes["irca.network.name"] == "front"
    assert (mounted.attributes["irca.volume.destination"], mounted.attributes["irca.volume.read_only"]) == ("/data", True)
    assert (pulled.resource, pulled.attributes["container.image.tags"]) == ({}, ["2"])


def test_a_container_in_anothers_place_is_told_with_what_differs(engine, tmp_path):
    old = engine.add("web", number=1)
    with watching(engine, tmp_path) as watch:
        del engine.containers[old]
        new = engine.add("web", number=2, Env=["A=2", "B=3"], Image="team/app:1.3")
        engine.say("container", "create", new, name="web", image="team/app:1.3")
        engine.say("container", "start", new, name="web", image="team/app:1.3")
        engine.say("container", "start", new, name="web", image="team/app:1.3")
        watch.wait("container.start", 2)

    assert watch.names() == ["container.create", "container.start", "container.changed", "container.start"]
    attributes = watch.told[2].attributes
    assert attributes["irca.container.previous_id"] == old
    assert attributes["container.id"] == new
    assert attributes["irca.container.changed"] == ["env", "image"]
    assert attributes["irca.container.change.env.added"] == ["B"]
    assert attributes["irca.container.change.env.changed"] == ["A"]
    assert attributes["irca.container.change.image.to"] == ["reference=team/app:1.3"]


def test_a_container_replaced_while_nobody_looked_is_found_at_start(engine, tmp_path):
    engine.say("network", "create", "n0", name="before")
    old = engine.add("web", number=1)
    with watching(engine, tmp_path):
        pass
    del engine.containers[old]
    engine.add("web", number=2, Env=["A=2"])
    created = engine.add("other", number=3)
    engine.containers[created]["State"]["Status"] = "created"

    with watching(engine, tmp_path) as watch:
        [found] = watch.wait("container.changed")
    with watching(engine, tmp_path) as again:
        pass

    assert found.attributes["irca.container.change.env.changed"] == ["A"]
    assert found.time_unix_nano == 1795358724900000000
    assert again.told == []


def test_it_has_the_same_id_whether_it_was_seen_or_found(engine, tmp_path):
    old = engine.add("web", number=1)
    ids = []
    for seen, state in ((True, "a"), (False, "b")):
        engine.containers.clear()
        engine.add("web", number=1)
        with watching(engine, tmp_path / state):
            pass
        if seen:
            with watching(engine, tmp_path / state) as watch:
                del engine.containers[old]
                new = engine.add("web", number=2, Env=[])
                engine.say("container", "start", new, name="web")
                ids += [e.id for e in watch.wait("container.changed")]
        else:
            del engine.containers[old]
            engine.add("web", number=2, Env=[])
            with watching(engine, tmp_path / state) as watch:
                ids += [e.id for e in watch.wait("container.changed")]

    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_an_update_in_place_tells_what_it_changed(engine, tmp_path):
    web = engine.add("web", number=1)
    unknown = engine.add("late", number=2)
    engine.containers[unknown]["State"]["Status"] = "created"
    with watching(engine, tmp_path) as watch:
        engine.containers[web]["HostConfig"] = {"Memory": 5}
        engine.say("container", "update", web, name="web")
        engine.say("container", "update", web, name="web")
        engine.say("container", "update", unknown, name="late")
        first, second, third = watch.wait("container.update", 3)

    assert first.attributes["irca.container.change.limits.to"] == ["Memory=5"]
    assert "irca.container.changed" not in second.attributes
    assert "irca.container.changed" not in third.attributes


def test_a_rename_into_a_name_that_another_had_is_a_change(engine, tmp_path):
    engine.add("web", number=1)
    new = engine.add("web-new", number=2, Env=["A=2"])
    with watching(engine, tmp_path) as watch:
        engine.containers[new]["Name"] = "/web"
        engine.say("container", "rename", new, name="web", oldName="/web-new")
        [changed] = watch.wait("container.changed")

    assert watch.told[0].attributes["irca.container.previous_name"] == "web-new"
    assert changed.attributes["irca.container.previous_id"] == f"{1:064x}"


# Cuts, restarts, hanging.


def test_a_cut_stream_ends_the_watch_and_it_goes_on_without_a_gap(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as first:
        engine.say("container", "pause", web, name="web")
        first.wait("container.pause")
        engine.cut()
        error = first.ended()
    engine.say("container", "unpause", web, name="web")

    with watching(engine, tmp_path, again=first.watch) as second:
        engine.say("container", "stop", web, name="web")
        second.wait("container.stop")

    assert (error.retryable, "ended the stream" in error.reason) == (True, True)
    assert second.names() == ["container.unpause", "container.stop"]


def test_an_agent_that_was_away_catches_up_and_tells_nothing_twice(engine, tmp_path):
    web = engine.add("web", number=1)
    engine.say("container", "start", web, name="web")
    with watching(engine, tmp_path) as first:
        engine.say("container", "pause", web, name="web")
        first.wait("container.pause")
    engine.say("container", "unpause", web, name="web")

    with watching(engine, tmp_path) as second:
        second.wait("container.unpause")

    assert first.names() == ["container.pause"]
    assert second.names() == ["container.unpause"]


def test_a_restarted_engine_leaves_a_gap_that_is_told_once(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as first:
        when = engine.say("container", "pause", web, name="web")
        first.wait("container.pause")
        engine.restart()
        first.ended()
    start = engine.say("container", "start", web, name="web")

    with watching(engine, tmp_path, again=first.watch) as second:
        second.wait("container.start")
    with watching(engine, tmp_path) as third:
        pass

    assert second.names() == ["gap", "container.start"]
    gap = second.told[0]
    assert gap.severity is Severity.WARN
    assert gap.attributes == {
        "irca.gap.signal": "logs",
        "irca.gap.reason": "engine-restarted",
        "irca.gap.start_time_unix_nano": when,
        "irca.gap.end_time_unix_nano": start,
    }
    assert "gap" not in third.names()


def test_a_restarted_engine_that_has_nothing_to_say_leaves_one_gap_too(engine, tmp_path):
    engine.say("network", "create", "n0", name="before")
    with watching(engine, tmp_path):
        pass
    engine.restart()

    with watching(engine, tmp_path) as second:
        second.wait("gap")
    with watching(engine, tmp_path) as third:
        pass

    assert (second.names(), third.names()) == (["gap"], [])


def test_more_than_the_engine_keeps_leaves_a_gap_with_its_reason(engine, tmp_path):
    with watching(engine, tmp_path) as first:
        engine.say("network", "create", "n0", name="before")
        first.wait("network.create")
    for number in range(300):
        engine.say("network", "create", f"n{number + 1}", name="after")

    with watching(engine, tmp_path) as second:
        second.wait("network.create", 256)

    assert second.told[0].attributes["irca.gap.reason"] == "buffer-overflow"
    assert second.names().count("network.create") == 256
    assert "events.dropped" not in second.names()


def test_another_engine_in_its_place_is_a_gap(engine, tmp_path):
    with watching(engine, tmp_path):
        pass
    engine.identity = "OTHER"

    with watching(engine, tmp_path) as second:
        [gap] = second.wait("gap")

    assert gap.attributes["irca.gap.reason"] == "engine-replaced"


def test_noise_moves_the_mark_so_that_it_makes_no_gap(engine, tmp_path):
    web = engine.add("web", number=1)
    engine.say("container", "start", web, name="web")
    with watching(engine, tmp_path) as first:
        for _ in range(300):
            last = engine.say("container", "exec_die", web, name="web")
        until(lambda: first.watch._last[0] == last)

    with watching(engine, tmp_path) as second:
        engine.say("container", "pause", web, name="web")
        second.wait("container.pause")

    assert second.names() == ["container.pause"]


def test_an_engine_that_hangs_ends_the_watch_in_time(engine, tmp_path):
    with watching(engine, tmp_path, quiet=0.2, timeout=0.3) as watch:
        engine.hang.add("/info")
        error = watch.ended()

    assert "does not answer within 0.3 s" in error.reason
    assert error.retryable


def test_a_stream_that_is_stuck_is_noticed(engine, tmp_path):
    with watching(engine, tmp_path, quiet=0.3) as watch:
        engine.deaf = True
        engine.say("network", "create", "n1", at=time.time_ns() - 6 * SECOND + 10**8, name="x")
        watch.watch._last = (0, "")
        error = watch.ended()

    assert "stuck" in error.reason


def test_silence_alone_is_no_failure(engine, tmp_path):
    engine.say("network", "create", "n0", name="x", at=time.time_ns() - 60 * SECOND)
    with watching(engine, tmp_path, quiet=0.1) as watch:
        asked = engine.requests.count("/events")
        until(lambda: engine.requests.count("/events") > asked + 2)
        assert watch.thread.is_alive()


@pytest.mark.parametrize("path", ["/info", "/events", "/containers/json"])
def test_a_refusal_can_be_tried_again(engine, tmp_path, path):
    engine.fail[path] = (403, "Forbidden")

    with watching(engine, tmp_path) as watch:
        error = watch.ended()

    assert (error.retryable, "refused this: Forbidden" in error.reason) == (True, True)


def test_it_stops_at_once_while_the_engine_is_silent(engine, tmp_path):
    with watching(engine, tmp_path) as watch:
        begun = time.monotonic()
        watch.stop()

    assert watch.error is None
    assert time.monotonic() - begun < 5  # not the day that the engine may be silent
    assert not [t for t in threading.enumerate() if t.name == "irca-docker-events"]


def test_an_event_is_told_even_if_its_container_cannot_be_asked_about(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as watch:
        engine.fail[f"/containers/{web}/json"] = (500, "on fire")
        engine.say("container", "die", web, name="web", exitCode="1")
        error = watch.ended()

    assert watch.names() == ["container.die"]
    assert "on fire" in error.reason


def test_a_container_that_has_gone_is_told_without_what_only_it_could_tell(engine, tmp_path):
    with watching(engine, tmp_path, death_logs=True) as watch:
        engine.say("container", "start", "f" * 64, name="brief", image="a:1")
        engine.say("container", "die", "f" * 64, name="brief", image="a:1", exitCode="0")
        [died] = watch.wait("container.die")

    assert died.resource["container.name"] == "brief"
    assert died.attributes["irca.container.log.reason"] == "it was removed before its log could be read"


def test_an_answer_of_an_unknown_shape_costs_one_event_and_is_counted(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as watch:
        engine.containers[web]["State"]["FinishedAt"] = {"no": "time"}
        engine.say("container", "die", web, name="web", exitCode="1")
        engine.say("container", "destroy", web, name="web")
        [dropped] = watch.wait("events.dropped")

    assert watch.names() == ["container.destroy", "events.dropped"]
    assert dropped.attributes["irca.events.dropped.kinds"] == ["container.die: 1"]


# Logs.


def test_the_last_lines_come_with_the_death_when_asked_for(engine, tmp_path):
    web, terminal = engine.add("web", number=1), engine.add("terminal", number=2, Tty=True)
    written = b"starting\npassword=hunter2\n"
    engine.logs[web] = struct.pack(">BxxxL", 1, len(written)) + written
    engine.logs[terminal] = written.replace(b"\n", b"\r\n")
    with watching(engine, tmp_path, death_logs=True, death_log_lines=3) as watch:
        for identity_ in (web, terminal):
            engine.say("container", "die", identity_, name="web", exitCode="1")
        died = watch.wait("container.die", 2)

    assert [e.attributes["irca.container.log.tail"] for e in died] == ["starting\npassword=[redacted]"] * 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [((501, "configured logging driver does not support reading"), "its logging driver cannot be read"), ((200, ""), "it wrote nothing")],
)
def test_why_there_are_no_last_lines_is_said(engine, tmp_path, answer, reason):
    web = engine.add("web", number=1)
    if answer[0] != 200:
        engine.fail[f"/containers/{web}/logs"] = answer
    with watching(engine, tmp_path, death_logs=True) as watch:
        engine.say("container", "die", web, name="web", exitCode="1")
        [died] = watch.wait("container.die")

    assert died.attributes["irca.container.log.reason"] == reason
    assert "irca.container.log.tail" not in died.attributes


def test_a_log_that_hangs_does_not_hold_the_death_back(engine, tmp_path):
    web = engine.add("web", number=1)
    engine.hang.add(f"/containers/{web}/logs")
    with watching(engine, tmp_path, death_logs=True, timeout=0.5) as watch:
        engine.say("container", "die", web, name="web", exitCode="1")
        [died] = watch.wait("container.die")

    assert "does not answer" in died.attributes["irca.container.log.reason"]


def test_without_the_option_no_log_is_read(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as watch:
        engine.say("container", "die", web, name="web", exitCode="1")
        watch.wait("container.die")

    assert not [path for path in engine.requests if path.endswith("/logs")]


# Storms.


def test_a_storm_is_bounded_and_its_rest_counted(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(event_stream, "MAX_WAITING", 50)
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as watch:
        watch.watch._limit = RateLimit(40)
        for burst in range(10):
            for number in range(100):
                engine.say("network", "create", f"n{burst}-{number}", name="x")
            time.sleep(0.02)
        engine.say("container", "destroy", web, name="web")
        watch.wait("container.destroy")
        watch.wait("events.dropped")
        time.sleep(1.2)

    counted = sum(e.attributes["irca.events.dropped"] for e in watch.told if e.name.endswith("dropped"))
    told = watch.names().count("network.create")
    assert told + counted == 1000
    assert told < 200
    assert watch.names().count("container.destroy") == 1


# What is remembered.


def description(number, env="1"):
    made = {"Id": f"{number}", "Name": f"/c{number}", "Config": {"Env": [f"A={env}"]}, "HostConfig": {}}
    return describe(made, hasher(b"s"))


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_what_is_put_is_on_disk_after_a_while_and_not_before(tmp_path):
    clock = Clock()
    memory = Predecessors(tmp_path / FILE, clock, clock)
    memory.put("a", description(1))
    memory.advance(Mark("E", 5, "id"))
    memory.save()
    assert Predecessors(tmp_path / FILE).get("a") is None

    clock.now += 10
    memory.advance(Mark("E", 6, "id2"))
    memory.save()

    again = Predecessors(tmp_path / FILE)
    assert again.get("a") == description(1)
    assert again.mark == Mark("E", 5, "id")
    assert again.salt == memory.salt
    assert memory.mark == Mark("E", 6, "id2")
    assert oct((tmp_path / FILE).stat().st_mode)[-3:] == "600"


def test_the_oldest_names_are_forgotten(tmp_path):
    clock = Clock()
    memory = Predecessors(tmp_path / FILE, clock, clock, limit=3)
    for number in range(6):
        clock.now += 1
        memory.put(f"k{number}", description(number))
        memory.save(at_once=True)

    again = Predecessors(tmp_path / FILE, limit=3)
    for held in (memory, again):
        assert [key for key in (f"k{n}" for n in range(6)) if held.get(key)] == ["k3", "k4", "k5"]


@pytest.mark.parametrize("damage", [b"not a database at all, not even nearly", b"\0" * 5000])
def test_a_damaged_file_is_moved_aside_and_begun_anew(tmp_path, damage):
    path = tmp_path / FILE
    path.write_bytes(damage)

    memory = Predecessors(path)
    memory.put("a", description(1))
    memory.save(at_once=True)

    assert Predecessors(path).get("a") == description(1)
    assert [p.name for p in tmp_path.iterdir() if "corrupt" in p.name]


def test_a_damaged_key_makes_what_was_remembered_worthless(tmp_path):
    path = tmp_path / FILE
    memory = Predecessors(path)
    memory.put("a", description(1))
    memory.save(at_once=True)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE fact SET value = 'zz' WHERE key = 'salt'")
    database.close()

    again = Predecessors(path)

    assert again.get("a") is None
    assert len(again.salt) == 32


def test_a_disk_that_takes_nothing_costs_no_memory_and_is_tried_again(tmp_path, caplog):
    blocked = tmp_path / "state"
    blocked.write_text("a file where the directory should be")
    memory = Predecessors(blocked / FILE)
    memory.put("a", description(1))
    memory.save(at_once=True)
    memory.save(at_once=True)
    assert memory.get("a") == description(1)
    assert len([r for r in caplog.records if "remembered" in r.message]) <= 1

    blocked.unlink()
    memory.save(at_once=True)

    assert Predecessors(blocked / FILE).get("a") == description(1)


def test_a_locked_file_is_left_where_it_is(tmp_path):
    path = tmp_path / FILE
    memory = Predecessors(path)
    memory.put("a", description(1))
    memory.save(at_once=True)
    blocker = sqlite3.connect(path)
    blocker.execute("BEGIN EXCLUSIVE")
    try:
        assert Predecessors(path).get("a") is None
    finally:
        blocker.rollback()
        blocker.close()

    assert Predecessors(path).get("a") == description(1)


# The agent.


def test_the_agent_watches_its_engine(engine, tmp_path):
    agent = AgentFactory.create_agent("docker", "http://127.0.0.1:1", "token", {"docker_host": engine.host, "state_dir": str(tmp_path)})
    told, stopping = [], threading.Event()
    thread = threading.Thread(target=agent.watch, args=(told.append, stopping))
    thread.start()
    until(lambda: engine.requests.count("/events") >= 2)
    engine.say("network", "create", "n1", name="x")
    until(lambda: told)
    stopping.set()
    thread.join(10)

    assert [event.name for event in told] == ["irca.docker.network.create"]
