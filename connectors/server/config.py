"""The options of the server agent type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import annotated_types as at

from connectors.core.agent_config import AgentConfig, Pattern, option
from connectors.core.errors import ConfigError

SERVICE_NAME: Final = "incident-rca-agent"

CollectorName = Literal[
    "cpu", "load", "memory", "paging", "disk", "filesystem", "network", "processes", "uptime", "file_descriptors", "systemd"
]

COLLECTORS: Final[tuple[CollectorName, ...]] = (
    "cpu",
    "load",
    "memory",
    "paging",
    "disk",
    "filesystem",
    "network",
    "processes",
    "uptime",
    "file_descriptors",
    "systemd",
)

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

WatcherName = Literal[
    "packages",
    "units",
    "boot",
    "sysctl",
    "schedules",
    "users",
    "ports",
    "files",
    "certificates",
    "disk_space",
    "kernel_log",
    "clock",
]

WATCHERS: Final[tuple[WatcherName, ...]] = (
    *("boot", "clock", "kernel_log", "units", "packages", "files", "schedules"),
    *("users", "ports", "sysctl", "certificates", "disk_space"),
)

WATCHED_FILES: Final = (
    *("/etc/*.conf", "/etc/*.cfg", "/etc/hosts", "/etc/hostname", "/etc/fstab", "/etc/environment", "/etc/default/*", "/etc/sysconfig/*"),
    *("/etc/sysctl.d/*.conf", "/etc/security/*.conf", "/etc/security/limits.d/*.conf", "/etc/pam.d/*", "/etc/ssh/sshd_config"),
    *("/etc/ssh/sshd_config.d/*.conf", "/etc/systemd/*.conf", "/etc/systemd/*.conf.d/*.conf", "/etc/systemd/network/*"),
    *("/etc/modprobe.d/*.conf", "/etc/modules-load.d/*.conf", "/etc/ld.so.conf.d/*.conf", "/etc/logrotate.d/*"),
    *("/etc/rsyslog.d/*.conf", "/etc/chrony/*.conf"),
    *("/etc/network/interfaces", "/etc/network/interfaces.d/*", "/etc/netplan/*.yaml", "/etc/iptables/*", "/etc/firewalld/zones/*.xml"),
    *("/etc/apt/sources.list", "/etc/apt/sources.list.d/*", "/etc/apt/preferences.d/*", "/etc/yum.repos.d/*.repo", "/etc/selinux/config"),
    *("/etc/nginx/nginx.conf", "/etc/nginx/conf.d/*.conf", "/etc/nginx/sites-enabled/*", "/etc/nginx/snippets/*"),
    *("/etc/apache2/*.conf", "/etc/apache2/*-enabled/*", "/etc/httpd/conf/*.conf", "/etc/httpd/conf.d/*.conf", "/etc/haproxy/*.cfg"),
    *("/etc/mysql/*.cnf", "/etc/mysql/*.d/*.cnf", "/etc/my.cnf", "/etc/my.cnf.d/*.cnf", "/etc/postgresql/*/*/*.conf", "/etc/redis/*.conf"),
    *("/etc/docker/daemon.json", "/etc/containerd/config.toml", "/etc/kubernetes/*.yaml", "/etc/kubernetes/manifests/*.yaml"),
    *("/var/lib/kubelet/config.yaml", "/etc/php/*/*/php.ini", "/etc/rabbitmq/*.conf", "/etc/mongod.conf", "/etc/elasticsearch/*.yml"),
)

WATCHED_FILES_EXCLUDED: Final = (
    *("*~", "*.swp", "*.swx", "*.bak", "*.dpkg-*", "*.rpmnew", "*.rpmsave", "*.rpmorig", "*.ucf-*", "*/.git*", "*/.placeholder"),
    "/etc/*shadow*",
)

CERTIFICATE_PATHS: Final = (
    *("/etc/letsencrypt/live/*/cert.pem", "/etc/ssl/*.pem", "/etc/ssl/*.crt", "/etc/ssl/private/*.pem", "/etc/ssl/private/*.crt"),
    *("/etc/ssl/localcerts/*", "/etc/pki/tls/certs/*.crt", "/etc/pki/tls/certs/*.pem", "/etc/pki/tls/private/*.pem"),
    *("/etc/nginx/ssl/*", "/etc/nginx/certs/*", "/etc/nginx/*.crt", "/etc/nginx/*.pem", "/etc/apache2/ssl/*", "/etc/haproxy/certs/*"),
    *("/etc/haproxy/*.pem", "/etc/kubernetes/pki/*.crt", "/etc/kubernetes/pki/etcd/*.crt", "/var/lib/kubelet/pki/*.crt"),
    *("/var/lib/kubelet/pki/*.pem", "/etc/docker/*.pem", "/etc/postgresql/*/*/*.crt", "/etc/mysql/*.pem", "/etc/postfix/*.pem"),
)

_PATTERNS: Final = (
    "disk_exclude_devices",
    "filesystem_exclude_types",
    "filesystem_exclude_mounts",
    "network_exclude_interfaces",
    "systemd_units",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(AgentConfig):
    """Options of a server agent. An exclusion or choice is a list of regular expressions, each of which must match the whole name."""

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

    systemd_units: tuple[str, ...] = option(
        (),
        r"systemd units whose state is reported beside those that failed, as regular expressions (nginx\.service).",
    )
    top_processes: Annotated[int, at.Ge(0), at.Le(50)] = option(
        0, "How many processes with the most CPU time, and with the most memory, are reported; 0 means none."
    )
    top_process_arguments: bool = option(
        False, "Report the command lines of those processes too (shortened, without what looks secret), not their names alone."
    )

    change_watchers: tuple[WatcherName, ...] = option(
        WATCHERS, "Watchers of changes that run, each once; none switches them off. connectors/server/README.md says what each sees."
    )
    change_interval: Annotated[float, at.Ge(2), at.Le(3600)] = option(
        10.0, "Seconds between two looks of a watcher that polls, where its own are not longer.", unit="s"
    )
    change_notify: bool = option(True, "Let the kernel tell of files that change (inotify, Linux); otherwise they are looked at in turn.")
    watch_files: tuple[str, ...] = option(
        WATCHED_FILES, "Configuration files whose changes are told: absolute paths with *, ?, [...] and **; known ones in /etc by default."
    )
    watch_files_exclude: tuple[str, ...] = option(
        WATCHED_FILES_EXCLUDED, "Patterns of whole paths, in which * also stands for /, of files that are not watched; by default backups."
    )
    certificate_paths: tuple[str, ...] = option(
        CERTIFICATE_PATHS, "Certificates (PEM or DER) whose end is told beforehand, as patterns like those of watch_files."
    )
    certificate_thresholds: Annotated[tuple[Annotated[int, at.Ge(0), at.Le(3650)], ...], at.Len(0, 10)] = option(
        (30, 7, 1), "Days before a certificate's end at which it is told, each once.", unit="d"
    )
    disk_space_threshold: Annotated[float, at.Gt(0), at.Le(1)] = option(
        0.9, "Share of a filesystem's space or inodes in use from which on it counts as nearly full; 0.05 below that it has recovered."
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
        if len(set(self.change_watchers)) != len(self.change_watchers):
            raise ConfigError("change_watchers must name each watcher once", field="change_watchers")
        for name in ("watch_files", "certificate_paths"):
            for pattern in getattr(self, name):
                if not pattern.startswith("/") or "/../" in f"{pattern}/" or "\0" in pattern:
                    raise ConfigError(f"{name} must hold absolute paths, not {pattern!r}", field=name)
