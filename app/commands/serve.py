"""``serve`` and ``up``: the platform in this process, alone or with this machine as its first agent."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on (IRCA_HOST).", show_default=False)]
PortOption = Annotated[int | None, typer.Option("--port", help="Port to listen on; 0 picks a free one (IRCA_PORT).", show_default=False)]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Directory for everything that is kept (IRCA_DATA_DIR).", show_default=False)
]


def serve(host: HostOption = None, port: PortOption = None, data_dir: DataDirOption = None) -> None:
    """Run the platform until Ctrl-C or SIGTERM."""
    with _interruptible():
        from app.commands.running import run_platform  # noqa: PLC0415 - the platform is heavy, and --help needs none of it

        raise typer.Exit(run_platform(host=host, port=port, data_dir=data_dir))


def up(
    host: HostOption = None,
    port: PortOption = None,
    data_dir: DataDirOption = None,
    environment_name: Annotated[str, typer.Option("--environment", "-e", help="Name of the environment that this machine is.")] = "local",
) -> None:
    """Run the platform with this machine as its first agent, until Ctrl-C."""
    with _interruptible():
        from app.commands.running import run_with_agent  # noqa: PLC0415 - as above

        raise typer.Exit(run_with_agent(environment_name, host=host, port=port, data_dir=data_dir))


class _Interrupted(BaseException):
    """SIGINT or SIGTERM came before the platform listened to signals."""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A signal before the platform listens to signals is an orderly stop too.

    Not by KeyboardInterrupt: one that strikes while something is imported makes Python die by SIGINT at its end, even when it is caught.
    """

    def interrupt(*_: object) -> None:
        raise _Interrupted

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (_Interrupted, KeyboardInterrupt):
        typer.echo("Stopped.")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
