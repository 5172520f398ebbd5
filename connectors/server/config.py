"""The options of the server agent type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import annotated_types as at

from connectors.core.agent_config import AgentConfig, Pattern, option
from connectors.core.errors import ConfigError

SERVICE_NAME: Final = "incident-rca-agent"

CollectorName = Literal["cpu", "load", "memory", "paging", "disk", "filesystem", "network", "processes", "uptime"]

COLLECTORS: Final[tuple[CollectorName, ...]] = ("cpu", "load", "memory", "paging", "disk", "filesystem", "network", "processes", "uptime")

DISK_EXCLUDES: Final = (
    r"(?:loop|ram|zram|fd|sr|nbd)\d+",
    r"(?:h|s|v|xv)d[a-z]+\d+",  # partitions: their disk counts what they do
    r"(?:nvme\d+n\d+|mmcblk\d+)p\d+",
    r"mmcblk\d+(?:boot|rpmb|gp)\d*",
)

FILESYSTEM_TYPE_EXCLUDES: Final = (
    # Pseudo filesystems: they hold no data.
    r"autofs|binfmt_misc|bpf|cgroup2?|configfs|cpuset|debugfs|devfs|devpts|devtmpfs|efivarfs|fusectl|hugetlbfs|mqueue|nsfs|nullfs",
    r"proc|procfs|pstore|ramfs|rpc_pipefs|securityfs|selinuxfs|sysfs|tracefs",
    r"fuse\.(?:gvfsd-fuse|lxcfs|portal|snapfuse)",
    # Images: always full.
    r"erofs|iso9660|squashfs|udf",
    # Layers of containers: their space is the host filesystem's.
    r"overlay|aufs",
    # Network filesystems: the server that exports them reports them, and a server that is gone makes every look at them hang.
    r"9p|afs|afpfs|ceph|cifs|davfs|fuse\.(?:ceph|glusterfs|sshfs|rclone|s3fs)|gfs2?|glusterfs|lustre|ncpfs|nfs[34]?|ocfs2|smb[23]?|smbfs|webdav",
)

FILESYSTEM_MOUNT_EXCLUDES: Final = (
    r"/(?:dev|proc|sys)(?:/.*)?",
    r"/run/(?:lock|credentials|user|containerd|docker|netns|k3s)(?:/.*)?",
    r"/etc/(?:hosts|hostname|resolv\.conf)",  # what container runtimes mount from the host
    r"/var/lib/(?:docker|containerd|containers|kubelet|rancher)/.+",
    r"/snap/.+",
    r"/System/Volumes/(?:Hardware|Preboot|Update|VM|iSCPreboot|xarts)(?:/.*)?",
)

NETWORK_EXCLUDES: Final = (
    r"lo\d*",
    r"veth.*|docker\d+|docker_gwbridge|br-[0-9a-f]{12}|podman\d+|lxc.*|lxdbr\d+|virbr\d+.*|vnet\d+",
    r"cali.*|cilium_.*|cni.*|flannel.*|kube-.*|nodelocaldns|vxlan\.calico",
    r"(?:dummy|ifb)\d+|(?:erspan|gre|gretap|ip6_vti|ip6gre|ip6tnl|ip_vti|sit|tunl)0",
)

_PATTERNS: Final = ("disk_exclude_devices", "filesystem_exclude_types", "filesystem_exclude_mounts", "network_exclude_interfaces")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(AgentConfig):
    """Options of a server agent. An exclusion is a list of regular expressions, each of which must match the whole name."""

    os: Literal["linux", "macos", "windows"] = option("linux", "Operating system that the deployment command is for.", scope="deploy")
    service_name: Annotated[str, Pattern(r"[a-z][a-z0-9-]*"), at.Len(1, 64)] = option(
        SERVICE_NAME, "Name of the systemd unit (Linux) or service (Windows). Homebrew (macOS) names its own.", scope="deploy"
    )
    collectors: Annotated[tuple[CollectorName, ...], at.Len(1)] = option(COLLECTORS, "Collectors that run, each once.")
    cpu_per_core: bool = option(True, "Report CPU time of each logical CPU; otherwise their sum.")
    disk_exclude_devices: tuple[str, ...] = option(
        DISK_EXCLUDES, "Block devices that are not reported; by default partitions, loop, RAM, floppy, optical and network devices."
    )
    filesystem_exclude_types: tuple[str, ...] = option(
        FILESYSTEM_TYPE_EXCLUDES,
        "Filesystem types that are not reported; by default pseudo, image, container-layer and network filesystems. Does not apply to /.",
    )
    filesystem_exclude_mounts: tuple[str, ...] = option(
        FILESYSTEM_MOUNT_EXCLUDES, "Mount points that are not reported; by default those of the kernel, container runtimes and sessions."
    )
    filesystem_timeout: Annotated[float, at.Ge(0.1), at.Le(60)] = option(
        2.0, "Seconds that one look at the filesystems which may hang (network, FUSE) may take altogether.", unit="s"
    )
    network_exclude_interfaces: tuple[str, ...] = option(
        NETWORK_EXCLUDES, "Network interfaces that are not reported; by default loopback and the virtual ones of containers and tunnels."
    )

    def __post_init__(self) -> None:
        """Refuse what no single option's annotation can tell.

        Raises:
            ConfigError: an exclusion is not a regular expression, or a collector is named twice.
        """
        for name in _PATTERNS:
            for pattern in getattr(self, name):
                try:
                    re.compile(pattern)
                except re.error as exc:
                    raise ConfigError(f"{name} must hold regular expressions; {pattern!r} is none: {exc}", field=name) from exc
        if len(set(self.collectors)) != len(self.collectors):
            raise ConfigError("collectors must name each collector once", field="collectors")
