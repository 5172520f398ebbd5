"""What ``serve`` and ``up`` do: prepare, start the platform, and stay until it shall stop."""

from __future__ import annotations

import asyncio

import typer

from app.commands.companion import Companion
from app.commands.server import PlatformServer, sign_in_lines
from app.commands.setup import check_data_dir, listen, load_settings


def run_platform(**overrides: object) -> int:
    """Run the platform alone; ``overrides`` are settings that the command line gives. Returns the exit code.

    Raises:
        CommandError: it cannot start, or stopped by itself.
    """
    settings = load_settings(**overrides)
    check_data_dir(settings)
    with listen(settings) as listener:
        server = PlatformServer(settings, listener)

        async def announce(stopping: asyncio.Event) -> int:
            for line in sign_in_lines(server.public_url, server.first_run_key, await server.first_run_link()):
                typer.echo(line)
            await stopping.wait()
            return 0

        code = server.run(announce)
    typer.echo("The platform has stopped.")
    return code


def run_with_agent(environment_name: str, **overrides: object) -> int:
    """Run the platform with this machine as its first agent, in ``environment_name``. Returns the exit code.

    Raises:
        CommandError: as :func:`run_platform`.
    """
    settings = load_settings(**overrides)
    check_data_dir(settings)
    logs = settings.data_dir / "logs"
    with listen(settings) as listener:
        typer.echo("Starting the platform …")
        server = PlatformServer(settings, listener, logs / "platform.log")
        companion = Companion(server, environment_name, logs / "agent.log")
        code = server.run(companion.run)
    typer.echo("Stopped.")
    return code
