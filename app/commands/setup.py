"""What must be right before the platform starts: settings, data directory, address. Each failure is one line."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator

from pydantic import ValidationError

from app.commands.output import CANNOT_START, USAGE, CommandError
from app.settings import Settings


def load_settings(**overrides: object) -> Settings:
    """The settings of the environment, with those of ``overrides`` that are not None.

    Raises:
        CommandError: some are not valid; each is named as the environment variable that sets it.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings(**given)  # type: ignore[arg-type] # pydantic checks the values; mypy cannot know them
    except ValidationError as exc:
        lines = [f"{_variable(error['loc'])}: {error['msg']}" for error in exc.errors()]
        raise CommandError("; ".join(lines), exit_code=USAGE) from None
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise CommandError("IRCA_TLS_CERTIFICATE and IRCA_TLS_KEY belong together: set both or neither", exit_code=USAGE)
    return settings


def _variable(location: tuple[int | str, ...]) -> str:
    name = ".".join(map(str, location)).upper()
    return name if name.startswith("IRCA_") else f"IRCA_{name}"


def check_data_dir(settings: Settings) -> None:
    """Make the data directory where there is none, readable by its owner alone.

    Raises:
        CommandError: it cannot be made or written.
    """
    path = settings.data_dir
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
    except OSError as exc:
        raise CommandError(
            f"the data directory {path.absolute()} cannot be written: {exc.strerror}",
            hint="Give it to the user that runs this, or set IRCA_DATA_DIR to a directory that is.",
            exit_code=CANNOT_START,
        ) from exc


@contextlib.contextmanager
def listen(settings: Settings) -> Iterator[socket.socket]:
    """The listening socket, bound before anything else starts, so that a port in use is found at once.

    Raises:
        CommandError: the address cannot be listened on.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise CommandError(f"cannot listen on {where}: {exc.strerror}", hint="Correct IRCA_HOST.", exit_code=CANNOT_START) from exc
    with listener:
        try:
            if os.name != "nt":  # there it would let two processes share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError as exc:
            raise _explain_bind(exc, where) from exc
        yield listener


def _explain_bind(exc: OSError, where: str) -> CommandError:
    if exc.errno == errno.EADDRINUSE:
        hint = "Another platform may be running here already. Stop it, or choose another port: IRCA_PORT=8001 (or --port 8001)."
        return CommandError(f"{where} is in use", hint=hint, exit_code=CANNOT_START)
    if exc.errno == errno.EACCES:
        return CommandError(f"no permission to listen on {where}", hint="Choose a port above 1023 (IRCA_PORT).", exit_code=CANNOT_START)
    return CommandError(f"cannot listen on {where}: {exc.strerror}", hint="Correct IRCA_HOST or IRCA_PORT.", exit_code=CANNOT_START)
