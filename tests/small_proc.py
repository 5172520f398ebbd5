"""A small /proc of a host with two CPUs, and what collectors read of one."""

from __future__ import annotations

from pathlib import Path

from connectors.server.host_collector import BootTime, Exclusion

HOST = {"host.id": "h1"}
NOTHING = Exclusion(())
STAT = """\
cpu  300 30 150 3000 60 6 12 3 0 0
cpu0 100 10 50 1000 20 2 4 1 0 0
cpu1 200 20 100 2000 40 4 8 2 0 0
intr 1
btime 1700000000
processes 99
"""
MEMINFO = """\
MemTotal:        1000 kB
MemFree:          200 kB
MemAvailable:     600 kB
Buffers:           50 kB
Cached:           300 kB
SReclaimable:      10 kB
Shmem:              5 kB
Active:           100 kB
Inactive:         100 kB
Slab:              20 kB
SwapTotal:        400 kB
SwapFree:         300 kB
"""
DISKSTATS = """\
   7       0 loop0 5 0 10 1 0 0 0 0 0 1 1 0 0 0 0 0 0
   8       0 sda 100 1 2000 30 50 2 4000 60 0 1500 90 0 0 0 0 0 0
   8       1 sda1 90 1 1900 30 50 2 4000 60 0 1400 90 0 0 0 0 0 0
   8      16 sdb 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 259       0 nvme0n1 7 0 8 1 3 0 16 1 0 250 1 0 0 0 0 0 0
"""
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    1000      10    3    4    0     0          0         0     2000      20    5    6    0     0       0          0
veth12a:     50       1    0    0    0     0          0         0       50       1    0    0    0     0       0          0
"""
SNMP = """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm CurrEstab InSegs
Tcp: 1 17 300
"""
FILES = {
    "stat": STAT,
    "meminfo": MEMINFO,
    "vmstat": "nr_free_pages 1\npgpgin 5\npswpin 11\npswpout 22\npgfault 1000\npgmajfault 40\n",
    "diskstats": DISKSTATS,
    "uptime": "1234.56 2000.00\n",
    "net/dev": NET_DEV,
    "net/snmp": SNMP,
    "net/sockstat": "sockets: used 9\nTCP: inuse 4 orphan 0 tw 6 alloc 5 mem 0\nUDP: inuse 3 mem 0\n",
    "net/sockstat6": "TCP6: inuse 2\nUDP6: inuse 2\n",
    "self/mounts": "proc /proc proc rw 0 0\n",
    "1/stat": "",
    "27/stat": "",
    "self/stat": "",
}


def write_small_proc(root: Path) -> Path:
    """Write the files below ``root``; ``root``."""
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def boot(seconds: float = 1_700_000_000.0) -> BootTime:
    return BootTime(clock=lambda: seconds + 500, steady=lambda: 500.0)


def metrics(collector) -> dict:
    """The collector's metrics by name."""
    return {metric.name: metric for item in collector.collect() for metric in item.metrics}


def values(collector) -> dict:
    """Every point: name and attribute values, and its value."""
    return {(name, *point.attributes.values()): point.value for name, metric in metrics(collector).items() for point in metric.points}
