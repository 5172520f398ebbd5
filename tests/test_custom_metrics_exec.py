from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from connectors.core.agent_config import AgentConfig
from connectors.core.custom import exec as running_commands
from connectors.core.custom.assemble import make_each_source, make_sources
from connectors.core.custom.commands import Command, declared_commands, is_trusted
from connectors.core.custom.exec import run_command
from connectors.core.errors import CollectorError, ConfigError
from connectors.core.telemetry import Kind

SH = "/bin/sh"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "etc"
    made.mkdir(mode=0o755)
    return made


def declare(folder: Path, *commands: object, mode: int = 0o644) -> Path:
    path = folder / "commands.json"
    path.write_text(json.dumps({"commands": list(commands)}))
    path.chmod(mode)
    return path


def shell(script: str, **more) -> Command:
    return Command(**{"name": "test", "argv": (SH, "-c", script), "timeout": 10.0, **more})


def run(script: str, **more):
    return run_command(shell(script, **more), threading.Event())


def values(metrics):
    return {(m.name, *sorted(p.attributes.items())): p.value for m in metrics for p in m.points}


# What the host's owner allows


def test_a_declared_command_has_its_options_and_defaults(folder):
    path = declare(
        folder,
        {"name": "disk-latency", "command": ["/opt/x", "a b"], "interval": 5, "timeout": 2, "user": "nobody", "format": "json"},
        {"name": "plain", "command": ["/opt/y"]},
    )
    assert declared_commands(path) == {
        "disk-latency": Command("disk-latency", ("/opt/x", "a b"), 5.0, 2.0, "nobody", "json"),
        "plain": Command("plain", ("/opt/y",), 60.0, 10.0, "", "prometheus"),
    }
    assert declared_commands(folder / "none.json") == {}


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ({"name": "x", "command": "rm -rf /"}, "list of strings"),
        ({"name": "x", "command": []}, "list of strings"),
        ({"name": "x", "command": [1]}, "list of strings"),
        ({"name": "x", "command": ["/a\0"]}, "list of strings"),
        ({"name": "x", "command": ["sh"]}, "absolute path"),
        ({"name": "../x", "command": ["/a"]}, "whose name does not match"),
        ({"command": ["/a"]}, "whose name does not match"),
        ({"name": "x", "command": ["/a"], "shell": True}, "must hold commands with"),
        (["/a"], "must hold commands with"),
        ({"name": "x", "command": ["/a"], "timeout": 0}, "timeout as 0.1 to 300 seconds"),
        ({"name": "x", "command": ["/a"], "interval": True}, "interval as 1 to 86400 seconds"),
        ({"name": "x", "command": ["/a"], "format": "xml"}, "format as prometheus or json"),
        ({"name": "x", "command": ["/a"], "user": 0}, "user as a string"),
    ],
)
def test_a_malformed_declaration_is_refused_with_what_it_must_be(folder, command, reason):
    with pytest.raises(ConfigError, match=reason):
        declared_commands(declare(folder, command))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"commands": {}}', '{"commands": [], "x": 1}', "[" * 100_000])
def test_a_file_of_another_form_is_refused(folder, content):
    path = folder / "commands.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="the file of custom commands"):
        declared_commands(path)


def test_a_name_may_be_declared_once(folder):
    with pytest.raises(ConfigError, match="declares a name twice"):
        declared_commands(declare(folder, {"name": "x", "command": ["/a"]}, {"name": "x", "command": ["/b"]}))


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_allows_nothing(folder, mode):
    with pytest.raises(ConfigError, match="nobody else may write them"):
        declared_commands(declare(folder, {"name": "x", "command": ["/a"]}, mode=mode))


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_file_in_a_folder_that_others_can_write_allows_nothing(folder, mode):
    path = declare(folder, {"name": "x", "command": ["/a"]})
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="nobody else may write them"):
        declared_commands(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_or_folder_of_another_user_allows_nothing(folder):
    path = declare(folder, {"name": "x", "command": ["/a"]})
    os.chown(path, 65534, 0)
    with pytest.raises(ConfigError, match="must belong to root"):
        declared_commands(path)
    os.chown(path, 0, 0)
    os.chown(folder, 65534, 0)
    with pytest.raises(ConfigError, match="must belong to root"):
        declared_commands(path)


def test_a_link_counts_as_what_it_leads_to(folder, tmp_path):
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    declare(open_folder, {"name": "x", "command": ["/a"]})
    (folder / "link.json").symlink_to(open_folder / "commands.json")
    assert "x" in declared_commands(folder / "link.json")
    open_folder.chmod(0o777)
    with pytest.raises(ConfigError, match="nobody else may write them"):
        declared_commands(folder / "link.json")


def test_what_is_no_file_or_too_large_allows_nothing(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(ConfigError, match="is not a file"):
        declared_commands(folder / "pipe")
    (folder / "large").write_bytes(b" " * (1_048_576 + 1))
    with pytest.raises(ConfigError, match="is larger than"):
        declared_commands(folder / "large")


def test_who_may_write_is_told_from_owner_and_mode():
    def status(uid, mode):
        return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, uid, 0, 0, 0, 0, 0))

    assert is_trusted(status(0, 0o644), {0, 1000})
    assert is_trusted(status(1000, 0o600), {0, 1000})
    assert not is_trusted(status(1001, 0o600), {0, 1000})
    assert not is_trusted(status(0, 0o620), {0})


# What configuration can ask for


def test_configuration_selects_by_name_and_can_give_nothing_else(folder):
    path = declare(folder, {"name": "allowed", "command": [SH, "-c", "true"], "interval": 7})
    environ = {"AGENT_CUSTOM_COMMANDS_FILE": str(path)}
    (source,) = make_sources(AgentConfig(custom_commands=("allowed",)), environ)
    assert source.name == "allowed"
    with pytest.raises(ConfigError, match=r"no command 'other' is declared in .*; it declares allowed") as caught:
        make_sources(AgentConfig(custom_commands=("allowed", "other")), environ)
    assert caught.value.field == "custom_commands"


@pytest.mark.parametrize(
    "values",
    [
        {"custom_commands": [{"name": "x", "command": ["/bin/sh"]}]},
        {"custom_commands": [["/bin/sh", "-c", "id"]]},
        {"custom_commands": "x"},
        {"custom_commands": ["/bin/sh"]},
        {"custom_commands": ["../../bin/sh"]},
        {"custom_commands": ["x; id"]},
        {"custom_commands": ["$(id)"]},
        {"custom_commands": ["x\n"]},
        {"custom_exec": [{"name": "x", "command": ["/bin/sh"]}]},
        {"custom_commands_file": "/tmp/mine.json"},
        {"AGENT_CUSTOM_COMMANDS_FILE": "/tmp/mine.json"},
        {"agent_custom_commands_file": "/tmp/mine.json"},
    ],
)
def test_no_configuration_from_afar_can_bring_a_command_or_say_where_they_are_declared(values):
    with pytest.raises(ConfigError):
        AgentConfig().overlaid(values)


def test_a_command_that_is_not_declared_fails_alone_where_the_hosts_own_configuration_asks_for_it(folder):
    path = declare(folder, {"name": "allowed", "command": [SH, "-c", "echo a 1"]})
    good, bad = make_each_source(AgentConfig(custom_commands=("allowed", "gone")), {"AGENT_CUSTOM_COMMANDS_FILE": str(path)})
    assert (good.name, bad.name) == ("allowed", "gone")
    assert values(good._gather(threading.Event())) == {("a",): 1.0}
    with pytest.raises(CollectorError, match="no command 'gone' is declared"):
        bad._gather(threading.Event())


def test_two_sources_cannot_have_one_name(folder):
    path = declare(folder, {"name": "x", "command": ["/a"]})
    config = AgentConfig(custom_commands=("x",), custom_prometheus={"x": "http://127.0.0.1:1/"})
    with pytest.raises(ConfigError, match="two sources of custom metrics have the name x"):
        make_sources(config, {"AGENT_CUSTOM_COMMANDS_FILE": str(path)})
    assert [source.name for source in make_each_source(config, {"AGENT_CUSTOM_COMMANDS_FILE": str(path)})] == ["x"]


# Running


def test_both_formats_are_read():
    (metric,) = run("echo '# TYPE jobs_total counter'; echo 'jobs_total{queue=\"a b\"} 3'")
    assert (metric.kind, values([metric])) == (Kind.COUNTER, {("jobs_total", ("queue", "a b")): 3.0})
    (metric,) = run("""echo '[{"name": "disk.latency", "value": 0.5, "unit": "s"}]'""", format="json")
    assert (metric.name, metric.unit, metric.points[0].value) == ("disk.latency", "s", 0.5)
    assert run("true") == []


def test_arguments_reach_the_program_as_they_are_without_a_shell():
    command = Command("x", ("/bin/echo", 'a{b="$(id); `id` && id"} 1'), format="prometheus")
    assert values(run_command(command, threading.Event())) == {("a", ("b", "$(id); `id` && id")): 1.0}


def test_nothing_of_the_agents_environment_is_inherited(monkeypatch):
    monkeypatch.setenv("AGENT_TOKEN", "agent_secret")
    script = 'env | while IFS="=" read -r name value; do echo "variable{name=\\"$name\\"} 1"; done'
    names = {dict(key[1:])["name"] for key in values(run(script))}
    assert names <= {"PATH", "LANG", "PWD", "SHLVL", "_", "OLDPWD"}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo this broke >&2; exit 3", "/bin/sh ended with 3: this broke"),
        ("echo password=hunter2hunter2 >&2; exit 3", r"ended with 3: password=\[redacted\]"),
        ("exit 1", "ended with 1$"),
        ("kill -11 $$", "ended by signal 11"),
        ("echo 'not a metric'", "line 1: no value"),
        ("printf '\\377'", "not UTF-8"),
    ],
)
def test_a_failure_is_told_with_its_reason(script, reason):
    with pytest.raises(CollectorError, match=reason):
        run(script)


def test_what_cannot_be_started_is_told():
    with pytest.raises(CollectorError, match="/no/such/program cannot be started: No such file"):
        run_command(Command("x", ("/no/such/program",)), threading.Event())


def test_too_much_output_ends_it():
    with pytest.raises(CollectorError, match="wrote more than 1048576 bytes and was killed"):
        run("yes 'metric 1'")


def test_much_on_standard_error_neither_blocks_nor_stays():
    assert values(run("head -c 3000000 /dev/zero >&2; echo a 1")) == {("a",): 1.0}


def processes_of(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker in (entry / "cmdline").read_bytes().decode(errors="replace") and (entry / "stat").read_text().split()[2] != "Z":
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def awaited(condition) -> bool:
    for _ in range(100):
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("ending", ["wait", "exit 0"])
def test_its_time_is_bounded_and_its_whole_group_ends_with_it(ending):
    marker = f"77{os.getpid()}.{'1' if ending == 'wait' else '2'}"
    script = f"trap '' TERM; sleep {marker} & sleep {marker} & echo a 1; {ending}"
    if ending == "wait":
        with pytest.raises(CollectorError, match=r"took longer than 0\.5 s and was killed"):
            run(script, timeout=0.5)
    else:
        assert values(run(script)) == {("a",): 1.0}, "children that hold its output open are not waited for"
    assert awaited(lambda: not processes_of(marker))


def test_the_end_of_the_agent_ends_it():
    stopping = threading.Event()
    threading.Timer(0.3, stopping.set).start()
    with pytest.raises(CollectorError, match="the agent stops"):
        run_command(shell("sleep 30", timeout=30.0), stopping)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another")
def test_as_root_it_runs_as_another_user_with_that_users_groups_only():
    seen = values(run('echo "user $(id -u)"; echo "group $(id -g)"; echo "groups $(id -G | wc -w)"', user="nobody"))
    assert seen[("user",)] == 65534.0
    assert seen[("group",)] != 0.0
    assert seen[("groups",)] == 1.0


def test_an_unknown_user_is_told_and_so_is_one_that_only_root_could_be(monkeypatch):
    with pytest.raises(CollectorError, match="there is no user nobody-at-all"):
        run("true", user="nobody-at-all")
    monkeypatch.setattr(running_commands.os, "geteuid", lambda: 4242)
    with pytest.raises(CollectorError, match="only an agent that runs as root can run a command as root"):
        run("true", user="root")
    monkeypatch.undo()
    me = os.environ.get("USER") or "root"
    if os.geteuid() == 0:
        assert run("true", user="root") == [], me


def test_it_leads_a_group_of_its_own_so_that_signals_of_the_agent_do_not_reach_it():
    assert values(run("read -r pid name state parent group rest < /proc/$$/stat; echo own $((group == pid))")) == {("own",): 1.0}


# What an agent without them carries


def test_an_agent_without_custom_metrics_loads_nothing_of_them():
    code = (
        "import sys, connectors.core.runtime, connectors.server.server_agent\n"
        "from connectors.core.generation import custom_sources\n"
        "agent = connectors.server.server_agent.ServerAgent('http://localhost', 'token')\n"
        "assert custom_sources(agent, {}) == ()\n"
        "print(*[name for name in sys.modules if name.startswith(('connectors.core.custom', 'http.client', 'http.server'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
