"""An OpenID provider on loopback: authorization code flow, strict about PKCE, and as wrong as a test wants it."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

CLIENT_ID, CLIENT_SECRET = "irca", "a-client-secret"


def rsa_key(kid: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig"})


def ec_key(kid: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid, "use": "sig"})


@dataclass
class Provider:
    """What the provider does, for a test to change; ``asked`` are the paths of the requests that it got."""

    url: str = ""
    clock: Callable[[], float] = time.time
    key: Any = field(default_factory=lambda: rsa_key("first"))
    algorithm: str = "RS256"
    published: list[Any] | None = None
    """Keys that are published; None for the one that signs."""
    claims: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)
    """Claims that the ID token has instead of the right ones; None leaves one out."""
    metadata: dict[str, Any] = field(default_factory=dict)
    token: Callable[[dict[str, Any]], str] | None = None
    """Makes the ID token of these claims in the place of signing."""
    user_info: dict[str, Any] | None = None
    error: tuple[str, str] | None = None
    """What the authorization endpoint answers in the place of a code."""
    broken: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Paths that answer something else."""
    asked: list[str] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    lasting: bool = False
    """Whether a code may be used more than once."""

    def document(self) -> dict[str, Any]:
        endpoints = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "end_session_endpoint": f"{self.url}/logout",
        }
        if self.user_info is not None:
            endpoints["userinfo_endpoint"] = f"{self.url}/userinfo"
        return {k: v for k, v in {**endpoints, **self.metadata}.items() if v is not None}

    def authorize(self, query: dict[str, str]) -> str:
        back = {"state": query["state"]}
        if self.error:
            back |= {"error": self.error[0], "error_description": self.error[1]}
        else:
            assert query["code_challenge_method"] == "S256"
            assert query["response_type"] == "code"
            code = secrets.token_urlsafe(16)
            self.codes[code] = query
            back["code"] = code
        return f"{query['redirect_uri']}?{urllib.parse.urlencode(back)}"

    def exchange(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        basic = "Basic " + base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if authorization != basic and form.get("client_secret") != CLIENT_SECRET:
            return 401, {"error": "invalid_client"}
        begun = self.codes.get(form["code"]) if self.lasting else self.codes.pop(form["code"], None)
        if begun is None or begun["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant", "error_description": "unknown code"}
        if create_s256_code_challenge(form.get("code_verifier", "")) != begun["code_challenge"]:
            return 400, {"error": "invalid_grant", "error_description": "PKCE verification failed"}
        now = int(self.clock())
        claims = {"iss": self.url, "aud": CLIENT_ID, "sub": "u-1", "iat": now, "exp": now + 300, "nonce": begun["nonce"], **self.claims}
        claims = {k: v for k, v in {**claims, **self.changed}.items() if v is not None}
        token = self.token(claims) if self.token else self.signed(claims)
        return 200, {"access_token": "an-access-token", "token_type": "Bearer", "expires_in": 300, "id_token": token}

    def signed(self, claims: dict[str, Any]) -> str:
        return jwt.encode({"alg": self.algorithm, "kid": self.key.kid}, claims, self.key, algorithms=[self.algorithm])

    def answer(self, method: str, path: str, values: dict[str, str], authorization: str) -> tuple[int, Any]:
        """Status and document; a text is where to redirect to."""
        if path == "/authorize":
            return 303, self.authorize(values)
        if path == "/token" and method == "POST":
            return self.exchange(values, authorization)
        if path == "/jwks":
            return 200, KeySet(self.published or [self.key]).as_dict(private=False)
        if path == "/userinfo" and authorization == "Bearer an-access-token":
            return 200, self.user_info
        if path == "/.well-known/openid-configuration":
            return 200, self.document()
        return 404, {}


@contextmanager
def serve(provider: Provider) -> Iterator[Provider]:
    """The provider behind real HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET", urllib.parse.urlsplit(self.path).query)

        def do_POST(self) -> None:
            self._answer("POST", self.rfile.read(int(self.headers["content-length"])).decode())

        def _answer(self, method: str, text: str) -> None:
            path = urllib.parse.urlsplit(self.path).path
            provider.asked.append(path)
            values = dict(urllib.parse.parse_qsl(text))
            if path in provider.broken:
                status, body = provider.broken[path]
            else:
                status, found = provider.answer(method, path, values, self.headers.get("authorization", ""))
                body = json.dumps(found).encode()
            self.send_response(status)
            if status == 303:
                self.send_header("Location", json.loads(body))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="oidc-provider")
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
