"""Watchers of the host itself: boots, clock, users, ports, kernel settings, certificates and disks."""

from __future__ import annotations

import datetime as dt
import json
import os
import socket
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from watched_host import NANO, Host, Remembered, names

from connectors.core.telemetry import Severity
from connectors.server.changes import disk_space, port_tables
from connectors.server.changes.boot import BootWatcher
from connectors.server.changes.certificates import CertificateWatcher
from connectors.server.changes.clock import ClockWatcher
from connectors.server.changes.disk_space import DiskSpaceWatcher
from connectors.server.changes.ports import PortWatcher
from connectors.server.changes.sysctl import SysctlWatcher
from connectors.server.changes.users import UserWatcher, parse_accounts
from connectors.server.changes.x509 import certificates, parse
from connectors.server.config import ServerConfig

BOOT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    host.write("/proc/sys/kernel/random/boot_id", f"{BOOT}\n")
    return host


def rounds(watch, memory):
    return memory.take(watch.look(memory))


# Boots


def booted(host, boot=BOOT, started=12, cmdline="root=/dev/sda1 quiet", btime=1_700_000_000):
    host.write("/proc/sys/kernel/random/boot_id", f"{boot}\n")
    host.write("/proc/1/stat", f"1 (init (x)) S {' '.join(['0'] * 18)} {started} 0\n")
    host.write("/proc/cmdline", f"{cmdline}\n")
    host.write("/proc/stat", f"cpu 1 2\nbtime {btime}\n")


def test_a_reboot_with_another_kernel_and_other_parameters_is_three_changes(host):
    booted(host)
    memory = Remembered()
    assert rounds(BootWatcher(host.root, "6.1.0-1"), memory) == []
    assert BootWatcher(host.root, "6.1.0-1").look(memory) is None
    booted(host, "other", cmdline="root=/dev/sda1 luks.password=hunter2", btime=1_700_000_500)
    rebooted, kernel, parameters = rounds(BootWatcher(host.root, "6.1.0-2"), memory)
    assert names([rebooted, kernel, parameters]) == ["rebooted", "kernel.changed", "kernel.parameters_changed"]
    assert rebooted.severity is Severity.WARN
    assert rebooted.attributes["irca.kernel.release.before"] == "6.1.0-1"
    assert rebooted.time_unix_nano // NANO == 1_700_000_500
    assert "hunter2" not in str(parameters)


def test_a_container_that_boots_anew_on_the_same_kernel_is_a_reboot(host):
    booted(host)
    memory = Remembered()
    rounds(BootWatcher(host.root, "k"), memory)
    booted(host, started=50_000)
    assert names(rounds(BootWatcher(host.root, "k"), memory)) == ["rebooted"]


def test_where_the_first_process_is_hidden_the_boot_id_tells(host):
    booted(host)
    (host.path / "proc/1/stat").unlink()
    (host.path / "proc/cmdline").unlink()
    memory = Remembered()
    rounds(BootWatcher(host.root, "k"), memory)
    assert memory.state()["id"] == BOOT
    assert "parameters" not in memory.state()


# Clock


def test_a_clock_that_is_set_is_told_even_if_nobody_ran_meanwhile_and_drift_is_not(host):
    at = {"wall": 1_000 * NANO, "steady": 5 * NANO}
    memory = Remembered()

    def make():
        return ClockWatcher(host.root, lambda: at["wall"], lambda: at["steady"])

    watch = make()
    assert rounds(watch, memory) == []
    at.update(wall=1_010 * NANO + 1_000_000, steady=15 * NANO)
    assert watch.look(memory) is None
    at.update(wall=1_140 * NANO, steady=25 * NANO)
    (step,) = rounds(make(), memory)
    assert step.name == "clock.stepped"
    assert step.attributes["irca.clock.step"] == pytest.approx(120, abs=0.1)
    assert step.severity is Severity.WARN
    assert "forward by 120.0 s" in step.body
    at.update(wall=1_149 * NANO, steady=35 * NANO)
    (back,) = rounds(watch, memory)
    assert back.attributes["irca.clock.step"] == pytest.approx(-1, abs=0.1)
    assert back.severity is Severity.INFO


def test_after_a_reboot_clocks_are_not_compared(host):
    memory = Remembered()
    rounds(ClockWatcher(host.root, lambda: 100 * NANO, lambda: NANO), memory)
    host.write("/proc/sys/kernel/random/boot_id", "another\n")
    assert rounds(ClockWatcher(host.root, lambda: 900 * NANO, lambda: NANO), memory) == []


def test_the_real_clocks_are_close_to_each_other(tmp_path):
    memory = Remembered()
    watch = ClockWatcher()
    rounds(watch, memory)
    assert watch.look(memory) is None


# Users


PASSWD = "root:x:0:0:root:/root:/bin/bash\napp:x:1000:1000:Mary Smith,555-1234:/home/app:/bin/sh\n# comment\n+nis\n"
GROUP = "root:x:0:\nsudo:x:27:app\n"


def test_users_and_groups_that_come_change_and_go(host):
    host.write("/etc/passwd", PASSWD)
    host.write("/etc/group", GROUP)
    watch, memory = UserWatcher(host.root), Remembered()
    assert rounds(watch, memory) == []
    assert "Mary" not in json.dumps(memory.state())
    host.write("/etc/passwd", PASSWD.replace("/bin/sh", "/bin/zsh") + "toor:x:0:0::/:/bin/sh\neve:x:1001:1001::/home/eve:/bin/sh\n")
    host.write("/etc/group", "root:x:0:\nsudo:x:27:app,eve\nnew:x:99:\n")
    told = {change.subject: change for change in rounds(watch, memory)}
    assert {subject: change.name for subject, change in told.items()} == {
        "group new": "group.added",
        "group sudo": "group.changed",
        "user app": "user.changed",
        "user eve": "user.added",
        "user toor": "user.added",
    }
    assert told["group sudo"].attributes["irca.group.members.after"] == ["app", "eve"]
    assert told["user app"].attributes["irca.user.shell.before"] == "/bin/sh"
    assert told["user app"].attributes["user.id"] == "1000"
    assert told["user toor"].severity is Severity.WARN
    assert told["user eve"].severity is Severity.INFO
    host.write("/etc/passwd", PASSWD)
    assert "user.removed" in names(rounds(watch, memory))
    assert list(watch.directories()) == [f"{host.root}/etc"]


def test_lines_that_are_no_accounts_are_skipped():
    assert parse_accounts("bad\n::::::\n-x:::::::\n", "bad\n") == {}


# Ports


def proc_net(host, *lines, table="tcp"):
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    host.write(f"/proc/net/{table}", head + "".join(f"{line}\n" for line in lines))


def line(number, address, state="0A", uid=0, inode=100):
    return f"   {number}: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1 0 100 0 0 10 0"


def process(host, pid, name, *inodes):
    host.write(f"/proc/{pid}/comm", f"{name}\n")
    (host.path / f"proc/{pid}/fd").mkdir(exist_ok=True)
    for number, inode in enumerate(inodes):
        (host.path / f"proc/{pid}/fd/{number}").symlink_to(f"socket:[{inode}]")


def test_ports_that_open_close_and_change_hands(host):
    proc_net(
        host, line(0, "0100007F:0016", inode=1), line(1, "00000000:0050", inode=2), line(2, "0100007F:9999", "01"), line(3, "0:0", "0A")
    )
    proc_net(host, line(0, "00000000:0035", "07", inode=3), line(1, "00000000:9C40", "07", inode=4), table="udp")
    process(host, 10, "sshd", 1)
    process(host, 20, "nginx", 2)
    watch, memory = PortWatcher(host.root), Remembered()
    assert rounds(watch, memory) == []
    assert set(memory.state()) == {"tcp 127.0.0.1 22", "tcp 0.0.0.0 80", "udp 0.0.0.0 53"}
    assert watch.look(memory) is None

    proc_net(host, line(0, "00000000:0050", inode=5), line(1, "00000000:1F90", uid=33, inode=6))
    proc_net(host, line(0, "00000000000000000000000001000000:1F91", inode=7), table="tcp6")
    (host.path / "proc/20/fd/0").unlink()
    process(host, 30, "evil", 5, 6, 7)
    told = {change.subject: change for change in rounds(watch, memory)}
    assert {subject: change.name for subject, change in told.items()} == {
        "tcp 0.0.0.0 80": "port.changed",
        "tcp 0.0.0.0 8080": "port.opened",
        "tcp 127.0.0.1 22": "port.closed",
        "tcp ::1 8081": "port.opened",
    }
    assert told["tcp 0.0.0.0 80"].attributes["process.executable.name.after"] == "evil"
    assert told["tcp 0.0.0.0 8080"].attributes["process.pid"] == 30
    assert told["tcp 0.0.0.0 8080"].attributes["user.id"] == "33"
    assert told["tcp 127.0.0.1 22"].attributes["process.executable.name"] == "sshd"


def test_a_service_that_is_restarted_keeps_its_port(host):
    proc_net(host, line(0, "00000000:0050", inode=2))
    proc_net(host, table="udp")
    process(host, 20, "nginx", 2)
    watch, memory = PortWatcher(host.root), Remembered()
    rounds(watch, memory)
    proc_net(host, line(0, "00000000:0050", inode=9))
    process(host, 21, "nginx", 9)
    assert rounds(watch, memory) == []


def test_programs_of_other_users_are_unknown_and_that_is_a_note(host, monkeypatch):
    proc_net(host, line(0, "00000000:0050", inode=2))
    proc_net(host, table="udp")
    process(host, 20, "nginx", 2)
    listdir = os.listdir

    def refuse(path):
        if str(path).endswith("/fd"):
            raise PermissionError(13, "no", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    watch, memory = PortWatcher(host.root), Remembered()
    rounds(watch, memory)
    assert "not visible to this user" in watch.note
    assert json.loads(memory.state()["tcp 0.0.0.0 80"]) == {"uid": "0"}
    monkeypatch.setattr(os, "listdir", listdir)
    proc_net(host, line(0, "00000000:0050", inode=3))
    process(host, 21, "nginx", 3)
    assert rounds(watch, memory) == []  # that it is visible now is no change


@pytest.mark.sockets
@pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")
def test_the_kernel_tells_by_netlink_what_stands_in_proc():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        asked, read = port_tables.listeners(), port_tables.listeners(ask=False)
        inodes = {str(os.fstat(each.fileno()).st_ino): each.getsockname()[1] for each in (server, bound)}
        for found in (asked, read):
            ours = {each.inode: each.port for each in found if each.inode in inodes}
            assert ours == inodes
            assert {each.address for each in found if each.inode in inodes} == {"127.0.0.1"}


@pytest.mark.sockets
def test_without_netlink_the_tables_are_read(monkeypatch, host):
    monkeypatch.setattr(port_tables, "_asked", lambda *_: (_ for _ in ()).throw(OSError("no")))
    proc_net(host, line(0, "0100007F:0016", inode=1))
    proc_net(host, table="udp")
    assert [each.port for each in port_tables.listeners(f"{host.root}/proc")] == [22]
    with pytest.raises(FileNotFoundError):
        port_tables.listeners(f"{host.root}/nowhere")


# Kernel settings


def test_settings_with_other_values_are_told_and_those_that_come_and_go_are_not(host):
    for name, value in {
        "vm/swappiness": "60",
        "kernel/hostname": "a",
        "net/ipv4/ip_forward": "0",
        "net/ipv4/conf/all/rp_filter": "0",
        "net/ipv4/conf/eth0.5/rp_filter": "0",
        "net/ipv4/conf/veth1/rp_filter": "0",
        "net/ipv6/conf/all/stable_secret": "ff",
        "net/ipv4/tcp_fastopen_key": "secret",
        "fs/file-nr": "1 2 3",
    }.items():
        host.write(f"/proc/sys/{name}", f"{value}\n")
    watch, memory = SysctlWatcher(("veth.*",), host.root), Remembered()
    assert rounds(watch, memory) == []
    assert set(memory.state()) == {
        "vm.swappiness",
        "kernel.hostname",
        "net.ipv4.ip_forward",
        "net.ipv4.conf.all.rp_filter",
        "net.ipv4.conf.eth0/5.rp_filter",
    }
    host.write("/proc/sys/vm/swappiness", "10\n")
    host.write("/proc/sys/net/ipv4/conf/eth0.5/rp_filter", "2\n")
    host.write("/proc/sys/net/ipv4/new", "1\n")
    told = [change for _ in range(40) for change in rounds(watch, memory)]
    assert {c.attributes["irca.sysctl.name"] for c in told} == {"vm.swappiness", "net.ipv4.conf.eth0/5.rp_filter"}
    assert len(told) == 2
    assert {c.attributes["irca.sysctl.value.after"] for c in told} == {"10", "2"}


def test_a_setting_that_changed_while_nobody_looked_is_found_slice_by_slice(host):
    host.write("/proc/sys/vm/a", "1")
    host.write("/proc/sys/fs/b", "1")
    memory = Remembered()
    rounds(SysctlWatcher((), host.root), memory)
    host.write("/proc/sys/fs/b", "2")
    watch = SysctlWatcher((), host.root)
    assert [c.subject for _ in range(20) for c in rounds(watch, memory)] == ["fs.b"]


# Certificates


def make_certificate(days, name="shop.example.com", *, der=False, after=None):
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"), x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Authority")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(0x1234)
        .not_valid_before(now - dt.timedelta(days=400))
        .not_valid_after(after or now + dt.timedelta(days=days))
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER if der else Encoding.PEM)


def test_a_certificate_is_told_once_at_each_threshold_and_when_it_has_ended(host):
    host.write("/etc/ssl/shop.pem", make_certificate(40))
    now = [dt.datetime.now(dt.UTC).timestamp()]
    watch = CertificateWatcher(("/etc/ssl/*.pem",), (30, 7, 1), host.root, lambda: now[0])
    memory = Remembered()
    assert rounds(watch, memory) == []
    told = []
    for _ in range(45):
        now[0] += 86_400
        told += rounds(watch, memory)
        assert watch.look(memory) is None
    assert names(told) == ["certificate.expiring"] * 4
    assert [c.attributes.get("irca.certificate.threshold") for c in told] == [30, 7, 1, None]
    assert [c.severity for c in told] == [Severity.WARN, Severity.WARN, Severity.ERROR, Severity.ERROR]
    assert told[0].attributes["irca.certificate.subject"] == "shop.example.com"
    assert told[0].attributes["irca.certificate.issuer"] == "Test Authority"
    assert told[0].attributes["irca.certificate.serial"] == "1234"
    assert "has expired" in told[3].body
    again = CertificateWatcher(("/etc/ssl/*.pem",), (30, 7, 1), host.root, lambda: now[0])
    assert rounds(again, memory) == []


def test_a_certificate_near_its_end_is_told_at_the_very_first_look_and_its_successor_is_a_change(host):
    host.write("/etc/ssl/shop.pem", make_certificate(300, "other") + make_certificate(5))
    host.write("/etc/ssl/not.pem", "no certificate")
    host.write("/etc/ssl/private/shop.key", "x")
    watch, memory = CertificateWatcher(("/etc/ssl/*", "/etc/ssl/private/*"), (30, 7, 1), host.root), Remembered()
    (expiring,) = rounds(watch, memory)
    assert expiring.attributes["irca.certificate.threshold"] == 7
    host.write("/etc/ssl/shop.pem", make_certificate(90))
    (replaced,) = rounds(watch, memory)
    assert replaced.name == "certificate.replaced"
    assert replaced.attributes["irca.certificate.not_after.before"] < replaced.attributes["irca.certificate.not_after.after"]
    host.write("/etc/ssl/shop.pem", make_certificate(3))
    assert names(rounds(watch, memory)) == ["certificate.replaced", "certificate.expiring"]


def test_der_and_dates_of_the_next_centuries_are_read():
    far = dt.datetime(2060, 5, 4, 3, 2, 1, tzinfo=dt.UTC)
    der = make_certificate(1, der=True, after=far)
    assert certificates(der) == [parse(der)]
    assert parse(der).not_after == int(far.timestamp())


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 10, 40, 80, 120])
def test_a_damaged_certificate_is_none(cut):
    der = make_certificate(10, der=True)
    assert certificates(der[:cut]) == []
    for at in range(0, len(der), 7):
        certificates(der[:at] + b"\xff" + der[at + 1 :])  # never anything but a list


def test_a_certificate_that_openssl_made_is_read(host, tmp_path):
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "20", "-subj", "/CN=real.example.com"]
    try:
        subprocess.run([*argv, "-keyout", tmp_path / "k", "-out", tmp_path / "c.pem"], check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    (found,) = certificates((tmp_path / "c.pem").read_bytes())
    assert found.subject == found.issuer == "real.example.com"
    assert round((found.not_after - found.not_before) / 86_400) == 20


# Disks


class Filesystem:
    def __init__(self, used, inodes=0.1):
        self.used, self.inodes = used, inodes

    def __call__(self, path):
        if self.used is None:
            raise OSError(5, "gone", path)
        free = round(1000 * (1 - self.used))
        nodes = round(1000 * (1 - self.inodes))
        return os.statvfs_result((4096, 4096, 1000, free, free, 1000, nodes, nodes, 0, 255))


@pytest.fixture
def disk(host, monkeypatch):
    host.write(
        "/proc/self/mounts",
        "/dev/sda1 / ext4 rw 0 0\n/dev/sda1 /bind ext4 rw 0 0\nproc /proc proc rw 0 0\nserver:/x /mnt nfs rw 0 0\n"
        "/dev/sr0 /cd ext4 ro 0 0\ntmpfs /run/user/1000 tmpfs rw 0 0\nbad line\n",
    )
    measured = Filesystem(0.5)
    monkeypatch.setattr(disk_space.os, "statvfs", measured)
    return measured


def test_a_disk_that_fills_is_told_once_worse_again_and_when_it_has_room(host, disk):
    watch, memory = DiskSpaceWatcher(ServerConfig(), host.root), Remembered()
    assert rounds(watch, memory) == []
    assert list(watch._mounts) == ["/"]
    told = []
    for used in (0.89, 0.91, 0.89, 0.92, 0.975, 0.985, 0.975, 0.99, 0.86, 0.84, 0.95):
        disk.used = used
        told += [(used, change) for change in rounds(watch, memory)]
    assert [(used, c.name, c.severity) for used, c in told] == [
        (0.91, "filesystem.nearly_full", Severity.WARN),
        (0.985, "filesystem.nearly_full", Severity.ERROR),
        (0.84, "filesystem.recovered", Severity.INFO),
        (0.95, "filesystem.nearly_full", Severity.WARN),
    ]
    assert told[0][1].attributes["irca.filesystem.free"] == 90 * 4096


def test_a_disk_that_is_full_from_the_start_is_told_and_inodes_count_by_themselves(host, disk):
    disk.used, disk.inodes = 0.95, 0.999
    memory = Remembered()
    told = rounds(DiskSpaceWatcher(ServerConfig(), host.root), memory)
    assert {c.attributes["irca.filesystem.resource"]: c.severity for c in told} == {"space": Severity.WARN, "inodes": Severity.ERROR}
    assert rounds(DiskSpaceWatcher(ServerConfig(), host.root), memory) == []
    disk.used = None
    assert rounds(DiskSpaceWatcher(ServerConfig(), host.root), memory) == []  # unmounted between two reads: what was known stands
    disk.used, disk.inodes = 0.1, 0.1
    assert names(rounds(DiskSpaceWatcher(ServerConfig(), host.root), memory)) == ["filesystem.recovered"] * 2
