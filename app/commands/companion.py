"""This machine as the platform's first agent, beside a platform in this process.

The agent takes the way that any agent takes: it is provisioned through the public HTTP API, enrols with the token from there and works
with its own credential, which later runs reuse. It is a process of its own, so what is seen here is what runs elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import typer

from app.auth.service import Role
from app.commands.client import explain
from app.commands.connection import LOCAL_KEY_FILE
from app.commands.output import FAILED, CommandError, printable
from app.commands.server import PlatformServer, open_log, sign_in_lines
from app.commands.tables import make_console
from app.errors import UnauthenticatedError
from app.settings import Settings
from connectors.cli import stored_credential
from connectors.core.files import write_atomically
from connectors.core.identity import LOCK_FILE

STOP_TIMEOUT = 12.0
"""Seconds that the agent gets to send what it holds and say goodbye."""
PATIENCE = 30.0
"""Seconds without metrics after which it is worth saying where to look."""
_POLL = 0.25


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Which agent this machine is, and the token that it enrols with (its credential is bound to that token)."""

    agent_id: str
    token: str = field(repr=False)


class Companion:
    """Connects this machine while the platform runs: provision, start the agent, see its metrics arrive, stop it."""

    def __init__(self, server: PlatformServer, environment_name: str, log_file: Path) -> None:
        self._server = server
        self._settings = server.settings
        self._environment_name = environment_name
        self._log_file = log_file
        self._state_dir = (server.settings.data_dir / "agent").absolute()
        self._url = local_url(server.settings, server.port)

    async def run(self, stopping: asyncio.Event) -> int:
        """Stay until ``stopping`` is set or the agent ends; returns the exit code."""
        for line in sign_in_lines(self._server.public_url, self._server.first_run_key, await self._server.first_run_link()):
            typer.echo(line)
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # our own polling is no news
        await asyncio.to_thread(stop_leftover, self._state_dir)
        async with self._client(await self._local_key()) as client:
            enrolment = await self._enrol(client)
            started = time.monotonic()
            process = await self._start(enrolment)
            try:
                return await self._accompany(process, client, enrolment, started, stopping)
            finally:
                await self._stop(process)

    async def _accompany(
        self, process: asyncio.subprocess.Process, client: httpx2.AsyncClient, enrolment: Enrolment, started: float, stopping: asyncio.Event
    ) -> int:
        ended = asyncio.create_task(process.wait(), name="agent")
        asked = asyncio.create_task(stopping.wait(), name="stop")
        arrival = asyncio.create_task(self._report_arrival(client, enrolment, started), name="first-metrics")
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrival.cancel()
            asked.cancel()
            await asyncio.gather(arrival, asked, return_exceptions=True)
        if stopping.is_set():
            typer.echo("Stopping the agent, then the platform …")
            return 0
        typer.echo(
            f"The agent stopped by itself (exit code {ended.result()}), so the platform stops too. Its log: {self._log_file}", err=True
        )
        for line in last_lines(self._log_file):
            typer.echo(f"  {printable(line)}", err=True)
        return FAILED

    async def _local_key(self) -> str:
        """The key of this command, made at the first run and readable by the owner of the data directory alone."""
        assert self._server.app is not None  # noqa: S101 - the companion runs beside a started application
        auth = self._server.app.state.platform.auth
        path = self._settings.data_dir / LOCAL_KEY_FILE
        try:
            text = path.read_text(encoding="utf-8").strip()
            auth.verify_key(text)
        except (OSError, UnauthenticatedError):
            _, text = await auth.create_key(f"incident-rca up on {socket.gethostname()}", Role.ADMIN)
            await asyncio.to_thread(write_atomically, path, text.encode() + b"\n", mode=0o600)
        return str(text)

    def _client(self, key: str) -> httpx2.AsyncClient:
        headers = {"Accept": "application/json", "Authorization": f"Bearer {key}"}
        verify: ssl.SSLContext | bool = True
        if self._url.startswith("https"):
            verify = ssl.create_default_context(cafile=os.environ.get("CA_FILE") or None)
        return httpx2.AsyncClient(base_url=self._url, headers=headers, timeout=15, trust_env=False, verify=verify)

    async def _enrol(self, client: httpx2.AsyncClient) -> Enrolment:
        """A sign-in that works: that of an earlier run, by its credential or its token, else a new agent's."""
        token_file = self._settings.data_dir / "agent-token"
        token = _read_text(token_file)
        if token:
            for secret in (stored_credential(self._state_dir, self._url).reveal(), token):
                if (known := await self._whoami(client, secret)) is not None:
                    return Enrolment(known["agent_id"], token)
        typer.echo("Provisioning this machine as a server agent …")
        request = {"agent_type": "server", "environment_name": self._environment_name}
        answer = await self._ask(client, "POST", "/api/v1/agent/provision", json=request)
        await asyncio.to_thread(write_atomically, token_file, answer["agent_token"].encode() + b"\n", mode=0o600)
        return Enrolment(answer["agent_id"], answer["agent_token"])

    async def _whoami(self, client: httpx2.AsyncClient, secret: str) -> dict[str, Any] | None:
        if not secret:
            return None
        response = await self._send(client, "GET", "/api/v1/agent/whoami", headers={"Authorization": f"Bearer {secret}"})
        return dict(response.json()) if response.is_success else None

    async def _ask(self, client: httpx2.AsyncClient, method: str, path: str, **kwargs: Any) -> Any:
        response = await self._send(client, method, path, **kwargs)
        if not response.is_success:
            raise explain(response.status_code, response.json(), self._url)
        return response.json()

    async def _send(self, client: httpx2.AsyncClient, method: str, path: str, **kwargs: Any) -> httpx2.Response:
        try:
            return await client.request(method, path, **kwargs)
        except httpx2.HTTPError as exc:
            hint = "With a private CA, name its certificate in CA_FILE." if self._url.startswith("https") else ""
            raise CommandError(f"the platform does not answer at {self._url}: {exc}", hint=hint) from exc

    async def _start(self, enrolment: Enrolment) -> asyncio.subprocess.Process:
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = agent_environment(os.environ, self._url, self._state_dir, enrolment.token)
        with open_log(self._log_file) as log:
            # In a session of its own, for Ctrl-C must reach this process alone: it stops the agent first, then the platform.
            return await asyncio.create_subprocess_exec(
                *agent_command(), env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await process.wait()
            except TimeoutError:
                typer.echo(f"The agent did not stop within {STOP_TIMEOUT:g} s and was killed; what it held waits on disk.", err=True)
                process.kill()
                await process.wait()

    async def _report_arrival(self, client: httpx2.AsyncClient, enrolment: Enrolment, started: float) -> None:
        """One line when the first metrics of this run are there; patience has an end, after which it says where to look."""
        with _progress("Waiting for the first metrics …"):
            patient = True
            while (host := await self._arrived(client, enrolment, started)) is None:
                if patient and time.monotonic() - started > PATIENCE:
                    patient = False
                    typer.echo(f"No metrics yet after {PATIENCE:g} s; the agent's log is {self._log_file}", err=True)
                await asyncio.sleep(_POLL)
        took = time.monotonic() - started
        typer.echo(
            f"Metrics of {printable(host)} are arriving, {took:.1f} s after its agent started. Look at them: {self._server.public_url}"
        )
        typer.echo("Ctrl-C stops both.")

    async def _arrived(self, client: httpx2.AsyncClient, enrolment: Enrolment, started: float) -> str | None:
        """The name of this machine's instance when samples of it, taken since ``started``, can be queried."""
        try:
            page = await self._ask(client, "GET", "/api/v1/instances", params={"agent_id": enrolment.agent_id, "limit": 1})
            if not page["items"]:
                return None
            instance = page["items"][0]
            query = samples_query(instance["id"], time.monotonic() - started)
            answer = await self._ask(client, "GET", "/prometheus/api/v1/query", params={"query": query})
        except CommandError:
            return None
        return str(instance["name"]) if answer["data"]["result"] else None


def samples_query(instance_id: str, seconds: float) -> str:
    """PromQL that has a result when the instance's host metrics got a sample in the last ``seconds``."""
    return f'count(last_over_time({{__name__=~"system.+",instance="{instance_id}"}}[{seconds * 1000:.0f}ms]))'


@contextlib.contextmanager
def _progress(text: str) -> Iterator[None]:
    """A spinner on a terminal, a line elsewhere."""
    console = make_console()
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        typer.echo(text)
        yield


def local_url(settings: Settings, port: int) -> str:
    """Where the platform is reached from this machine: by the public URL with TLS, whose certificate is for that name, else directly."""
    if settings.tls_certificate:
        return settings.resolved_public_url(port)
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - read, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def agent_command() -> list[str]:
    """The command line of the agent: the installed script beside this interpreter, else the module."""
    script = Path(sys.executable).with_name("incident-rca-agent")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "connectors.cli"]
    return [*program, "run", "--type", "server"]


def agent_environment(environ: Mapping[str, str], url: str, state_dir: Path, token: str) -> dict[str, str]:
    """The agent's environment: ours without the platform's secrets, the token (never an argument), and no proxy to this machine."""
    environment = {name: value for name, value in environ.items() if not name.startswith("IRCA_")}
    for name in ("AGENT_TOKEN", "AGENT_TOKEN_FILE"):
        environment.pop(name, None)
    direct = [environ.get("NO_PROXY") or environ.get("no_proxy") or "", "localhost,127.0.0.1,::1"]
    environment["NO_PROXY"] = environment["no_proxy"] = ",".join(filter(None, direct))
    environment |= {"PLATFORM_API_URL": url, "STATE_DIR": str(state_dir), "AGENT_CONFIG_FILE": "", "AGENT_TOKEN": token}
    return environment


def stop_leftover(state_dir: Path) -> None:
    """Stop the agent that an earlier ``up`` left behind because it was killed: it holds the state directory."""
    try:
        process = psutil.Process(int(_read_text(state_dir / LOCK_FILE)))
        if not is_agent(process.cmdline()):
            return
        typer.echo(f"Stopping the agent that an earlier run left behind (process {process.pid}) …")
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT)
    except (ValueError, OverflowError, psutil.Error):
        return


def is_agent(command: Sequence[str]) -> bool:
    """Whether this is the command line of a running agent, by :func:`agent_command` or the like of it."""
    names = [Path(argument).name for argument in command[:3]]
    return "incident-rca-agent" in names or names[1:] == ["-m", "connectors.cli"]


def last_lines(path: Path, count: int = 5) -> list[str]:
    """The last lines of a log."""
    return _read_text(path).splitlines()[-count:]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
