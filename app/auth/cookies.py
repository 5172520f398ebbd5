"""The session's cookie. Under TLS its name has the prefix by which browsers take it from this very host alone, over TLS, for all paths."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from app.auth.service import SESSION_COOKIE

_PREFIX = "__Host-"


def is_secure(connection: HTTPConnection) -> bool:
    """Whether the browser that asks reaches the platform by HTTPS, of the platform's own or of what stands before it."""
    public_url: str = connection.app.state.platform.settings.resolved_public_url()
    return connection.url.scheme == "https" or public_url.startswith("https://")


def cookie_name(connection: HTTPConnection, name: str = SESSION_COOKIE) -> str:
    """The name that a cookie of ours has for this browser."""
    return _PREFIX + name if is_secure(connection) else name


def session_token(connection: HTTPConnection) -> str:
    """The token of the browser session that a request carries; empty where it carries none."""
    return connection.cookies.get(cookie_name(connection), "")
