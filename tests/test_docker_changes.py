"""The watch of an engine: what happens to containers, networks and volumes is told once and in order."""

from __future__ import annotations

import json
import struct
import threading
import time

import pytest
from event_engine import running_event_engine
from waiting import eventually
from watched_engine import SECOND, watching

from connectors.agent_factory import AgentFactory
from connectors.core.telemetry import Severity


@pytest.fixture
def engine():
    with running_event_engine() as made:
        yield made


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


# The agent.


def test_the_agent_watches_its_engine(engine, tmp_path):
    agent = AgentFactory.create_agent("docker", "http://127.0.0.1:1", "token", {"docker_host": engine.host, "state_dir": str(tmp_path)})
    told, stopping = [], threading.Event()
    thread = threading.Thread(target=agent.watch, args=(told.append, stopping))
    thread.start()
    eventually(lambda: engine.requests.count("/events") >= 2)
    engine.say("network", "create", "n1", name="x")
    eventually(lambda: told)
    stopping.set()
    thread.join(10)

    assert [event.name for event in told] == ["irca.docker.network.create"]
