"""The watch of a host: every change once, across crashes, storms, failures and damaged memory."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time

import pytest
from watched_host import Host

from app.events.catalogue import CATALOGUE
from connectors.core.errors import CollectorError, ConfigError
from connectors.core.telemetry import Severity
from connectors.server.changes import assemble, table
from connectors.server.changes.assemble import SYSTEMS, make_watch, make_watchers
from connectors.server.changes.inotify import Inotify
from connectors.server.changes.model import Change, Look, StateWatcher, Watcher, bounded, differences
from connectors.server.changes.store import FILE, HOLD, Snapshots
from connectors.server.changes.watch import MOST_AT_A_TIME, NOTIFIED_INTERVAL, TICK, ChangeWatch, Notifier
from connectors.server.config import WATCHERS, ServerConfig
from connectors.server.server_agent import ServerAgent

HOST = {"host.id": "h1", "host.name": "web-1"}


class Things(StateWatcher):
    """Watches a mapping that the test changes."""

    name = "things"
    interval = 2.0

    def __init__(self, state, severity=Severity.INFO):
        self.seen = state
        self.severity = severity
        self.failure = None
        self.reads = 0
        self.closed = False

    def _stamp(self):
        if self.failure:
            raise self.failure
        return repr(sorted(self.seen.items()))

    def _read(self):
        self.reads += 1
        return dict(self.seen)

    def _compare(self, before, after, memory):
        for key, old, new in differences(before, after):
            yield Change("sysctl.changed", key, f"{key}: {old} to {new}", {"irca.sysctl.name": key}, self.severity)

    def close(self):
        self.closed = True


class Watch:
    """A watch with clocks of its own; ``told`` is what it told."""

    def __init__(self, state_dir, *watchers, now=1_700_000_000.0, notifier=None, **options):
        self.now = now
        self.steady = 100.0
        self.told = []
        notify = (lambda: notifier) if notifier else (lambda: None)
        self.watch = ChangeWatch(
            watchers, HOST, state_dir, notify=notify, clock=lambda: self.now, monotonic=lambda: self.steady, interval=2.0, **options
        )
        self.watch._notifier = notifier

    def pass_time(self, seconds):
        self.now += seconds
        self.steady += seconds
        self.watch.turn(self.told.append)
        return self

    def bodies(self):
        return [event.body for event in self.told]


def test_the_first_look_is_no_news_and_every_change_is_told_once(tmp_path):
    things = Things({"a": "1"})
    watch = Watch(tmp_path, things).pass_time(0)
    assert watch.told == []
    things.seen["a"] = "2"
    watch.pass_time(2).pass_time(2).pass_time(2)
    (event,) = watch.told
    assert event.name == "irca.host.sysctl.changed"
    assert event.resource == HOST
    assert event.attributes["irca.change.start_time_unix_nano"] == 1_700_000_000 * 10**9
    assert event.attributes["irca.change.end_time_unix_nano"] == 1_700_000_002 * 10**9
    assert event.attributes["irca.change.while_away"] is False
    assert things.reads == 2


def test_what_changed_while_the_agent_was_not_running_is_told_with_the_time_between(tmp_path):
    things = Things({"a": "1"})
    watch = Watch(tmp_path, things).pass_time(0)
    watch.pass_time(600)
    watch.watch._snapshots.touch()
    os.utime(tmp_path / FILE, (watch.now, watch.now))
    things.seen["a"] = "2"
    later = Watch(tmp_path, things, now=1_700_010_000.0).pass_time(0).pass_time(2)
    (event,) = later.told
    assert event.attributes["irca.change.while_away"] is True
    start = event.attributes["irca.change.start_time_unix_nano"] / 1e9
    assert 1_700_000_600 - 2 * NOTIFIED_INTERVAL <= start <= 1_700_000_600
    assert "while the agent was not running" in event.body


def test_after_a_crash_between_telling_and_remembering_the_same_change_has_the_same_id(tmp_path):
    things = Things({"a": "1"})
    Watch(tmp_path, things).pass_time(0)
    things.seen["a"] = "2"
    crashed = Watch(tmp_path, things).pass_time(0)
    assert len(crashed.told) == 1
    again = Watch(tmp_path, things).pass_time(0)
    assert [e.id for e in again.told] == [e.id for e in crashed.told]
    again.pass_time(HOLD + 0.1)
    assert Watch(tmp_path, things).pass_time(0).told == []


def test_the_same_change_that_happens_again_is_another_event(tmp_path):
    things = Things({"a": "1"})
    watch = Watch(tmp_path, things).pass_time(0)
    for value in ("2", "1", "2"):
        things.seen["a"] = value
        watch.pass_time(2)
    assert len({event.id for event in watch.told}) == 3


def test_a_storm_is_bounded_and_the_rest_is_counted(tmp_path):
    things = Things({})
    watch = Watch(tmp_path, things).pass_time(0)
    things.seen.update({f"k{number:04}": "1" for number in range(800)})
    watch.pass_time(2)
    *told, dropped = watch.told
    assert len(told) == MOST_AT_A_TIME
    assert dropped.name == "irca.host.changes.dropped"
    assert dropped.attributes["irca.events.dropped"] == 800 - MOST_AT_A_TIME
    assert dropped.attributes["irca.events.dropped.kinds"] == [f"irca.host.sysctl.changed: {800 - MOST_AT_A_TIME}"]
    assert dropped.attributes["irca.events.dropped.subjects"][0] == f"k{MOST_AT_A_TIME:04}"
    watch.pass_time(60)
    things.seen["one"] = "more"
    watch.pass_time(2)
    assert watch.told[-1].body == "one: None to more"


def test_warnings_go_through_where_others_are_counted(tmp_path):
    quiet, loud = Things({}), Things({}, Severity.ERROR)
    loud.name = "loud"
    watch = Watch(tmp_path, quiet, loud).pass_time(0)
    quiet.seen.update({f"q{n}": "1" for n in range(400)})
    loud.seen.update({f"l{n}": "1" for n in range(10)})
    watch.pass_time(2)
    assert sum(e.body.startswith("l") for e in watch.told) == 10


def test_a_watcher_that_fails_is_named_and_the_others_go_on(tmp_path):
    bad, good = Things({}), Things({})
    good.name = "good"
    bad.failure = PermissionError(13, "refused", "/etc/x")
    watch = Watch(tmp_path, bad, good).pass_time(0)
    assert [(r.name, r.reason) for r in watch.watch.failures()] == [("changes.things", "no permission to read /etc/x")]
    for failure, reason in (
        (OSError(5, "broken", "/proc/y"), "/proc/y cannot be read: broken"),
        (CollectorError("systemctl did not answer"), "systemctl did not answer"),
        (ValueError("odd"), "ValueError: odd"),
    ):
        bad.failure = failure
        watch.pass_time(2)
        assert watch.watch.failures()[0].reason == reason
    good.seen["a"] = "1"
    bad.failure = None
    watch.pass_time(2).pass_time(2)
    assert watch.watch.failures() == []
    assert watch.bodies() == ["a: None to 1"]


def test_what_a_user_may_not_see_is_a_note_told_once_and_no_failure(tmp_path):
    things = Things({})
    things.note = "programs are not visible"
    watch = Watch(tmp_path, things).pass_time(0).pass_time(2)
    (limited,) = watch.told
    assert limited.name == "irca.host.changes.limited"
    assert limited.attributes == {"irca.watcher.name": "things", "irca.watcher.note": "programs are not visible"}
    assert watch.watch.failures() == []
    assert Watch(tmp_path, things).pass_time(0).told[0].id == limited.id


def test_a_damaged_memory_is_set_aside_and_the_gap_is_told(tmp_path):
    things = Things({"a": "1"})
    Watch(tmp_path, things).pass_time(0)
    (tmp_path / FILE).write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    things.seen["a"] = "2"
    watch = Watch(tmp_path, things).pass_time(0)
    assert [event.name for event in watch.told] == ["irca.host.changes.gap"]
    assert list(tmp_path.glob(f"{FILE}.corrupt-*"))
    things.seen["a"] = "3"
    watch.pass_time(2)
    assert watch.bodies()[1:] == ["a: 2 to 3"]


def test_a_memory_that_cannot_be_written_costs_no_event(tmp_path, monkeypatch):
    things = Things({"a": "1"})
    watch = Watch(tmp_path, things)
    monkeypatch.setattr(Snapshots, "_open", lambda self: (_ for _ in ()).throw(sqlite3.OperationalError("disk is full")))
    watch.pass_time(0)
    things.seen["a"] = "2"
    watch.pass_time(2).pass_time(HOLD + 1)
    assert watch.bodies() == ["a: 1 to 2"]
    monkeypatch.undo()
    watch.pass_time(HOLD + 1)
    assert Watch(tmp_path, things).pass_time(0).told == []


def test_the_memory_is_its_owners_alone(tmp_path):
    Watch(tmp_path, Things({"a": "1"})).pass_time(0)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_watcher_that_was_switched_off_begins_anew(tmp_path):
    things, other = Things({"a": "1"}), Things({})
    other.name = "other"
    Watch(tmp_path, things, other).pass_time(0)
    Watch(tmp_path, other).pass_time(0)
    things.seen["a"] = "2"
    assert Watch(tmp_path, things, other).pass_time(0).told == []


def test_bulky_texts_are_kept_beside_the_state_and_forgotten_with_it(tmp_path):
    class Texts(Watcher):
        name, interval = "texts", 2.0

        def look(self, memory):
            self.found = memory.text("a")
            return self.next

    texts = Texts()
    texts.next = Look("1", {"a": "x"}, (), {"a": "long text"})
    watch = Watch(tmp_path, texts).pass_time(0)
    texts.next = None
    watch.pass_time(2)
    assert texts.found == "long text"
    texts.next = Look("2", {}, (Change("sysctl.changed", "a", "gone"),), {"a": None})
    watch.pass_time(2)
    texts.next = None
    watch.pass_time(2)
    assert texts.found is None
    watch.pass_time(HOLD)
    assert texts.found is None


def test_a_look_that_need_not_last_is_written_later(tmp_path):
    class Cursor(Watcher):
        name, interval = "cursor", 2.0
        position = 0

        def look(self, memory):
            self.position += 1
            return Look(str(self.position), None, (), {}, lasting=False)

    watch = Watch(tmp_path, Cursor()).pass_time(0).pass_time(10)
    assert Snapshots(tmp_path / FILE).stamp("cursor") is None
    watch.pass_time(60)
    assert Snapshots(tmp_path / FILE).stamp("cursor") is not None


def test_a_watcher_that_is_woken_looks_at_once_and_otherwise_seldom(tmp_path):
    class Bell(Notifier):
        def __init__(self):
            self.rung = set()

        def watch(self, name, directories):
            return bool(list(directories))

        def woken(self):
            rung, self.rung = self.rung, set()
            return rung

    class Files(Things):
        def directories(self):
            return ("/etc",)

    files, bell = Files({}), Bell()
    watch = Watch(tmp_path, files, notifier=bell).pass_time(0)
    files.seen["a"] = "1"
    watch.pass_time(2).pass_time(30)
    assert watch.told == []
    bell.rung = {"things"}
    watch.pass_time(TICK)
    assert len(watch.told) == 1
    files.seen["a"] = "2"
    watch.pass_time(NOTIFIED_INTERVAL)
    assert len(watch.told) == 2


def test_running_goes_on_until_it_is_stopped_and_then_remembers_everything(tmp_path):
    things = Things({"a": "1"})
    watch = ChangeWatch([things], HOST, tmp_path)
    stopping, told = threading.Event(), []
    thread = threading.Thread(target=watch.run, args=(told.append, stopping))
    thread.start()
    deadline = time.monotonic() + 10
    while not things.reads and time.monotonic() < deadline:
        time.sleep(0.01)
    things.seen["a"] = "2"
    stopping.set()
    thread.join(10)
    assert not thread.is_alive()
    assert things.closed
    again = Watch(tmp_path, things).pass_time(0)
    assert again.bodies()[0].startswith("a: 1 to 2")


# Inotify


linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


def woken(notifier, seconds=5):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := notifier.woken():
            return found
        time.sleep(0.01)
    return set()


@linux
def test_the_kernel_tells_who_is_to_look(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    notifier = Inotify()
    try:
        assert notifier.watch("a", [str(one)])
        assert notifier.watch("b", [str(two), str(one / "later/deeper")])
        assert not notifier.watch("c", [])
        assert notifier.woken() == set()
        (two / "x").write_text("1")
        assert woken(notifier) == {"b"}
        (one / "later").mkdir()
        assert woken(notifier) == {"a", "b"}
        assert notifier.watch("b", [str(one / "later")])
        notifier.woken()
        (two / "x").write_text("2")
        assert notifier.woken() == set()
        (one / "later").rmdir()
        assert "b" in woken(notifier)
    finally:
        notifier.close()
        notifier.close()


@linux
def test_more_directories_than_are_watched_are_left_to_polling(tmp_path, monkeypatch):
    from connectors.server.changes import inotify

    monkeypatch.setattr(inotify, "MOST", 1)
    notifier = Inotify()
    try:
        (tmp_path / "a").mkdir()
        assert not notifier.watch("x", [str(tmp_path), str(tmp_path / "a")])
    finally:
        notifier.close()


@linux
def test_where_the_kernel_gives_no_inotify_files_are_polled(monkeypatch):
    import connectors.server.changes.inotify as module

    monkeypatch.setattr(module._ctypes, "call_function", lambda *_: -1)
    assert assemble.notifier() is None
    assert assemble._none() is None


# What the agent makes of it


def test_every_watcher_is_described_and_every_event_is_in_the_catalogue():
    assert set(table.WATCHERS) == set(WATCHERS) == set(SYSTEMS)
    assert {name for name in CATALOGUE if name.startswith("irca.host.")} == table.PREFIXED
    assert {CATALOGUE[name].source for name in table.PREFIXED} == {"agent"}
    for described in table.TABLE:
        assert described.meaning
        assert described.source
        assert described.delay
        assert described.cost
        assert ("macOS" in described.systems) == ("darwin" in SYSTEMS[described.name])
        assert ("Windows" in described.systems) == ("win32" in SYSTEMS[described.name])


def test_only_what_is_switched_on_and_known_to_the_system_is_made(tmp_path):
    assert [w.name for w in make_watchers(ServerConfig(change_watchers=("units", "users")))] == [
        *("units", "units.files", "users", "users.sudoers"),
    ]
    assert [w.name for w in make_watchers(ServerConfig(), system="darwin")] == ["packages", "files", "schedules", "certificates"]
    assert [w.name for w in make_watchers(ServerConfig(), system="win32")] == ["packages"]
    assert len(make_watchers(ServerConfig(), system="linux")) == len(WATCHERS) + 2


@linux
def test_every_watcher_looks_at_this_machine_without_failing(tmp_path):
    config = ServerConfig(change_watchers=tuple(name for name in WATCHERS if name not in ("units", "packages")))
    watch = make_watch(config, HOST, tmp_path, system="linux")
    told = []
    try:
        for watcher in watch._watchers:
            if watcher.name != "ports":  # asks by a socket
                watch._look(watcher, watch._open(told.append), told.append)
        assert watch.failures() == []
        conditions = {"filesystem.nearly_full", "certificate.expiring", "changes.limited"}
        assert {event.name.removeprefix("irca.host.") for event in told} <= conditions
    finally:
        for watcher in watch._watchers:
            watcher.close()


def test_a_failing_watcher_degrades_the_agent_as_a_collector_does(tmp_path):
    agent = ServerAgent("http://localhost:1", "agent_x_1", {"state_dir": str(tmp_path), "collectors": ["uptime"]})
    assert [result.name for result in agent.collect_metrics().collectors] == ["uptime"]
    things = Things({})
    things.failure = OSError(5, "broken", "/x")
    agent._changes = ChangeWatch([things], HOST, tmp_path)
    agent._changes.turn([].append)
    results = {result.name: result.reason for result in agent.collect_metrics().collectors}
    assert results == {"uptime": "", "changes.things": "/x cannot be read: broken"}


def test_an_agent_watches_what_its_configuration_says_or_nothing(tmp_path):
    host = Host(tmp_path / "etc")
    host.write("a.conf", "1\n")
    config = {"state_dir": str(tmp_path), "change_watchers": ["files"], "watch_files": [f"{tmp_path}/etc/*.conf"], "change_interval": 2}
    agent, told, stopping = ServerAgent("http://localhost:1", "agent_x_1", config), [], threading.Event()
    thread = threading.Thread(target=agent.watch, args=(told.append, stopping))
    thread.start()
    deadline = time.monotonic() + 20
    while not (tmp_path / FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    host.write("a.conf", "2\n")
    while not told and time.monotonic() < deadline:
        time.sleep(0.02)
    stopping.set()
    thread.join(10)
    assert [event.name for event in told] == ["irca.host.file.changed"]

    idle = ServerAgent("http://localhost:1", "agent_x_1", {"change_watchers": []})
    idle.watch(told.append, stopping)
    assert idle._changes is None


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"change_watchers": ["boot", "boot"]}, "change_watchers"),
        ({"change_watchers": ["gpu"]}, "change_watchers[0]"),
        ({"change_interval": 1}, "change_interval"),
        ({"watch_files": ["etc/x"]}, "watch_files"),
        ({"certificate_paths": ["/etc/../x"]}, "certificate_paths"),
        ({"certificate_thresholds": [-1]}, "certificate_thresholds[0]"),
        ({"disk_space_threshold": 1.1}, "disk_space_threshold"),
    ],
)
def test_a_wrong_option_is_refused_with_its_name(config, field):
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_mapping(config)
    assert caught.value.field == field


def test_what_comes_from_the_host_is_cut_to_what_an_attribute_holds():
    assert bounded("x" * 5_000).endswith("…")
    assert len(bounded(["y" * 5_000] * 500)) == 100
    assert bounded(True) is True
