"""What is remembered of containers for those that take their place."""

from __future__ import annotations

import sqlite3

import pytest

from connectors.docker.difference import describe, hasher
from connectors.docker.predecessors import FILE, Mark, Predecessors


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
