"""The platform in this process, behind uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.commands.output import CANNOT_START, FAILED, CommandError
from app.errors import PlatformError
from app.logs import LINK_PATH, configure_logging
from app.main import create_app
from app.memory import spare_the_long_lived
from app.settings import Settings

GRACE = 3
"""Seconds that open requests get to finish when the platform stops."""


def sign_in_lines(url: str, first_run_key: str | None, link: str = "") -> list[str]:
    """Where the platform is and how to sign in; the first key, and a one-time link of it, only when it was made just now."""
    lines = [f"incident-rca is ready at {url}"]
    if first_run_key and link:
        lines += [
            "Open the link within 15 minutes (it works once), or sign in with the API key. It is shown only now, so keep it:",
            f"  {link}",
            f"  {first_run_key}",
        ]
    elif first_run_key:
        lines += ["Sign in with this API key. It is shown only now, so keep it:", f"  {first_run_key}"]
    else:
        lines.append(
            "Sign in with an API key. The first was shown at the first start; `incident-rca api-keys create --name me` makes another."
        )
    return lines


class PlatformServer:
    """The platform behind uvicorn in this process, on a socket that listens already.

    A log file takes the platform's log instead of standard error.
    """

    def __init__(self, settings: Settings, listener: socket.socket, log_file: Path | None = None) -> None:
        self.settings = settings
        self.port: int = listener.getsockname()[1]
        self.public_url = settings.resolved_public_url(self.port)
        self._listener = listener
        self._log_file = log_file
        self._failure: BaseException | None = None
        self.app: FastAPI | None = None

    @property
    def first_run_key(self) -> str | None:
        """The admin key that was made at this start, if one was."""
        return getattr(self.app.state, "first_run_key", None) if self.app else None

    async def first_run_link(self) -> str:
        """A one-time sign-in link of the admin key that was made at this start; empty if none was, or no link could be made."""
        if self.app is None or self.first_run_key is None:
            return ""
        auth = self.app.state.platform.auth
        try:
            token, _ = await auth.create_link(auth.verify_key(self.first_run_key).key_id)
        except PlatformError:  # the key signs in too
            return ""
        return f"{self.public_url}{LINK_PATH}{token}"

    def run(self, companion: Callable[[asyncio.Event], Awaitable[int]]) -> int:
        """Serve, and run ``companion`` beside it once requests are answered.

        The companion gets an event that is set when the platform should stop (Ctrl-C, SIGTERM, or the server's end), and its return
        value is the exit code; the platform stops after it.

        Raises:
            CommandError: the platform could not start.
        """
        with _logging(self.settings, self._log_file):
            self.app = self._create_app()
            config = uvicorn.Config(
                self._guard_lifespan,
                interface="asgi3",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                forwarded_allow_ips=self.settings.trusted_proxy_networks(),
                timeout_graceful_shutdown=GRACE,
                ssl_certfile=self.settings.tls_certificate,
                ssl_keyfile=self.settings.tls_key,
            )
            try:
                config.load()
            except (OSError, ssl.SSLError) as exc:
                raise CommandError(
                    f"IRCA_TLS_CERTIFICATE and IRCA_TLS_KEY cannot be used: {exc.strerror or exc}", exit_code=CANNOT_START
                ) from exc
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                return runner.run(self._supervise(config, companion))

    def _create_app(self) -> FastAPI:
        settings = self.settings.model_copy(update={"port": self.port})  # what port 0 became; printed commands carry it
        return create_app(settings)

    async def _supervise(self, config: uvicorn.Config, companion: Callable[[asyncio.Event], Awaitable[int]]) -> int:
        server = _Server(config)
        stopping = asyncio.Event()
        stops = 0

        def stop() -> None:
            nonlocal stops
            stops += 1
            server.force_exit = stops > 1  # whoever asks twice will not wait for open requests
            stopping.set()

        with _signals(stop):
            serving = asyncio.create_task(self._serve(server), name="platform")
            serving.add_done_callback(lambda _: stopping.set())
            while not server.started and not serving.done():
                if stopping.is_set():
                    server.should_exit = True
                await asyncio.sleep(0.02)
            code = 0
            try:
                if not serving.done() and not stopping.is_set():
                    spare_the_long_lived()
                    code = await companion(stopping)
            finally:
                unasked = serving.done()
                self._end_streams()
                server.should_exit = True
                await serving
        if self._failure is not None:
            raise explain(self._failure, "cannot start" if not server.started else "did not stop in order")
        if unasked and not stops:
            raise CommandError("the platform stopped by itself; its log says why", exit_code=FAILED)
        return code

    def _end_streams(self) -> None:
        """Let live streams end: uvicorn waits for open responses before the application's own shutdown could end them."""
        platform = getattr(self.app.state, "platform", None) if self.app else None
        if platform is not None:
            platform.live.close()

    async def _serve(self, server: uvicorn.Server) -> None:
        # uvicorn leaves by SystemExit when the lifespan fails; _failure has the reason then
        with contextlib.suppress(SystemExit):
            await server.serve(sockets=[self._listener])

    async def _guard_lifespan(self, scope: Any, receive: Any, send: Any) -> None:
        """The application; a failure of its start is kept for one clear line instead of a traceback in the log."""
        if self.app is None:
            raise RuntimeError("the application has not been made")
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_quietly(message: Any) -> None:
            await send({"type": message["type"]} if message["type"] == "lifespan.startup.failed" else message)

        try:
            await self.app(scope, receive, send_quietly)
        except BaseException as exc:
            self._failure = exc
            raise


def explain(exc: BaseException, what: str = "cannot start") -> CommandError:
    """The error for a platform that failed in starting or stopping: our own reasons as they are, anything else with its type."""
    text = exc.reason if isinstance(exc, PlatformError) else f"{type(exc).__name__}: {' '.join(str(exc).split())}"
    return CommandError(f"the platform {what}: {text}", exit_code=CANNOT_START if what == "cannot start" else FAILED)


class _Server(uvicorn.Server):
    """Leaves the signals to us: uvicorn would raise them again after an orderly stop, and the exit code would tell of a crash."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture nothing."""
        yield


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` in the event loop for SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
    except NotImplementedError:  # Windows
        previous = {n: signal.signal(n, lambda *_: loop.call_soon_threadsafe(stop)) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _logging(settings: Settings, path: Path | None) -> Iterator[None]:
    """Log to ``path``, or to standard error; uvicorn's remark on a failed start goes nowhere, for we say it better."""
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    with contextlib.ExitStack() as stack:
        if path is None:
            configure_logging(settings.log_level, settings.log_format)
        else:
            file = stack.enter_context(open_log(path))
            with contextlib.redirect_stderr(file):  # logging keeps the stream that it finds; messages to people do not follow it
                configure_logging(settings.log_level, settings.log_format)
        before = list(logging.getLogger().handlers)
        try:
            yield
        finally:
            if path is not None:
                for handler in before:
                    logging.getLogger().removeHandler(handler)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Application startup failed")


def open_log(path: Path, largest: int = 10_000_000) -> Any:
    """A log file to append to; one that has grown past ``largest`` bytes is kept as ``.1`` and begun anew.

    Raises:
        CommandError: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > largest:
            path.replace(path.with_name(path.name + ".1"))
        return path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError as exc:
        raise CommandError(f"the log file {path} cannot be written: {exc.strerror}", exit_code=CANNOT_START) from exc
