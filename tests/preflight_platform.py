"""What the preflight checks ask: a server that answers as a platform does or as something else does; and their outcomes."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import trustme

from connectors.core import preflight_checks as checks
from connectors.core.preflight import CheckResult, run_checks
from connectors.core.secret import Secret

TOKEN = "agent_prod_0123456789"


class FakePlatform:
    """A server that answers as a platform does, or as something else does."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.healthz: tuple[int, object] = (200, {"status": "ok", "service": "incident-rca", "version": "0.1.0"})
        self.whoami: tuple[int, object] = (200, {"kind": "enrolment", "agent_type": "server", "environment_name": "prod"})
        self.headers: dict[str, str] = {}
        self.date_offset: float | None = 0.0
        self.requests: list[tuple[str, dict[str, str]]] = []
        platform = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                platform.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                status, document = platform.whoami if self.path.endswith("/whoami") else platform.healthz
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response_only(status)
                if platform.date_offset is not None:
                    self.send_header("Date", formatdate(time.time() + platform.date_offset, usegmt=True))
                for name, value in platform.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None: ...

        self._server = Server(("127.0.0.1", 0), Handler)
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def certified_platforms(authority: trustme.CA) -> Iterator[Callable[..., FakePlatform]]:
    """A function that starts a platform with a certificate of ``authority``."""
    with contextlib.ExitStack() as stack:

        def start(*names: str, **options: object) -> FakePlatform:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            (authority.issue_cert(*names, **options)).configure_cert(context)
            return stack.enter_context(contextlib.closing(FakePlatform(context)))

        yield start


def target(url: str, tmp_path: Path, **options: object) -> checks.Target:
    values = {"secret": Secret(TOKEN), "state_dir": tmp_path / "state", "spool_max_bytes": 1_048_576, "timeout": 5.0, "environ": {}}
    return checks.Target(url, **{**values, **options})


def outcomes(subject: checks.Target) -> dict[str, CheckResult]:
    return {result.name: result for result in run_checks(checks.common_checks(subject))}
