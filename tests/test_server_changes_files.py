"""Watched files: what a change tells, and what it must never tell."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from watched_host import Host, Remembered, names

from connectors.core.redaction import MASK
from connectors.server.changes import filesets
from connectors.server.changes.files import ConfigFileWatcher
from connectors.server.changes.filesets import FileSet
from connectors.server.changes.schedules import ScheduleWatcher
from connectors.server.changes.text import difference, without_secrets
from connectors.server.changes.units import UnitFileWatcher
from connectors.server.changes.users import SudoersWatcher


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def watcher(host, *patterns, excluded=()):
    return ConfigFileWatcher(patterns or ("/etc/*.conf", "/etc/app/**/*.yaml"), excluded, host.root)


def test_the_first_look_tells_nothing_and_the_second_what_changed(host):
    host.write("/etc/a.conf", "one\ntwo\nthree\n")
    host.write("/etc/b.conf", "x\n")
    watch, memory = watcher(host), Remembered()
    assert memory.take(watch.look(memory)) == []
    assert watch.look(memory) is None

    host.write("/etc/a.conf", "one\n2\nthree\nfour\n")
    host.write("/etc/c.conf", "new\n")
    host.remove("/etc/b.conf")
    changed, removed, added = memory.take(watch.look(memory))

    assert names([changed, removed, added]) == ["file.changed", "file.removed", "file.added"]
    assert changed.attributes["file.path"] == "/etc/a.conf"
    assert changed.attributes["irca.file.diff"] == ["-two", "+2", "+four"]
    assert (changed.attributes["irca.file.lines.added"], changed.attributes["irca.file.lines.removed"]) == (2, 1)
    assert changed.attributes["irca.file.hash.before"] != changed.attributes["irca.file.hash.after"]
    assert changed.time_unix_nano == (host.path / "etc/a.conf").stat().st_mtime_ns
    assert removed.attributes["file.path"] == "/etc/b.conf"
    assert added.attributes["file.size"] == 4
    assert watch.look(memory) is None


def test_touching_a_file_is_no_change_but_its_mode_is(host):
    host.write("/etc/a.conf", "one\n")
    watch, memory = watcher(host), Remembered()
    memory.take(watch.look(memory))
    host.write("/etc/a.conf", "one\n")
    assert memory.take(watch.look(memory)) == []
    host.write("/etc/a.conf", "one\n", mode=0o600)
    (changed,) = memory.take(watch.look(memory))
    assert (changed.attributes["file.mode.before"], changed.attributes["file.mode.after"]) == ("0644", "0600")
    assert "irca.file.diff" not in changed.attributes


def test_what_is_remembered_and_told_of_a_file_holds_no_secret(host):
    host.write("/etc/a.conf", "user = app\npassword = hunter2 and more\n")
    watch, memory = watcher(host), Remembered()
    memory.take(watch.look(memory))
    host.write("/etc/a.conf", "user = app\npassword = swordfish too\n")
    (changed,) = memory.take(watch.look(memory))
    assert changed.attributes["irca.file.diff.reason"] == "only values that look like secrets differ"
    assert "irca.file.hash.after" not in changed.attributes
    kept = json.dumps([memory.state(), memory.texts, dict(changed.attributes), changed.body])
    for secret in ("hunter2", "swordfish", "and more", "too"):
        assert secret not in kept
    assert "user = app" in kept


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("server.key", "anything", "it may hold keys"),
        ("plain.conf", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "it may hold keys"),
        ("blob.conf", b"\x00\x01", "it is no text"),
        ("large.conf", "line\n" * 20_000, "it is too large"),
    ],
)
def test_of_keys_binaries_and_large_files_only_a_hash_is_kept(host, name, content, reason):
    host.write(f"/etc/{name}", content)
    watch, memory = watcher(host, "/etc/*"), Remembered()
    memory.take(watch.look(memory))
    assert not any(memory.texts.values())
    host.write(f"/etc/{name}", content + (b"x" if isinstance(content, bytes) else "x"))
    (changed,) = memory.take(watch.look(memory))
    assert changed.attributes["irca.file.diff.reason"] == reason
    assert "irca.file.diff" not in changed.attributes
    assert len(changed.attributes["irca.file.hash.after"]) == 32


def test_equal_texts_have_equal_hashes_on_every_host_but_files_with_keys_do_not(host):
    first, second = (Remembered(), Remembered())
    second.key = b"z" * 32
    host.write("/etc/a.conf", "same\n")
    host.write("/etc/b.key", "same\n")
    for memory in (first, second):
        memory.take(watcher(host, "/etc/*").look(memory))
    seen = [{path: json.loads(value) for path, value in memory.state().items()} for memory in (first, second)]
    assert seen[0]["/etc/a.conf"]["text_hash"] == seen[1]["/etc/a.conf"]["text_hash"]
    assert seen[0]["/etc/b.key"]["hash"] != seen[1]["/etc/b.key"]["hash"]


def test_a_link_that_leads_elsewhere_is_a_change(host):
    host.write("/etc/one", "1\n")
    host.write("/etc/two", "2\n")
    (host.path / "etc/a.conf").symlink_to("one")
    watch, memory = watcher(host), Remembered()
    memory.take(watch.look(memory))
    (host.path / "etc/a.conf").unlink()
    (host.path / "etc/a.conf").symlink_to("two")
    (changed,) = memory.take(watch.look(memory))
    assert (changed.attributes["irca.file.link.before"], changed.attributes["irca.file.link.after"]) == ("one", "two")
    assert changed.attributes["irca.file.diff"] == ["-1", "+2"]


def test_patterns_reach_into_directories_that_come_later(host):
    host.write("/etc/a.conf", "1")
    watch, memory = watcher(host), Remembered()
    memory.take(watch.look(memory))
    host.write("/etc/app/deep/er/x.yaml", "a: 1\n")
    assert [c.attributes["file.path"] for c in memory.take(watch.look(memory))] == ["/etc/app/deep/er/x.yaml"]
    assert f"{host.root}/etc/app/deep" in set(watch.directories())


def test_excluded_hidden_and_irregular_files_are_left_out(host):
    host.write("/etc/a.conf", "1")
    host.write("/etc/a.conf~", "1")
    host.write("/etc/.hidden.conf", "1")
    (host.path / "etc/dir.conf").mkdir()
    os.mkfifo(host.path / "etc/pipe.conf")
    files = FileSet(("/etc/*", "/etc/*.conf", "/etc/missing", "/nowhere/*"), ("*~",), host.root)
    assert set(files.marks()) == {"/etc/a.conf", "/etc/pipe.conf"}
    memory, watch = Remembered(), watcher(host)
    memory.take(watch.look(memory))  # a pipe is not waited for
    assert "hash" not in json.loads(memory.state()["/etc/pipe.conf"])


def test_more_files_than_are_watched_are_noted(host, monkeypatch):
    monkeypatch.setattr(filesets, "MOST_FILES", 3)
    for number in range(5):
        host.write(f"/etc/{number}.conf", "1")
    watch, memory = watcher(host), Remembered()
    memory.take(watch.look(memory))
    assert len(memory.state()) == 3
    assert "no more than 3 files" in watch.note


def test_what_cannot_be_listed_or_read_is_seen_to_change_all_the_same(host, monkeypatch):
    host.write("/etc/sudoers", "root ALL=(ALL) ALL\n")
    host.write("/etc/sudoers.d/app", "app ALL=(ALL) NOPASSWD: /bin/x\n")
    listdir, opened = os.listdir, os.open

    def refuse_listing(path):
        if str(path).endswith("sudoers.d"):
            raise PermissionError(13, "no", str(path))
        return listdir(path)

    def refuse_reading(path, *rest, **options):
        if str(path).endswith("/sudoers"):
            raise PermissionError(13, "no", str(path))
        return opened(path, *rest, **options)

    monkeypatch.setattr(os, "listdir", refuse_listing)
    monkeypatch.setattr(os, "open", refuse_reading)
    watch, memory = SudoersWatcher(host.root), Remembered()
    memory.take(watch.look(memory))
    assert "/etc/sudoers.d" in watch.note
    host.write("/etc/sudoers.d/other", "x\n")
    host.write("/etc/sudoers", "root ALL=(ALL) ALL\nmallory ALL=(ALL) ALL\n")
    changed = memory.take(watch.look(memory))
    assert names(changed) == ["sudoers.changed", "sudoers.changed"]
    assert [c.attributes["file.path"] for c in changed] == ["/etc/sudoers", "/etc/sudoers.d"]
    assert changed[0].attributes["irca.file.diff.reason"] == "the content is not readable to this user"


def test_crontabs_and_timers_are_schedules_and_unit_files_are_not(host):
    host.write("/etc/crontab", "0 1 * * * root true\n")
    host.write("/etc/systemd/system/x.service", '[Service]\nEnvironment="DB_PASSWORD=a b" MODE=x\nExecStart=/bin/true\n')
    schedules, units = ScheduleWatcher(host.root), UnitFileWatcher(host.root)
    first, second = Remembered(), Remembered()
    first.take(schedules.look(first))
    second.take(units.look(second))
    assert "a b" not in json.dumps(second.texts)
    host.write("/etc/cron.d/job", "* * * * * root curl -u me:hunter2 https://x\n")
    host.write("/var/spool/cron/crontabs/eve", "* * * * * true\n")
    host.write("/etc/systemd/system/y.timer", "[Timer]\nOnCalendar=daily\n")
    (host.path / "etc/systemd/system/multi-user.target.wants").mkdir()
    (host.path / "etc/systemd/system/multi-user.target.wants/x.service").symlink_to("/etc/systemd/system/x.service")
    told = first.take(schedules.look(first))
    assert {c.attributes["file.path"] for c in told} == {
        "/etc/cron.d/job",
        "/etc/systemd/system/y.timer",
        "/var/spool/cron/crontabs/eve",
    }
    assert set(names(told)) == {"schedule.added"}
    assert "hunter2" not in json.dumps(first.texts)
    (enabled,) = second.take(units.look(second))
    assert enabled.name == "unit_file.added"
    assert enabled.attributes["irca.file.link.after"] == "/etc/systemd/system/x.service"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("PasswordAuthentication no", "PasswordAuthentication no"),
        ("PubkeyAuthentication yes  # all", "PubkeyAuthentication yes  # all"),
        ("AuthorizedKeysFile .ssh/authorized_keys", "AuthorizedKeysFile .ssh/authorized_keys"),
        ("MaxAuthTries 6", "MaxAuthTries 6"),
        ("auth required pam_unix.so", "auth required pam_unix.so"),
        ("ssl_certificate_key /etc/ssl/private/x.key;", "ssl_certificate_key /etc/ssl/private/x.key;"),
        ("requirepass hunter2 hunter3", f"requirepass {MASK}"),
        ("masterauth hunter2", f"masterauth {MASK}"),
        ("  bindpw hunter2", f"  bindpw {MASK}"),
        ("rocommunity hunter2 10.0.0.0/8", f"rocommunity {MASK}"),
        ('secret "hunter2";', f"secret {MASK}"),
        ("key aGVsbG9oZWxsb2hlbGxvaGVsbG8=", f"key {MASK}"),
        ("db_password: hunter2 hunter3", f"db_password: {MASK}"),
        ("url=postgres://u:hunter2@db/x", f"url=postgres://{MASK}@db/x"),
        ("* * * * * mysqldump -phunter2 shop", f"* * * * * mysqldump -p{MASK}"),
        ("curl --user me:hunter2 https://x", f"curl --user {MASK}"),
        ("root:$6$salt$hunter2hunter2:1", f"root:{MASK}"),
        ("listen 8080;", "listen 8080;"),
    ],
)
def test_lines_lose_their_secrets_and_nothing_else(line, kept):
    text = without_secrets(f"before\n{line}\nafter\n")
    assert text == f"before\n{kept}\nafter\n"


def test_a_secret_that_stands_below_its_key_is_taken_out():
    text = without_secrets("a: 1\npassword: |\n  hunter2\n  hunter3\nb: 2\ntokens:\n  - hunter4\nc: 3\n")
    assert "hunter" not in text
    assert text.startswith("a: 1\npassword: ")
    assert text.endswith("c: 3\n")
    assert "b: 2" in text


def test_a_difference_is_in_order_and_bounded():
    assert difference("a\nb\nc\n", "a\nb\nc\n") == ([], 0, 0)
    assert difference("", "x\n") == (["+x"], 1, 0)
    assert difference("a\nx\nb\ny\nc", "a\nb\nz\nc\nd") == (["-x", "-y", "+z", "+d"], 2, 2)
    lines, added, removed = difference("\n".join(map(str, range(1000))), "\n".join(map(str, range(5000, 6000))))
    assert (added, removed) == (1000, 1000)
    assert len(lines) == 61
    assert lines[-1] == "… 1940 more lines"


def test_a_directory_is_not_read_again_while_nothing_happens(host, monkeypatch):
    host.write("/etc/a.conf", "1")
    files = FileSet(("/etc/*.conf",), (), host.root)
    files.marks()
    monkeypatch.setattr(os, "listdir", lambda path: pytest.fail(f"{path} was listed"))
    assert files.marks()
    assert list(files.directories) == [f"{host.root}/etc"]
    assert Path(files.real("/etc/a.conf")).is_file()
