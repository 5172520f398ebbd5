from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.agent_factory import AgentFactory
from connectors.core.errors import ConfigError
from connectors.core.quoting import posix
from connectors.server import command
from connectors.server.config import ServerConfig

URL = "https://platform.example.com/base"
TOKEN = "agent_prod-cluster_s3cr3t"

LINUX = """\
{ curl -fsSL https://platform.example.com/base/install/linux.sh || echo exit 1; } | \\
  PLATFORM_API_URL=https://platform.example.com/base AGENT_TOKEN=agent_prod-cluster_s3cr3t LOG_LEVEL=debug LABELS='team=it'"'"'s ours' \\
  bash"""

MACOS = """\
brew tap incident-rca/agent https://platform.example.com/base/install/homebrew-agent.git &&
  brew install incident-rca/agent/incident-rca-agent &&
  mkdir -p "$(brew --prefix)/etc/incident-rca" &&
  (umask 077; printf '%s\\n' \\
    PLATFORM_API_URL=https://platform.example.com/base \\
    AGENT_TOKEN=agent_prod-cluster_s3cr3t \\
    LOG_LEVEL=debug \\
    'LABELS='"'"'team=it'"'"'"'"'"'"'"'"'s ours'"'"'' \\
    > "$(brew --prefix)/etc/incident-rca"/agent.env) &&
  brew services restart incident-rca/agent/incident-rca-agent"""

WINDOWS = """\
[Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor [Net.SecurityProtocolType]::Tls12;
$env:PLATFORM_API_URL = 'https://platform.example.com/base';
$env:AGENT_TOKEN = 'agent_prod-cluster_s3cr3t';
$env:LOG_LEVEL = 'debug';
$env:LABELS = 'team=it''s ours';
Invoke-RestMethod -UseBasicParsing -Uri 'https://platform.example.com/base/install/windows.ps1' | Invoke-Expression;
Remove-Item -Path Env:AGENT_TOKEN"""

SHELLS = [shell for shell in ("bash", "sh") if shutil.which(shell)]


def server(token=TOKEN, **config):
    return AgentFactory.create_agent(agent_type="server", platform_url=URL, agent_token=token, config=config)


@pytest.mark.parametrize(("system", "expected"), [("linux", LINUX), ("macos", MACOS), ("windows", WINDOWS)])
def test_the_deployment_command_of_each_system_is_as_agreed(system, expected):
    agent = server(os=system, log_level="debug", labels={"team": "it's ours"})
    assert agent.get_deployment_command() == expected


def test_the_default_is_linux():
    assert (
        server().get_deployment_command().startswith("{ curl -fsSL https://platform.example.com/base/install/linux.sh || echo exit 1; } |")
    )


def test_planning_touches_neither_disk_nor_network_and_is_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    agent = server(state_dir=str(tmp_path / "state"))
    assert agent.get_deployment_command() == agent.get_deployment_command()
    assert not list(tmp_path.iterdir())


# The printed commands, run in a real shell with stub programs.

values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=25) | st.text(
    st.sampled_from("'\"\\$`!*?(){}<>|&;# \n=,\u2019ab"), max_size=15
)
configs = st.fixed_dictionaries(
    {"labels": st.dictionaries(values, values, max_size=2), "ca_file": values, "state_dir": values},
    optional={
        "log_level": st.sampled_from(["debug", "error"]),
        "collect_interval": st.floats(1, 3600),
        "service_name": st.sampled_from(["incident-rca-agent", "other-agent"]),
        "filesystem_exclude_mounts": st.lists(st.sampled_from([r"/mnt/\d+", "/a,b=c", "/it's.*"]), max_size=2),
    },
)
bounded = settings(max_examples=25, deadline=None, database=None)


class Stubs:
    """Programs that record their argv and environment, in a folder that is the whole PATH of the shell that runs a command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = folder / "brew prefix"
        env = shutil.which("env")
        self._script = (
            "#!/bin/sh\n"
            f'{{ printf \'%s\\0\' "${{0##*/}}" "$#" "$@"; }} >> {posix(str(folder / "argv"))}\n'
            f'{posix(env)} -0 > {posix(str(folder / "env"))}"-${{0##*/}}"\n'
            f'if [ "${{0##*/}} $1" = "brew --prefix" ]; then printf "%s\\n" {posix(str(self.prefix))}; fi\n'
        )
        for name in ("curl", "bash", "brew", "rm", "incident-rca-agent", "wget", "sha256sum"):
            (folder / name).write_text(self._script)
            (folder / name).chmod(0o755)
        (folder / "mkdir").symlink_to(shutil.which("mkdir"))

    def run(self, shell: str, text: str) -> list[list[str]]:
        """The argv of every stub that ran, but for ``brew --prefix``."""
        for old in (self.folder / "argv", *self.folder.glob("env-*")):
            old.unlink(missing_ok=True)
        done = subprocess.run(
            [shutil.which(shell), "-c", text],
            env={"PATH": str(self.folder)},
            capture_output=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""
        record = iter((self.folder / "argv").read_bytes().decode().split("\0")[:-1])
        calls = [[name, *(next(record) for _ in range(int(next(record))))] for name in record]
        return sorted(call for call in calls if call[1:] != ["--prefix"])

    def environment(self, program: str) -> dict[str, str]:
        text = (self.folder / f"env-{program}").read_bytes().decode()
        pairs = (entry.split("=", 1) for entry in text.split("\0")[:-1])
        return {name: value for name, value in pairs if name not in {"PATH", "PWD", "OLDPWD", "SHLVL", "_"}}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    return Stubs(tmp_path_factory.mktemp("stubs"))


def carried(config: ServerConfig) -> dict[str, str]:
    return {"PLATFORM_API_URL": URL, "AGENT_TOKEN": TOKEN, **config.environment()}


def service(config: ServerConfig) -> dict[str, str]:
    return {} if config.service_name == "incident-rca-agent" else {"SERVICE_NAME": config.service_name}


def download(config: ServerConfig) -> list[str]:
    trust = ["--cacert", config.ca_file] if config.ca_file else []
    return ["curl", "-fsSL", *trust, f"{URL}/install/linux.sh"]


@pytest.mark.parametrize("shell", SHELLS)
@bounded
@given(options=configs)
@example(options={"labels": {"a=b": "c,d", "'": '"'}, "ca_file": "/etc/my ca.pem", "state_dir": "$(touch /tmp/x)"})
def test_the_linux_command_downloads_and_hands_on_the_configuration_whatever_it_holds(stubs, shell, options):
    config = ServerConfig.from_mapping(options)
    assert stubs.run(shell, command.install_command(config, URL, TOKEN)) == [["bash"], download(config)]
    given_environment = stubs.environment("bash")
    assert given_environment == carried(config) | service(config)
    assert ServerConfig.from_environment(given_environment, config={"service_name": config.service_name}) == config


@pytest.mark.parametrize("shell", SHELLS)
@bounded
@given(options=configs)
def test_the_linux_uninstall_command_needs_no_token(stubs, shell, options):
    config = ServerConfig.from_mapping(options)
    text = command.uninstall_command(config, URL)
    assert stubs.run(shell, text) == [["bash", "-s", "--", "--uninstall"], download(config)]
    assert stubs.environment("bash") == service(config)
    assert TOKEN not in text


@pytest.mark.parametrize("shell", SHELLS)
@bounded
@given(options=configs)
def test_the_macos_command_leaves_the_configuration_in_a_private_file_that_a_shell_reads_back(stubs, shell, options):
    config = ServerConfig.from_mapping({**options, "os": "macos"})
    file = stubs.prefix / "etc/incident-rca/agent.env"
    file.unlink(missing_ok=True)
    assert stubs.run(shell, command.install_command(config, URL, TOKEN)) == [
        ["brew", "install", "incident-rca/agent/incident-rca-agent"],
        ["brew", "services", "restart", "incident-rca/agent/incident-rca-agent"],
        ["brew", "tap", "incident-rca/agent", f"{URL}/install/homebrew-agent.git"],
    ]
    assert file.stat().st_mode & 0o777 == 0o600
    stubs.run(shell, f"set -a; . {posix(str(file))}; incident-rca-agent run")
    assert stubs.environment("incident-rca-agent") == carried(config)


@bounded
@given(options=configs)
def test_the_macos_uninstall_command_removes_configuration_and_state(stubs, options):
    config = ServerConfig.from_mapping({**options, "os": "macos"})
    calls = stubs.run("sh", command.uninstall_command(config, URL))
    removed = [f"{stubs.prefix}/etc/incident-rca", f"{stubs.prefix}/var/lib/incident-rca", f"{stubs.prefix}/var/log/incident-rca-agent.log"]
    assert calls[-1] == ["rm", "-rf", *removed, *([config.state_dir] if config.state_dir else [])]
    assert [call[1] for call in calls[:-1]] == ["services", "uninstall", "untap"]


@pytest.mark.parametrize("shell", SHELLS)
@bounded
@given(options=configs)
def test_the_foreground_command_runs_the_agent_with_the_configuration(stubs, shell, options):
    config = ServerConfig.from_mapping(options)
    assert stubs.run(shell, command.run_command(config, URL, TOKEN)) == [["incident-rca-agent", "run", "--type", "server"]]
    assert stubs.environment("incident-rca-agent") == carried(config)


@settings(max_examples=100, deadline=None, database=None)
@given(options=configs)
def test_the_windows_command_assigns_the_configuration_in_verbatim_strings(options):
    config = ServerConfig.from_mapping({**options, "os": "windows"})
    text = command.install_command(config, URL, TOKEN)
    quote = "'\u2018\u2019\u201a\u201b"
    assignment = re.compile(rf"\$env:([A-Z_]+) = '((?:[^{quote}]|[{quote}][{quote}])*)';\n")
    position, found = text.index("\n") + 1, {}
    while match := assignment.match(text, position):
        found[match[1]] = re.sub(rf"[{quote}]([{quote}])", r"\1", match[2])
        position = match.end()
    assert found == carried(config) | service(config)
    assert text[position:].splitlines() == [
        f"Invoke-RestMethod -UseBasicParsing -Uri '{URL}/install/windows.ps1' | Invoke-Expression;",
        "Remove-Item -Path Env:AGENT_TOKEN",
    ]


def test_the_windows_uninstall_command_names_another_service_and_no_token():
    plain = server(os="windows").get_uninstall_command()
    assert plain.endswith("install/windows.ps1'))) -Uninstall")
    assert server(os="windows", service_name="other").get_uninstall_command() == f"{plain} -ServiceName 'other'"
    assert TOKEN not in plain


def test_the_windows_foreground_command_is_powershell():
    assert server(os="windows").get_run_command().splitlines() == [
        f"$env:PLATFORM_API_URL = '{URL}';",
        f"$env:AGENT_TOKEN = '{TOKEN}';",
        "incident-rca-agent run --type server",
    ]


def test_a_value_that_no_environment_can_carry_is_refused_with_its_option():
    with pytest.raises(ConfigError, match="labels must not hold a NUL") as caught:
        server(labels={"a": "\0"}).get_deployment_command()
    assert caught.value.field == "labels"


@pytest.mark.parametrize("shell", SHELLS)
@bounded
@given(options=configs)
def test_the_other_ways_to_install_hand_on_the_same_configuration(stubs, shell, options):
    config = ServerConfig.from_mapping(options)
    name, trust = config.service_name, ["--cacert", config.ca_file] if config.ca_file else []
    script = f"{URL}/install/linux.sh"
    checked, asked, content, by_file, by_wget, dry = (text for _, text in command.alternatives(config, URL, TOKEN))
    expected = carried(config) | service(config)
    without_token = {key: value for key, value in expected.items() if key != "AGENT_TOKEN"}

    calls = [["bash", "linux.sh"], ["curl", "-fsSL", *trust, "-o", "linux.sh", script], ["curl", "-fsSL", *trust, f"{script}.sha256"]]
    assert stubs.run(shell, checked) == sorted([*calls, ["sha256sum", "-c", "-"]])
    assert stubs.environment("bash") == expected
    assert stubs.run(shell, asked) == [["bash"], download(config)]
    assert stubs.environment("bash") == without_token
    assert content == f"{TOKEN}\n"
    assert stubs.run(shell, by_file) == [["bash"], download(config)]
    assert stubs.environment("bash") == without_token | {"TOKEN_FILE": f"{name}.token"}
    trust = [f"--ca-certificate={config.ca_file}"] if config.ca_file else []
    assert stubs.run(shell, by_wget) == [["bash"], ["wget", "-qO-", *trust, script]]
    assert stubs.environment("bash") == expected
    assert stubs.run(shell, dry) == [["bash", "-s", "--", "--dry-run"], download(config)]
    assert stubs.environment("bash") == expected


def test_a_checksum_that_the_platform_tells_is_pinned_in_the_command(monkeypatch):
    agent = server()
    monkeypatch.setattr(type(agent), "install_script_sha256", "ab" * 32)
    (_, checked), *_ = agent.get_alternatives()
    assert f"echo '{'ab' * 32}  linux.sh' | sha256sum -c - &&" in checked
    assert "linux.sh.sha256" not in checked


def test_the_instructions_for_linux_say_what_the_command_does_and_hold_no_token():
    text = server(service_name="other").get_instructions()
    numbers = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert "as the service other under a user of its own" in text
    assert "--dry-run" in text
    assert "not available" not in text.lower()
    assert TOKEN not in text


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("macos", ["without sudo", "brew upgrade incident-rca-agent", "install/homebrew-agent.git/info/refs says why", "launchd daemon"]),
        (
            "windows",
            ["as administrator", "as the service other under an account of its own", "Python 3.11 or newer installed for all users"],
        ),
    ],
)
def test_the_instructions_for_other_systems_say_what_the_command_needs_and_that_it_was_not_run(system, words):
    agent = server(os=system, service_name="other")
    text = agent.get_instructions()
    numbers = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    for word in [*words, "was run and what was only checked"]:
        assert word in text
    assert "not available" not in text.lower()
    assert agent.agent_token not in text


@pytest.mark.parametrize("shell", SHELLS)
@bounded
@given(options=configs)
def test_a_mac_without_homebrew_is_given_the_same_configuration(stubs, shell, options):
    config = ServerConfig.from_mapping({**options, "os": "macos"})
    daemon, checked, asked, dry, remove = (text for _, text in command.alternatives(config, URL, TOKEN))
    trust = ["--cacert", config.ca_file] if config.ca_file else []
    script = ["curl", "-fsSL", *trust, f"{URL}/install/macos.sh"]
    for text, words in ((daemon, []), (asked, []), (dry, ["-s", "--", "--dry-run"])):
        assert stubs.run(shell, text) == [["bash", *words], script]
        expected = carried(config) if text != asked else {k: v for k, v in carried(config).items() if k != "AGENT_TOKEN"}
        assert stubs.environment("bash") == expected
    assert stubs.run(shell, remove) == [["bash", "-s", "--", "--uninstall"], script]
    assert TOKEN not in asked + remove
    assert "| shasum -a 256 -c - &&" in checked


def test_the_alternatives_for_windows_check_the_script_first_ask_for_the_token_or_change_nothing():
    checked, asked, dry = (text for _, text in server(os="windows", service_name="other").get_alternatives())
    script = f"'{URL}/install/windows.ps1"
    for text in (checked, asked, dry):
        assert f"Invoke-WebRequest -UseBasicParsing -Uri {script}' -OutFile windows.ps1;" in text
        assert "$env:SERVICE_NAME = 'other';" in text
    assert f"-ne (Invoke-RestMethod -UseBasicParsing -Uri {script}.sha256').Split(' ')[0]) {{ Write-Error" in checked
    assert TOKEN not in asked
    assert dry.splitlines()[-2].endswith("-File windows.ps1 -DryRun;")
    assert checked.splitlines()[-1] == dry.splitlines()[-1] == "Remove-Item -Path Env:AGENT_TOKEN"


def test_a_private_ca_is_named_where_the_download_cannot_be_told_about_it():
    assert (
        "add-trusted-cert -d -k /Library/Keychains/System.keychain /etc/ca.pem"
        in server(os="macos", ca_file="/etc/ca.pem").get_instructions()
    )
    assert "certificate store" in server(os="windows", ca_file=r"C:\ca.pem").get_instructions()
    assert "--cacert /etc/ca.pem" in server(ca_file="/etc/ca.pem").get_deployment_command()
