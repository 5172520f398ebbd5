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

TAP: Final = "incident-rca/agent"
FORMULA: Final = f"{TAP}/incident-rca-agent"

_BREW_CONFIG: Final = '"$(brew --prefix)/etc/incident-rca"'
_BREW_STATE: Final = '"$(brew --prefix)/var/lib/incident-rca"'
_WINDOWS_TLS: Final = (
    "[Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor [Net.SecurityProtocolType]::Tls12"
)


TOKEN_PLACEHOLDER = "<agent_token>"  # noqa: S105 - what stands where a secret will be
"""Stands for the token in instructions, which people paste into tickets."""


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
            *(f"$env:{name} = {powershell(value)};" for name, value in variables.items()),
            f"Invoke-RestMethod -UseBasicParsing -Uri {powershell(f'{platform_url}/install/windows.ps1')} | Invoke-Expression;",
            "Remove-Item -Path Env:AGENT_TOKEN",
        ]
    )


def uninstall_command(config: ServerConfig, platform_url: str) -> str:
    """The command that removes the agent's service, program, configuration and state. It needs no token and may be run again."""
    if config.os == "linux":
        service = f"SERVICE_NAME={posix(config.service_name)} " if config.service_name != SERVICE_NAME else ""
        return f"{_download(config, platform_url)} | {service}bash -s -- --uninstall"
    if config.os == "macos":
        state = f" {posix(config.state_dir)}" if config.state_dir else ""
        return (
            f"brew services stop {FORMULA}; brew uninstall --force {FORMULA}; brew untap {TAP}; rm -rf {_BREW_CONFIG} {_BREW_STATE}{state}"
        )
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
        assignments = "\n".join(f"$env:{name} = {powershell(value)};" for name, value in variables.items())
        return f"{assignments}\nincident-rca-agent run --type server"
    return f"{_assignments(variables)} \\\n  incident-rca-agent run --type server"


def instructions(config: ServerConfig, platform_url: str) -> str:
    """Numbered steps for a person: what works with this version, what the deployment command waits for, and how to go on."""
    served = {"linux": "install script", "macos": "Homebrew tap", "windows": "install script"}[config.os]
    shell = "a PowerShell window" if config.os == "windows" else "a shell"
    python = "py -m pip" if config.os == "windows" else "python3 -m pip"
    steps = [
        (
            f"Not available yet: this version of the platform does not serve the {served} that the deployment command downloads. It "
            "stops at the download and changes nothing. Until a later version serves it, steps 2 to 4 run the same agent in the foreground."
        ),
        (
            f"On the host, with Python 3.11 or newer, in a virtual environment of its own: `{python} install incident-rca` "
            f"(or, from a checkout of the project: `{python} install .`)."
        ),
        (
            f"Start the agent in {shell}, with the agent_token that came with these instructions in place of {TOKEN_PLACEHOLDER}:\n"
            f"{_indent(run_command(config, platform_url, TOKEN_PLACEHOLDER))}"
        ),
        (
            "The agent appears on the platform within a minute, and stops with Ctrl-C. If it does not, `incident-rca-agent check` with "
            "the same variables says why. It needs no root; without, it keeps its state in the user's own directory."
        ),
        (
            "The deployment command holds the enrolment token. Treat it like a password until it has been used; "
            "the platform can revoke it at any time."
        ),
    ]
    if config.os == "windows":
        steps.append("Once the script is served: run the deployment command in PowerShell as administrator.")
        if config.ca_file:
            steps.append(f"The download trusts only Windows' own certificate store: import {config.ca_file} there first.")
    elif config.os == "macos":
        steps.append("Once the tap is served: run the deployment command as the user who owns Homebrew, without sudo.")
        if config.ca_file:
            steps.append(f"Homebrew fetches the tap with git: set GIT_SSL_CAINFO={posix(config.ca_file)} before the deployment command.")
    else:
        steps.append("Once the script is served: run the deployment command as root, or as a user who may use sudo. It needs systemd.")
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


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
    trust = f"--cacert {posix(config.ca_file)} " if config.ca_file else ""
    return f"curl -fsSL {trust}{posix(f'{platform_url}/install/linux.sh')}"


def _assignments(variables: Mapping[str, str]) -> str:
    return " ".join(f"{name}={posix(value)}" for name, value in variables.items())


def _env_file_lines(variables: Mapping[str, str]) -> str:
    """Words for printf that are themselves assignments quoted for the shell which reads the file."""
    return " \\\n    ".join(posix(f"{name}={posix(value)}") for name, value in variables.items())


def _indent(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
