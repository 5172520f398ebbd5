"""The commands that put a server agent on a host and take it off again: pure functions of the configuration.

Linux: curl and bash. macOS: Homebrew. Windows: PowerShell. The token and the options travel as environment variables of the installer
(on macOS in a file that only the user can read, because Homebrew hands no secrets on), so that they stay out of argument lists and of
sudo's log; the installer asks for the rights that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from connectors.core.errors import ConfigError
from connectors.core.quoting import posix, powershell
from connectors.server.config import SERVICE_NAME, ServerConfig
from connectors.server.homebrew import FORMULA, TAP

_BREW_CONFIG: Final = '"$(brew --prefix)/etc/incident-rca"'
_BREW_STATE: Final = '"$(brew --prefix)/var/lib/incident-rca"'
_BREW_LOG: Final = '"$(brew --prefix)/var/log/incident-rca-agent.log"'
_WINDOWS_TLS: Final = (
    "[Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor [Net.SecurityProtocolType]::Tls12"
)
_WINDOWS_FORGET: Final = "Remove-Item -Path Env:AGENT_TOKEN"
_SCRIPT: Final = "install/linux.sh"
_SECRECY: Final = (
    "The deployment command holds the enrolment token. Treat it like a password until it has been used; "
    "the platform can revoke it at any time."
)


def install_command(config: ServerConfig, platform_url: str, token: str) -> str:
    """The command that installs and starts the agent as a service; running it again replaces the installation in place.

    Raises:
        ConfigError: an option holds what no environment variable can; ``field`` names it.
    """
    variables = _variables(config, platform_url, token)
    if config.os == "linux":
        return f"{_download(config, platform_url)} | \\\n  {_assignments(variables)} \\\n  bash"
    if config.os == "macos":
        lines = [
            f"brew tap {TAP} {posix(f'{platform_url}/install/homebrew-agent.git')}",
            f"brew install {FORMULA}",
            f"mkdir -p {_BREW_CONFIG}",
            f"(umask 077; printf '%s\\n' \\\n    {_env_file_lines(variables)} \\\n    > {_BREW_CONFIG}/agent.env)",
            f"brew services restart {FORMULA}",
        ]
        return " &&\n  ".join(lines)
    return "\n".join(
        [
            f"{_WINDOWS_TLS};",
            *_windows_assignments(variables),
            f"Invoke-RestMethod -UseBasicParsing -Uri {powershell(f'{platform_url}/install/windows.ps1')} | Invoke-Expression;",
            _WINDOWS_FORGET,
        ]
    )


def alternatives(config: ServerConfig, platform_url: str, token: str, script_sha256: str = "") -> list[tuple[str, str]]:
    """Other ways to install, as (title, content).

    Linux and Windows: with the script's checksum compared first, with the token kept out of the command, and without changing anything.
    macOS: as a daemon of launchd, without Homebrew. ``script_sha256`` is the checksum (hexadecimal) of the Linux script as the platform
    serves it; without it the platform is asked for it, which finds a damaged download but not a platform that somebody else has taken
    over.

    Raises:
        ConfigError: as :func:`install_command`.
    """
    variables = _variables(config, platform_url, token)
    if config.os == "macos":
        return _macos_alternatives(config, platform_url, variables)
    if config.os == "windows":
        return _windows_alternatives(platform_url, variables)
    assignments, download, script = _assignments(variables), _download(config, platform_url), f"{platform_url}/{_SCRIPT}"
    checksum = f"echo {posix(f'{script_sha256}  linux.sh')}" if script_sha256 else f"{_curl(config)} {posix(f'{script}.sha256')}"
    without_token = {name: value for name, value in variables.items() if name != "AGENT_TOKEN"}
    file = f"{config.service_name}.token"
    by_file = _assignments(without_token | {"TOKEN_FILE": file})
    trust = f"--ca-certificate={posix(config.ca_file)} " if config.ca_file else ""
    return [
        (
            "Checksum first: download the script, compare it, read it if you like, run it",
            f"{_curl(config)} -o linux.sh {posix(script)} &&\n  {checksum} | sha256sum -c - &&\n  {assignments} \\\n  bash linux.sh",
        ),
        ("Token asked for: the script reads it from the terminal", f"{download} | \\\n  {_assignments(without_token)} \\\n  bash"),
        (f"Token in a file: write this to {file}, readable by yourself only", f"{token}\n"),
        (f"Token in a file: run this beside {file}, which may be removed afterwards", f"{download} | \\\n  {by_file} \\\n  bash"),
        ("wget instead of curl", f"{{ wget -qO- {trust}{posix(script)} || echo exit 1; }} | \\\n  {assignments} \\\n  bash"),
        ("Dry run: check everything and change nothing", f"{download} | \\\n  {assignments} \\\n  bash -s -- --dry-run"),
    ]


def _macos_alternatives(config: ServerConfig, platform_url: str, variables: Mapping[str, str]) -> list[tuple[str, str]]:
    script = f"{platform_url}/install/macos.sh"
    download, assignments = f"{{ {_curl(config)} {posix(script)} || echo exit 1; }}", _assignments(variables)
    checked = [f"{_curl(config)} -o macos.sh {posix(script)}", f"{_curl(config)} {posix(f'{script}.sha256')} | shasum -a 256 -c -"]
    without_token = _assignments({name: value for name, value in variables.items() if name != "AGENT_TOKEN"})
    return [
        ("Without Homebrew: as a daemon of launchd, for all users and from boot on", f"{download} | \\\n  {assignments} \\\n  bash"),
        (
            "Without Homebrew, checksum first: download the script, compare it, read it if you like, run it",
            " &&\n  ".join([*checked, f"{assignments} \\\n  bash macos.sh"]),
        ),
        ("Without Homebrew, token asked for: the script reads it from the terminal", f"{download} | \\\n  {without_token} \\\n  bash"),
        ("Without Homebrew, dry run: check everything and change nothing", f"{download} | \\\n  {assignments} \\\n  bash -s -- --dry-run"),
        ("Remove what was installed without Homebrew", f"{download} | bash -s -- --uninstall"),
    ]


def _windows_alternatives(platform_url: str, variables: Mapping[str, str]) -> list[tuple[str, str]]:
    address = f"{platform_url}/install/windows.ps1"
    fetch = f"Invoke-WebRequest -UseBasicParsing -Uri {powershell(address)} -OutFile windows.ps1"
    checksum = f"(Invoke-RestMethod -UseBasicParsing -Uri {powershell(f'{address}.sha256')}).Split(' ')[0]"
    differs = f"(Get-FileHash -Algorithm SHA256 windows.ps1).Hash -ne {checksum}"
    run = "powershell -ExecutionPolicy Bypass -File windows.ps1"
    without_token = {name: value for name, value in variables.items() if name != "AGENT_TOKEN"}
    given = [f"{_WINDOWS_TLS};", *_windows_assignments(variables), f"{fetch};"]
    return [
        (
            "Checksum first: download the script, compare it, run it (read it before if you like)",
            "\n".join([*given, f"if ({differs}) {{ Write-Error 'windows.ps1 is damaged' }} else {{ {run} }}", _WINDOWS_FORGET]),
        ),
        (
            "Token asked for: the script reads it from the terminal",
            "\n".join([f"{_WINDOWS_TLS};", *_windows_assignments(without_token), f"{fetch};", run]),
        ),
        ("Dry run: check everything and change nothing", "\n".join([*given, f"{run} -DryRun;", _WINDOWS_FORGET])),
    ]


def uninstall_command(config: ServerConfig, platform_url: str) -> str:
    """The command that removes the agent's service, program, configuration and state. It needs no token and may be run again."""
    if config.os == "linux":
        service = f"SERVICE_NAME={posix(config.service_name)} " if config.service_name != SERVICE_NAME else ""
        return f"{_download(config, platform_url)} | {service}bash -s -- --uninstall"
    if config.os == "macos":
        state = f" {posix(config.state_dir)}" if config.state_dir else ""
        left = f"{_BREW_CONFIG} {_BREW_STATE} {_BREW_LOG}{state}"
        return f"brew services stop {FORMULA}; brew uninstall --force {FORMULA}; brew untap {TAP}; rm -rf {left}"
    service = f" -ServiceName {powershell(config.service_name)}" if config.service_name != SERVICE_NAME else ""
    script = f"Invoke-RestMethod -UseBasicParsing -Uri {powershell(f'{platform_url}/install/windows.ps1')}"
    return f"{_WINDOWS_TLS};\n& ([scriptblock]::Create(({script}))) -Uninstall{service}"


def run_command(config: ServerConfig, platform_url: str, token: str) -> str:
    """The command that runs an installed agent in the foreground until Ctrl-C, with nothing left behind but its state directory.

    Raises:
        ConfigError: as :func:`install_command`.
    """
    variables = _variables(config, platform_url, token)
    variables.pop("SERVICE_NAME", None)
    if config.os == "windows":
        return "\n".join([*_windows_assignments(variables), "incident-rca-agent run --type server"])
    return f"{_assignments(variables)} \\\n  incident-rca-agent run --type server"


def instructions(config: ServerConfig, platform_url: str) -> str:
    """Numbered steps for a person: what the deployment command does, what it needs, and how to see that it worked."""
    steps = {"linux": _linux_steps, "macos": _macos_steps, "windows": _windows_steps}[config.os](config, platform_url)
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def _linux_steps(config: ServerConfig, _platform_url: str) -> list[str]:
    name = config.service_name
    return [
        (
            "On the host, run the deployment command as root or as a user who may use sudo. It may be run again at any time: that "
            "upgrades the agent, takes over changed options, and with the token of another environment moves the host there."
        ),
        (
            "The command downloads the agent from this platform only, checks signature and checksums before anything of it runs, and "
            f"installs it as the service {name} under a user of its own. It needs systemd or OpenRC, and Python 3.11 or "
            "newer or a glibc that the released program fits. If something is missing, its last line says what, and nothing has changed."
        ),
        f"The agent appears on the platform within a minute. On the host: `systemctl status {name}` and `journalctl -u {name}`.",
        "To see first what would be done, end the command with `bash -s -- --dry-run` instead of `bash`.",
        _SECRECY,
    ]


def _macos_steps(config: ServerConfig, platform_url: str) -> list[str]:
    steps = [
        (
            "On the Mac, run the deployment command as the user who owns Homebrew, without sudo. It may be run again at any time: that "
            "takes over changed options and another token. To upgrade: `brew update && brew upgrade incident-rca-agent && "
            "brew services restart incident-rca-agent`."
        ),
        (
            "The command takes the formula from a tap that this platform serves. The formula pins the package's SHA-256, and Homebrew "
            "installs it with its own Python; settings and token are in a file that only you can read. If `brew tap` answers 404, no "
            f"package for macOS is published on the platform: {platform_url}/install/homebrew-agent.git/info/refs says why."
        ),
        (
            "The agent appears on the platform within a minute. On the Mac: `brew services info incident-rca-agent` and "
            '`tail "$(brew --prefix)/var/log/incident-rca-agent.log"`.'
        ),
        (
            "Homebrew starts it when that user logs in. To have it run from boot on, for everybody and under a user of its own, use the "
            "launchd daemon among the alternatives; it needs no Homebrew, but Python 3.11 or newer."
        ),
        "Formula, daemon and script were checked without a Mac: see what the project's README says was run and what was only checked.",
        _SECRECY,
    ]
    if config.ca_file:
        steps.append(
            "Homebrew downloads with macOS' own trust: first `sudo security add-trusted-cert -d -k /Library/Keychains/System.keychain "
            f"{posix(config.ca_file)}`. The launchd daemon's script takes CA_FILE instead."
        )
    return steps


def _windows_steps(config: ServerConfig, _platform_url: str) -> list[str]:
    name = config.service_name
    steps = [
        (
            "On the machine, run the deployment command in PowerShell (5.1 or newer) as administrator. It may be run again at any time: "
            "that upgrades the agent, takes over changed options, and with the token of another environment moves the machine there."
        ),
        (
            "The command downloads the agent from this platform only, checks signature and checksums before anything of it runs, and "
            f"installs it as the service {name} under an account of its own. It needs Windows 10 1803, Windows Server 2019 or newer, and "
            "Python 3.11 or newer installed for all users, or a published executable. If something is missing, the error's first line says "
            "what, and nothing has changed."
        ),
        f"The agent appears on the platform within a minute. On the machine: `Get-Service {name}`, and the event log Application.",
        "To see first what would be done, use the dry run among the alternatives.",
        "The script was checked without a Windows: see what the project's README says was run and what was only checked.",
        _SECRECY,
    ]
    if config.ca_file:
        steps.append(f"The download trusts only Windows' own certificate store: import {config.ca_file} there first.")
    return steps


def _variables(config: ServerConfig, platform_url: str, token: str) -> dict[str, str]:
    """What the installer and the agent read from their environment, in the order in which it is printed."""
    variables = {"PLATFORM_API_URL": platform_url, "AGENT_TOKEN": token}
    if config.service_name != SERVICE_NAME and config.os != "macos":
        variables["SERVICE_NAME"] = config.service_name
    options = config.environment()
    for name, value in options.items():
        if "\0" in value:
            raise ConfigError(f"{name.lower()} must not hold a NUL character", field=name.lower())
    return variables | options


def _download(config: ServerConfig, platform_url: str) -> str:
    # A pipe's exit code is its last command's, and a bash that is given nothing to do has succeeded.
    return f"{{ {_curl(config)} {posix(f'{platform_url}/{_SCRIPT}')} || echo exit 1; }}"


def _curl(config: ServerConfig) -> str:
    return "curl -fsSL" + (f" --cacert {posix(config.ca_file)}" if config.ca_file else "")


def _assignments(variables: Mapping[str, str]) -> str:
    return " ".join(f"{name}={posix(value)}" for name, value in variables.items())


def _env_file_lines(variables: Mapping[str, str]) -> str:
    """Words for printf that are themselves assignments quoted for the shell which reads the file."""
    return " \\\n    ".join(posix(f"{name}={posix(value)}") for name, value in variables.items())


def _windows_assignments(variables: Mapping[str, str]) -> list[str]:
    return [f"$env:{name} = {powershell(value)};" for name, value in variables.items()]
