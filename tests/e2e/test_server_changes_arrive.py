"""Changes on a host reach the platform through the service that the printed command installed, as its own user and in its sandbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from e2e.server_hosts import SERVICE, Host, Platform
from waiting import eventually

pytestmark = [pytest.mark.requires("docker", "systemd"), pytest.mark.timeout(600)]

NOTIFIED, POLLED, UNITS = 4.0, 12.0, 17.0
"""Seconds within which the agent tells, as connectors/server/README.md states."""
SLACK = 40.0
"""What a busy machine and the way to the platform may add."""

PACKAGE = """\
mkdir -p /tmp/p/DEBIAN
printf 'Package: irca-tiny\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: x <x@example.com>\\nDescription: tiny\\n' >/tmp/p/DEBIAN/control
dpkg-deb -b /tmp/p /tmp/tiny.deb >/dev/null && dpkg -i /tmp/tiny.deb >/dev/null
"""
UNIT = """\
printf '[Service]\\nExecStart=/bin/sh -c "sleep 1; exit 3"\\n' >/etc/systemd/system/breaks.service
systemctl daemon-reload && systemctl start breaks
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory, package_shop) -> Iterator[SimpleNamespace]:
    platform = Platform(tmp_path_factory.mktemp("platform"))
    package_shop.publish(platform.data)
    platform.start()
    host = Host.boot("changes")
    host.sh("printf 'listen 80\\npassword = hunter2\\n' >/etc/shop.conf")
    answer = platform.provision("prod")
    host.install(answer["deployment_command"])
    instance = eventually(lambda: platform.healthy(answer["agent_id"]))
    # The first look is the baseline: what is changed before it is no change.
    eventually(lambda: host.run("ls /var/lib/incident-rca-agent/host-changes.db*").returncode == 0)
    eventually(lambda: host.run("sleep 6").returncode == 0)
    yield SimpleNamespace(host=host, platform=platform, instance=instance["id"])
    host.remove()
    platform.stop()


def told(watched: SimpleNamespace, name: str, seconds: float, which: Callable[[dict], bool]) -> dict:
    def found() -> list[dict]:
        events = watched.platform.get("/api/v1/events", instance_id=watched.instance, name=f"irca.host.{name}")["items"]
        return [event for event in events if which(event["attributes"])]

    [event] = eventually(found, seconds + SLACK, lambda: told_instead(watched))
    return event


def told_instead(watched: SimpleNamespace) -> str:
    """What to look at when an event does not come."""
    instance = watched.platform.get(f"/api/v1/instances/{watched.instance}")
    events = watched.platform.get("/api/v1/events", instance_id=watched.instance, limit=50)["items"]
    journal = watched.host.run(f"journalctl --no-pager -u {SERVICE} -n 40").stdout
    return f"{instance['status']} {instance['status_reason']}; {[(e['time'], e['body']) for e in events]}; {journal}"


@pytest.mark.parametrize(
    ("change", "name", "seconds", "which"),
    [
        (PACKAGE, "package.installed", NOTIFIED, lambda a: a["irca.package.name"].startswith("irca-tiny")),
        (UNIT, "unit.failed", UNITS, lambda a: a["irca.unit.name"] == "breaks.service"),
        ("sed -i s/80/8080/ /etc/shop.conf", "file.changed", NOTIFIED, lambda a: a["file.path"] == "/etc/shop.conf"),
        ("useradd --no-create-home mary", "user.added", NOTIFIED, lambda a: a["user.name"] == "mary"),
        (
            "setsid python3 -c \"import socket, time; s = socket.create_server(('0.0.0.0', 4242)); time.sleep(900)\" >/dev/null 2>&1 &",
            "port.opened",
            POLLED,
            lambda a: a["network.local.port"] == 4242,
        ),
    ],
    ids=["package", "unit", "file", "user", "port"],
)
def test_a_change_on_the_host_is_told_once_on_the_platform(watched, change, name, seconds, which):
    watched.host.sh(change)
    told(watched, name, seconds, which)


def test_what_a_file_held_that_looks_secret_never_left_the_host(watched):
    event = told(watched, "file.changed", NOTIFIED, lambda a: a["file.path"] == "/etc/shop.conf")
    assert event["attributes"]["irca.file.diff"] == ["-listen 80", "+listen 8080"]
    assert "hunter2" not in str(watched.platform.get("/api/v1/events", instance_id=watched.instance, limit=500))


def test_the_sandbox_keeps_no_watcher_from_its_work(watched):
    instance = watched.platform.get(f"/api/v1/instances/{watched.instance}")
    assert [c for c in instance["components"] if c["name"].startswith("changes.") and not c["healthy"]] == []
    eventually(lambda: watched.platform.get(f"/api/v1/instances/{watched.instance}")["status"] == "healthy")
