"""Servers for the tests of the transport: one that answers with a script of bytes, and the certificates of one that speaks TLS."""

from __future__ import annotations

import socketserver
import ssl
import threading

from connectors.core.secret import Secret
from connectors.core.transport import Transport

BEARER = Secret("credential-x")


class RawServer:
    """Answers every connection with a script of bytes: one per request, or what a function does with the socket."""

    def __init__(self, *answers: bytes | None, close_after: bool = False) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        raw = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                raw.connections += 1
                while raw.answers:
                    data = b""
                    while b"\r\n\r\n" not in data:
                        piece = self.request.recv(65536)
                        if not piece:
                            return
                        data += piece
                    head, _, body = data.partition(b"\r\n\r\n")
                    wanted = next(
                        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
                    )
                    while len(body) < wanted:
                        body += self.request.recv(65536)
                    raw.requests.append(data)
                    answer = raw.answers.pop(0)
                    if answer is None:
                        return
                    self.request.sendall(answer)
                    if close_after:
                        return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def post(server, timeout=2.0, path="/v1/metrics", body=b"x"):
    transport = Transport(server.url, lambda: BEARER, timeout=timeout, environ={})
    try:
        return transport.post(path, body)
    finally:
        transport.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def server_context(authority, *names):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context
