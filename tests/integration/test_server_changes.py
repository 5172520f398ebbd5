"""Changes on a real host: a booted systemd, in which packages, units, files, users, ports and disks really change.

``IRCA_TEST_SYSTEMD_HOST`` names the command that brings one up (``<command> up NAME``, ``<command> down NAME``).
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import os
import shlex
import subprocess
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from waiting import eventually

ROOT = Path(__file__).parents[2]
SLACK = 30.0
"""Seconds beyond the stated delay that a busy test machine is given."""
RUN = "cd /irca && PYTHONPATH=/irca:/irca/site exec python3 /irca/watch_driver.py"

pytestmark = pytest.mark.requires("systemd", "docker")


def run(*argv: str, check: bool = True, text: str | None = None, timeout: float = 120) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=timeout, input=text)
    assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout.strip()


class Machine:
    """A container with a systemd of its own, and our tree in it."""

    def __init__(self, name):
        self.name = name

    def __call__(self, command, *, check=True, user="root", text=None):
        return run("docker", "exec", "-i", "-u", user, self.name, "bash", "-ec", command, check=check, text=text)

    def write(self, path, content, mode="644"):
        self(f"mkdir -p $(dirname {path}) && cat >{path}.new && chmod {mode} {path}.new && mv {path}.new {path}", text=content)


class Watch:
    """A watch in the machine: what it told, in order."""

    def __init__(self, machine, tag, user="root", **options):
        self.machine, self.tag = machine, tag
        self.base = f"/var/lib/irca-{tag}"
        self.out = f"{self.base}/events-{uuid.uuid4().hex[:6]}"
        machine(f"mkdir -p {self.base} && chown {user} {self.base}")
        command = f"{RUN} {self.base}/state {self.out} '{json.dumps(options)}' 2>>{self.base}/log"
        run("docker", "exec", "-d", "-u", user, machine.name, "bash", "-c", f"echo $$ >{self.base}/pid; {command}")
        ready = self.wait(lambda event: event["name"] == "ready", "its first look")
        assert ready["failures"] == []
        time.sleep(5)  # what led to no event is written down at the next turn

    def events(self):
        return [json.loads(line) for line in self.machine(f"cat {self.out} 2>/dev/null || true").splitlines()]

    def wait(self, condition, what, seconds=60.0):
        log = lambda: self.machine(f"tail -5 {self.base}/log; tail -20 {self.out}", check=False)  # noqa: E731 - asked only where it fails
        found = eventually(lambda: [e for e in self.events() if condition(e)], seconds, lambda: f"{what} was not told: {log()}")
        return found[0]

    def named(self, name, **attributes):
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return [e for e in self.events() if e["name"] == f"irca.host.{name}" and wanted.items() <= e["attributes"].items()]

    def once(self, name, delay, **attributes):
        """The event, which must come within its stated delay, and once."""
        self.wait(lambda _: self.named(name, **attributes), f"{name} {attributes}", delay + SLACK)
        found = self.named(name, **attributes)
        assert len({event["id"] for event in found}) == 1, found
        return found[0]

    def kill(self):
        self.machine(f"kill -9 $(cat {self.base}/pid)")

    def stop(self):
        self.machine(f"kill $(cat {self.base}/pid)")
        return self.wait(lambda event: event["name"] == "stopped", "its end")


@pytest.fixture(scope="module")
def machine():
    command = os.environ["IRCA_TEST_SYSTEMD_HOST"]
    name = f"irca-changes-{uuid.uuid4().hex[:8]}"
    run(command, "up", name, timeout=600)
    try:
        made = Machine(name)
        made("mkdir -p /irca/site")
        run("docker", "cp", str(ROOT / "connectors"), f"{name}:/irca/connectors")
        run("docker", "cp", str(Path(__file__).with_name("watch_driver.py")), f"{name}:/irca/watch_driver.py")
        for package in ("psutil", "annotated_types"):
            place = Path(importlib.util.find_spec(package).origin).parent
            run("docker", "cp", str(place), f"{name}:/irca/site/{package}")
        made("chmod -R a+rX /irca && mkdir -p /mnt/small && mount -t tmpfs -o size=8m tmpfs /mnt/small")
        yield made
    finally:
        run(command, "down", name, check=False)


def make_package(machine, version):
    control = f"Package: irca-tiny\\nVersion: {version}\\nArchitecture: all\\nMaintainer: x <x@example.com>\\nDescription: tiny\\n"
    machine(
        f"rm -rf /tmp/p && mkdir -p /tmp/p/DEBIAN && printf '{control}' >/tmp/p/DEBIAN/control && dpkg-deb -b /tmp/p /tmp/{version}.deb"
    )


def make_certificate(days):
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shop.example.com")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    made = builder.not_valid_before(now - dt.timedelta(days=30)).not_valid_after(now + dt.timedelta(days=days)).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


LISTEN = "import socket, time; s = socket.create_server(('0.0.0.0', 4242)); time.sleep(600)"
REMEMBERED = """
import sqlite3, zlib
database = sqlite3.connect("{}/state/host-changes.db")
for (text,) in database.execute("SELECT value FROM text"):
    print(zlib.decompress(text).decode())
print(database.execute("SELECT * FROM item").fetchall())
"""
NOTIFIED, POLLED, UNITS, DISKS, BEFORE = 4.0, 12.0, 17.0, 32.0, 12.0


def test_real_changes_arrive_once_each_within_their_stated_delay(machine):
    for version in ("1.0", "1.1"):
        make_package(machine, version)
    machine.write("/etc/shop.conf", "listen 80\npassword = hunter2 and more\n", "600")
    watch = Watch(machine, "root")

    machine("dpkg -i /tmp/1.0.deb")
    machine.write(
        "/etc/systemd/system/breaks.service", "[Service]\nExecStart=/bin/sh -c 'sleep 1; exit 3'\nEnvironment=API_TOKEN=hunter3\n"
    )
    machine.write("/etc/systemd/system/lasts.service", "[Service]\nExecStart=/bin/sleep 1000\n")
    machine.write("/etc/systemd/system/nightly.timer", "[Timer]\nOnCalendar=*-*-* 03:00:00\n")
    machine("systemctl daemon-reload && systemctl start breaks lasts")
    machine.write("/etc/shop.conf", "listen 8080\npassword = swordfish too\n", "600")
    machine("useradd --no-create-home --shell /bin/sh mary")
    machine.write("/etc/cron.d/report", "0 4 * * * root /usr/local/bin/report --token hunter4\n")
    run("docker", "exec", "-d", machine.name, "python3", "-c", LISTEN)
    machine.write("/etc/ssl/shop.pem", make_certificate(5))
    machine("dd if=/dev/zero of=/mnt/small/fill bs=1M count=8 2>/dev/null || true")

    installed = watch.once("package.installed", NOTIFIED, irca__package__name="irca-tiny:all")
    assert installed["attributes"]["irca.package.version.after"] == "1.0"
    edited = watch.once("file.changed", NOTIFIED, file__path="/etc/shop.conf")
    assert edited["attributes"]["irca.file.diff"] == ["-listen 80", "+listen 8080"]
    user = watch.once("user.added", NOTIFIED, user__name="mary")
    assert user["attributes"]["irca.user.shell.after"] == "/bin/sh"
    watch.once("schedule.added", NOTIFIED, file__path="/etc/cron.d/report")
    watch.once("schedule.added", NOTIFIED, file__path="/etc/systemd/system/nightly.timer")
    watch.once("unit_file.added", NOTIFIED, file__path="/etc/systemd/system/breaks.service")
    port = watch.once("port.opened", POLLED, network__local__port=4242)
    assert port["attributes"]["process.executable.name"].startswith("python3")
    failed = watch.once("unit.failed", UNITS, irca__unit__name="breaks.service")
    assert (failed["attributes"]["irca.unit.exit_status"], failed["attributes"]["irca.unit.result"]) == (3, "exit-code")
    watch.once("unit.started", UNITS, irca__unit__name="lasts.service")
    assert watch.once("certificate.expiring", 60.0, file__path="/etc/ssl/shop.pem")["attributes"]["irca.certificate.threshold"] == 7
    full = watch.once("filesystem.nearly_full", DISKS, system__filesystem__mountpoint="/mnt/small")
    assert full["severity"] == 17

    machine("kill -9 $(systemctl show -p MainPID --value lasts) && systemctl restart breaks; rm /mnt/small/fill")
    machine("dpkg -i /tmp/1.1.deb && userdel mary")
    watch.once("package.upgraded", NOTIFIED, irca__package__name="irca-tiny:all")
    watch.once("user.removed", NOTIFIED, user__name="mary")
    watch.once("unit.failed", UNITS, irca__unit__name="lasts.service")
    watch.once("filesystem.recovered", DISKS, system__filesystem__mountpoint="/mnt/small")

    told = watch.stop()
    assert told["failures"] == []
    everything = machine(f"cat {watch.out} && python3 -c {shlex.quote(REMEMBERED.format(watch.base))}")
    assert "listen 8080" in everything
    for secret in ("hunter2", "hunter3", "hunter4", "swordfish"):
        assert secret not in everything
    ids = Counter(event.get("id") for event in watch.events() if "id" in event)
    assert ids.most_common(1)[0][1] == 1


def test_what_changed_while_the_agent_was_dead_is_told_by_the_next_one_with_the_time_between(machine):
    first = Watch(machine, "killed")
    before = time.time()
    first.kill()
    machine("dpkg -r irca-tiny 2>/dev/null; dpkg -P irca-tiny")
    machine.write("/etc/shop.conf", "listen 9090\n", "600")
    machine("groupadd crew")
    machine("rm /etc/cron.d/report")
    second = Watch(machine, "killed")
    for name, attributes in (
        ("package.removed", {"irca__package__name": "irca-tiny:all"}),
        ("file.changed", {"file__path": "/etc/shop.conf"}),
        ("group.added", {"irca__group__name": "crew"}),
        ("schedule.removed", {"file__path": "/etc/cron.d/report"}),
    ):
        event = second.once(name, 0.0, **attributes)
        assert event["attributes"]["irca.change.while_away"] is True
        assert before - 200 < event["attributes"]["irca.change.start_time_unix_nano"] / 1e9 <= before + 1
    second.kill()  # within the time in which what was told is not yet written down, or just after
    third = Watch(machine, "killed")
    ids = {event["id"] for event in second.events() if "id" in event}
    again = [event for event in third.events() if event["name"] == "irca.host.package.removed"]
    assert {event["id"] for event in again} <= ids
    third.stop()


def test_a_reboot_is_told_and_units_that_come_up_again_are_not(machine):
    watch = Watch(machine, "reboot")
    watch.kill()
    run("docker", "restart", machine.name)
    eventually(lambda: machine("systemctl is-system-running || true", check=False) in ("running", "degraded"))
    watch = Watch(machine, "reboot")
    watch.once("rebooted", 0.0)
    assert watch.named("unit.restarted") == []
    watch.stop()


def test_a_user_without_rights_sees_less_says_so_and_does_not_fail(machine):
    machine("mkdir -p /etc/sudoers.d && chmod 750 /etc/sudoers.d && echo x >/etc/sudoers.d/a")
    watch = Watch(machine, "nobody", user="nobody")
    machine("rm /etc/sudoers.d/a")
    run("docker", "exec", "-d", machine.name, "python3", "-c", LISTEN.replace("4242", "4243"))
    machine.write("/etc/shop.conf", "listen 1\n", "600")
    watch.once("sudoers.changed", POLLED, file__path="/etc/sudoers.d")
    port = watch.once("port.opened", POLLED, network__local__port=4243)
    assert port["attributes"]["user.id"] == "0"
    assert "process.executable.name" not in port["attributes"]
    edited = watch.once("file.changed", POLLED, file__path="/etc/shop.conf")
    assert edited["attributes"]["irca.file.diff.reason"] == "the content is not readable to this user"
    limited = {event["attributes"]["irca.watcher.name"] for event in watch.named("changes.limited")}
    assert {"users.sudoers", "ports", "kernel_log"} <= limited
    assert watch.stop()["failures"] == []
