"""Packages: what each manager's database says, and what became of them."""

from __future__ import annotations

import time

import pytest
from watched_host import NANO, Host, Remembered, names

from connectors.core.errors import CollectorError
from connectors.server.changes import package_readers
from connectors.server.changes.packages import PackageWatcher, is_lower, package_change


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def paragraph(name, version, status="install ok installed", arch="amd64"):
    return (
        f"Package: {name}\nStatus: {status}\nPriority: optional\nArchitecture: {arch}\nVersion: {version}\nDescription: x\n Version: y\n\n"
    )


def rounds(watch, memory):
    return memory.take(watch.look(memory))


def test_what_dpkg_did_is_told_with_its_times(host):
    host.write("/var/lib/dpkg/status", paragraph("a", "1:1.0-1") + paragraph("b", "2.0") + paragraph("c", "3~rc1") + paragraph("d", "1"))
    watch, memory = PackageWatcher(host.root), Remembered()
    assert rounds(watch, memory) == []
    assert watch.look(memory) is None
    memory.boundary = time.time() - 60
    at = time.time() - 20
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    host.write(
        "/var/log/dpkg.log",
        f"2001-01-01 00:00:00 upgrade c:amd64 1 2\n{stamp} upgrade a:amd64 1 2\n{stamp} status x\nbad\nx y install z 1\n",
    )
    status = [paragraph("a", "1:1.0-2"), paragraph("b", "2.0", "deinstall ok config-files"), paragraph("c", "3"), paragraph("d", "0.9")]
    host.write("/var/lib/dpkg/status", "".join(status) + paragraph("e", "7", "install ok half-configured"))
    told = {change.attributes["irca.package.name"]: change for change in rounds(watch, memory)}
    assert {name: change.name for name, change in told.items()} == {
        "a:amd64": "package.upgraded",
        "b:amd64": "package.removed",
        "c:amd64": "package.upgraded",
        "d:amd64": "package.downgraded",
        "e:amd64": "package.installed",
    }
    assert told["a:amd64"].attributes["irca.package.version.before"] == "1:1.0-1"
    assert told["a:amd64"].time_unix_nano == int(at) * NANO
    assert told["c:amd64"].time_unix_nano == 0  # what the log says of long ago is about something else
    assert told["a:amd64"].attributes["irca.package.manager"] == "dpkg"
    assert list(watch.directories()) == [f"{host.root}/var/lib/dpkg"]


def test_a_host_without_any_manager_has_no_packages(host):
    memory = Remembered()
    assert rounds(PackageWatcher(host.root), memory) == []
    assert memory.state() == {}


def test_apk_and_brew_are_read_too(host):
    host.write("/lib/apk/db/installed", "C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\n\nP:busybox\nV:1.36-r5\n")
    (host.path / "opt/homebrew/Cellar/jq/1.7").mkdir(parents=True)
    (host.path / "opt/homebrew/Cellar/.keep").mkdir()
    (host.path / "opt/homebrew/Cellar/empty").mkdir()
    watch, memory = PackageWatcher(host.root), Remembered()
    rounds(watch, memory)
    assert memory.state() == {"apk musl": "1.2.4-r2", "apk busybox": "1.36-r5", "brew jq": "1.7"}
    (host.path / "opt/homebrew/Cellar/jq/1.8").mkdir()
    (change,) = rounds(watch, memory)
    assert (change.name, change.attributes["irca.package.version.after"]) == ("package.upgraded", "1.7, 1.8")


def test_rpm_is_asked_when_its_database_was_written(host, monkeypatch):
    answers = [
        "bash.x86_64\t5.2-1\nkernel.x86_64\t6.1-1\ngpg-pubkey.(none)\tff\n",
        "bash.x86_64\t5.2-2\nkernel.x86_64\t6.1-1\nkernel.x86_64\t6.2-1\n",
    ]
    asked = []

    def answer(argv, timeout):
        asked.append(argv)
        return answers[len(asked) - 1].encode()

    monkeypatch.setattr(package_readers, "output_of", answer)
    host.write("/var/lib/rpm/rpmdb.sqlite", "1")
    watch, memory = PackageWatcher(host.root), Remembered()
    rounds(watch, memory)
    assert memory.state() == {"rpm bash.x86_64": "5.2-1", "rpm kernel.x86_64": "6.1-1"}
    assert watch.look(memory) is None
    host.write("/var/lib/rpm/rpmdb.sqlite", "2")
    told = rounds(watch, memory)
    assert names(told) == ["package.upgraded", "package.removed", "package.installed", "package.installed"]
    assert asked[0][:3] == ["rpm", "--root", host.root]


def test_an_rpm_database_without_rpm_is_a_failure_unless_another_manager_is_there(host, monkeypatch):
    def refuse(argv, timeout):
        raise CollectorError("rpm is not installed")

    monkeypatch.setattr(package_readers, "output_of", refuse)
    host.write("/usr/lib/sysimage/rpm/Packages", "1")
    with pytest.raises(CollectorError, match="not installed"):
        PackageWatcher(host.root).look(Remembered())
    host.write("/var/lib/dpkg/status", paragraph("a", "1"))
    watch, memory = PackageWatcher(host.root), Remembered()
    rounds(watch, memory)
    assert "rpm is not installed" in watch.note
    assert memory.state() == {"dpkg a:amd64": "1"}


def test_windows_programs_are_those_that_a_person_could_uninstall():
    programs = [
        ("{GUID}", {"DisplayName": "App ", "DisplayVersion": "1.2"}),
        ("Nameless", {"DisplayVersion": "1"}),
        ("KB123456", {"DisplayName": "Update"}),
        ("{PART}", {"DisplayName": "Part", "SystemComponent": "1"}),
        ("Old", {"DisplayName": "Old"}),
    ]
    assert package_readers.parse_msi(programs) == {"msi App": "1.2", "msi Old": "unknown"}


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("1.0", "1.1"),
        ("1.9", "1.10"),
        ("1.0~rc1", "1.0"),
        ("2.0", "1:1.0"),
        ("1.0-1", "1.0-1+deb12u1"),
        ("5.2.15-2+b7", "5.2.15-2+b8"),
        ("1.0a", "1.0b"),
    ],
)
def test_versions_are_ordered(lower, higher):
    assert is_lower(lower, higher)
    assert not is_lower(higher, lower)
    assert not is_lower(lower, lower)
    assert package_change("dpkg x", higher, lower).name == "package.downgraded"
