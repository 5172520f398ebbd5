"""The printed command on a booted Linux host: the literal string that the API returned, from the first run to the last trace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from e2e.server_hosts import SERVICE, Host, Platform, docker
from waiting import eventually

from connectors._version import __version__

pytestmark = [pytest.mark.requires("docker", "systemd"), pytest.mark.timeout(600)]
NEWER = "7.8.9"


@pytest.fixture(scope="module")
def platform(tmp_path_factory, package_shop) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("platform"))
    package_shop.publish(running.data)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def installed(platform) -> Iterator[SimpleNamespace]:
    """A host and what the platform printed for it, run once."""
    host = Host.boot("server")
    pristine = host.files()
    assert len(pristine) > 1000
    answer = platform.provision("prod", labels={"team": 'it\'s "ours" $HOME'})
    begun = time.monotonic()
    said = host.install(answer["deployment_command"])
    instance = eventually(lambda: platform.healthy(answer["agent_id"]))
    took = time.monotonic() - begun
    yield SimpleNamespace(host=host, pristine=pristine, answer=answer, said=said, instance=instance, took=took)
    host.remove()


def test_the_printed_command_makes_a_healthy_supervised_service(installed):
    print(f"healthy {installed.took:.1f} s after the command was pasted")  # noqa: T201 - what make test -s shows
    assert installed.took < 60, "a bound against hanging, not a performance figure"
    assert "the agent has enrolled" in installed.said
    assert "systemd-analyze security: " in installed.said
    assert installed.said.splitlines()[-1] == f"incident-rca: version {__version__} is installed"
    host = installed.host
    assert host.is_active()
    assert host.sh(f"systemctl show -P Type -P WatchdogUSec -P NRestarts {SERVICE}").split() == ["notify", "1min", "0"]
    assert host.sh(f"systemctl is-enabled {SERVICE}") == "enabled"
    assert host.sh(f"systemctl show -P StatusText {SERVICE}") == "healthy"
    assert installed.instance["version"] == __version__


def test_the_service_has_few_rights(installed):
    host = installed.host
    status = dict(line.split(":\t", 1) for line in host.sh(f"cat /proc/{host.pid()}/status").splitlines() if ":\t" in line)
    assert status["Uid"].split()[0] != "0"
    assert (int(status["CapEff"], 16), int(status["CapBnd"], 16), status["NoNewPrivs"], status["Seccomp"]) == (0, 0, "1", "2")
    score = float(host.sh(f"systemd-analyze security --no-pager {SERVICE} | tail -1 | grep -o '[0-9][0-9.]*'").split()[0])
    assert score < 2.5


def test_the_token_is_in_a_private_file_and_nowhere_else(installed):
    host, token = installed.host, installed.answer["agent_token"]
    assert host.sh(f"stat -c '%a %U' /etc/{SERVICE}/token") == "600 root"
    assert host.sh(f"stat -c '%a %U:%G' /etc/{SERVICE}/agent.env") == f"640 root:{SERVICE}"
    found = host.run(f"grep -rlF {token} /etc /opt /var /run/systemd 2>/dev/null").stdout.split()
    assert found == [f"/etc/{SERVICE}/token"]
    assert token not in host.sh(f"journalctl --no-pager; systemctl show {SERVICE}; ps axeww")
    assert f"LoadCredential=agent_token:/etc/{SERVICE}/token" in host.sh(f"systemctl cat {SERVICE}")


def test_options_reach_the_agent_whatever_they_hold(installed, platform):
    config = platform.get(f"/api/v1/instances/{installed.instance['id']}")["effective_config"]
    assert config["labels"] == {"team": 'it\'s "ours" $HOME'}
    assert config["collect_interval"] == 2


def test_the_sandbox_does_not_change_what_is_measured(installed, platform):
    def modes() -> set[str]:
        found = platform.get("/prometheus/api/v1/query", query='{__name__=~"system_filesystem_limit.*"}')["data"]["result"]
        return {sample["metric"]["system_filesystem_mode"] for sample in found if sample["metric"]["system_filesystem_mountpoint"] == "/"}

    assert eventually(modes) == {"rw"}


def test_the_platform_was_told_how_far_the_installation_came(installed, platform):
    told = [report for report in platform.front.progress if report["authorization"] == f"Bearer {installed.answer['agent_token']}"]
    assert [report["step"] for report in told][:2] == ["downloaded", "installed"]
    assert told[0]["host"] == installed.instance["name"]


def test_the_same_command_again_changes_nothing(installed):
    before, pid = installed.host.files_of_the_agent(), installed.host.pid()
    assert "nothing has changed" in installed.host.install(installed.answer["deployment_command"])
    assert (installed.host.files_of_the_agent(), installed.host.pid()) == (before, pid)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(installed):
    before, pid = installed.host.files(), installed.host.pid()
    said = installed.host.install(installed.answer["deployment_command"].removesuffix("bash") + "bash -s -- --dry-run")
    assert f"installed is {__version__}" in said
    after = installed.host.files()
    assert ({p for p in after if "/var/lib" not in p}, installed.host.pid()) == ({p for p in before if "/var/lib" not in p}, pid)


def seen_again(platform, installed, since: str) -> dict:
    def seen() -> dict | None:
        now = platform.get(f"/api/v1/instances/{installed.instance['id']}")
        return now if now["last_seen_at"] > since and now["status"] == "healthy" else None

    return eventually(seen, 60)


def last_seen(platform, installed) -> str:
    return platform.get(f"/api/v1/instances/{installed.instance['id']}")["last_seen_at"]


def test_a_killed_agent_is_started_again_as_itself(installed, platform):
    host, pid = installed.host, installed.host.pid()
    host.sh(f"kill -9 {pid}")
    eventually(lambda: host.pid() not in (0, pid))
    seen_again(platform, installed, last_seen(platform, installed))
    assert len(platform.instances(installed.answer["agent_id"])) == 1


def test_an_agent_that_hangs_is_ended_by_the_watchdog_and_started_again(installed, platform):
    host = installed.host
    drop_in = f"/run/systemd/system/{SERVICE}.service.d"
    host.sh(f"mkdir -p {drop_in}; printf '[Service]\\nWatchdogSec=3\\n' >{drop_in}/watchdog.conf")
    host.sh(f"systemctl daemon-reload; systemctl restart {SERVICE}")
    time.sleep(5)
    pid = host.pid()
    assert host.sh(f"systemctl show -P NRestarts {SERVICE}") == "0", "the signs of life were in time"
    host.sh(f"kill -STOP {pid}")
    eventually(lambda: host.pid() not in (0, pid), 60)
    assert "Watchdog timeout" in host.sh(f"journalctl --no-pager -u {SERVICE}")
    host.sh(f"rm -r {drop_in}; systemctl daemon-reload; systemctl restart {SERVICE}")
    seen_again(platform, installed, last_seen(platform, installed))


def test_control_acts_through_systemctl_and_names_what_went_wrong(installed):
    host = installed.host
    program = (
        "import sys, glob; sys.path.insert(0, glob.glob('/opt/incident-rca-agent/current/venv/lib/*/site-packages')[0])\n"
        "from connectors.core.errors import ControlError\n"
        "from connectors.server.server_agent import ServerAgent\n"
        "agent = ServerAgent('http://localhost', 'agent_x_1', {'service_name': sys.argv[1]})\n"
        "for act in sys.argv[2:]:\n"
        "    try: found = getattr(agent, act)()\n"
        "    except ControlError as exc: found = exc.code\n"
        "    print(found.state if found and act == 'status' and not isinstance(found, str) else found)\n"
    )
    host.sh(f"cat >/tmp/control.py <<'PROGRAM'\n{program}PROGRAM")
    acts = host.sh(f"python3 /tmp/control.py {SERVICE} status stop stop status start start status").splitlines()
    assert acts == ["running", "None", "None", "stopped", "None", "None", "running"]
    assert host.sh("python3 /tmp/control.py other-agent status start stop").splitlines() == ["not-deployed"] * 3
    refused = host.run(f"python3 /tmp/control.py {SERVICE} status stop start", user="nobody").stdout.splitlines()
    assert refused == ["running", "permission-refused", "permission-refused"]
    docker("exec", host.name, "rm", "/tmp/control.py")


def test_the_agent_comes_back_after_a_reboot(installed, platform):
    host = installed.host
    host.sh(
        "printf '[Unit]\\nDefaultDependencies=no\\nBefore=sysinit.target\\n[Service]\\nType=oneshot\\nExecStart=mount --make-rshared /\\n"
        "[Install]\\nWantedBy=sysinit.target\\n' >/etc/systemd/system/shared-mounts.service; systemctl -q enable shared-mounts"
    )
    docker("restart", host.name)
    since = last_seen(platform, installed)
    eventually(host.is_active, 60)
    seen_again(platform, installed, since)
    host.sh("systemctl -q disable shared-mounts; rm /etc/systemd/system/shared-mounts.service")


def test_the_same_command_upgrades_once_a_newer_version_is_published(installed, platform, package_shop):
    host, command = installed.host, installed.answer["deployment_command"]
    package_shop.publish(platform.data, version=NEWER)
    eventually(lambda: platform.client.get("/packages/manifest.json").json()["version"] == NEWER)
    assert f"version {NEWER} is installed" in host.install(command)
    assert host.version() == NEWER
    assert eventually(lambda: platform.healthy(installed.answer["agent_id"], NEWER))["id"] == installed.instance["id"]


def test_a_lower_version_is_installed_only_when_it_is_asked_for(installed, platform, package_shop):
    host, command = installed.host, installed.answer["deployment_command"]
    package_shop.publish(platform.data, allow_downgrade=True)
    eventually(lambda: platform.client.get("/packages/manifest.json").json()["version"] == __version__)
    before, pid = host.files_of_the_agent(), host.pid()
    last = host.refuses(command)
    assert last.startswith(f"incident-rca: failed: version: the platform serves {__version__}, and {NEWER} is installed")
    assert (host.files_of_the_agent(), host.pid()) == (before, pid)
    host.install(f"{command} -s -- --version {__version__}")
    assert host.version() == __version__
    eventually(lambda: platform.healthy(installed.answer["agent_id"], __version__))
    assert "does not serve version 99.0.0" in host.refuses(f"{command} -s -- --version 99.0.0")


def test_the_token_of_another_environment_moves_the_host_there(installed, platform):
    other = platform.provision("staging")
    installed.host.install(other["deployment_command"])
    moved = eventually(lambda: platform.healthy(other["agent_id"]))
    assert moved["id"] == installed.instance["id"]
    assert platform.instances(installed.answer["agent_id"]) == []
    [event] = platform.get("/api/v1/events", name="irca.instance.moved")["items"]
    assert event["environment_name"] == "staging"
    installed.host.install(installed.answer["deployment_command"])
    assert eventually(lambda: platform.healthy(installed.answer["agent_id"]))["id"] == installed.instance["id"]


def test_without_variables_the_script_upgrades_what_is_installed(installed, platform):
    before = installed.host.files_of_the_agent()
    said = installed.host.install(f"curl -fsSL {platform.url}/install/linux.sh | bash")
    assert "nothing has changed" in said
    assert installed.host.files_of_the_agent() == before


def test_the_printed_uninstall_command_leaves_nothing(installed, platform):
    host = installed.host
    host.install(installed.answer["uninstall_command"])
    assert eventually(lambda: platform.instances(installed.answer["agent_id"])[0]["status"] == "stopped")
    assert host.files() == installed.pristine
    assert host.run(f"systemctl cat {SERVICE}; id {SERVICE}; getent group {SERVICE}").stdout.count("\n") <= 2
    assert "nothing to remove" in host.install(installed.answer["uninstall_command"])


def test_a_reinstalled_host_is_the_one_that_it_was(installed, platform):
    installed.host.install(installed.answer["deployment_command"])
    assert eventually(lambda: platform.healthy(installed.answer["agent_id"]))["id"] == installed.instance["id"]


def test_purge_takes_what_others_added_too(installed, platform):
    host = installed.host
    host.sh(f"mkdir -p /etc/systemd/system/{SERVICE}.service.d /etc/incident-rca /var/lib/incident-rca")
    host.sh(f"touch /etc/systemd/system/{SERVICE}.service.d/mine.conf /etc/incident-rca/agent.toml /var/lib/incident-rca/identity.json")
    host.install(f"curl -fsSL {platform.url}/install/linux.sh | bash -s -- --purge")
    assert host.files() == installed.pristine


def test_another_name_state_directory_and_ca_are_taken_over_and_removed(installed, platform):
    host = installed.host
    host.sh("cp /etc/ssl/certs/ca-certificates.crt /srv/my-ca.pem")
    answer = platform.provision("named", service_name="rca-two", state_dir="/srv/rca two", ca_file="/srv/my-ca.pem", log_level="debug")
    host.install(answer["deployment_command"])
    eventually(lambda: platform.healthy(answer["agent_id"]))
    assert host.is_active("rca-two")
    assert host.sh("stat -c '%a' /etc/rca-two/ca.pem; ls '/srv/rca two'").split()[0] == "644"
    assert "identity.json" in host.sh("ls '/srv/rca two'")
    host.install(answer["uninstall_command"])
    host.sh("rm /srv/my-ca.pem")
    assert host.files() == installed.pristine
