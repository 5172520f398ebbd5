"""Which proxy a URL goes through, by the environment variables that curl and others read. Pure."""

from __future__ import annotations

import base64
import ipaddress
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

from connectors.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. ``authorization`` is the value of its ``Proxy-Authorization`` header, empty without credentials."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)


def proxy_for(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy that ``HTTPS_PROXY``, ``HTTP_PROXY`` or ``ALL_PROXY`` (lower case first) names for ``url``, unless ``NO_PROXY`` excepts it.

    Raises:
        ConfigError: the variable's value is not the URL of an HTTP proxy.
    """
    target = urllib.parse.urlsplit(url)
    if _excepted(target.hostname or "", target.port, _variable(environ, "no_proxy")):
        return None
    name = f"{target.scheme}_proxy"
    text = _variable(environ, name)
    if not text:
        name = "all_proxy"
        text = _variable(environ, name)
    if not text:
        return None
    parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port or 80
    except ValueError as exc:
        raise ConfigError(f"{name.upper()} has no valid port: {exc}", field=name.upper()) from exc
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"{name.upper()} must name an HTTP proxy, like http://proxy.example.com:3128", field=name.upper())
    authorization = ""
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return Proxy(parts.hostname, port, authorization)


def _variable(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or environ.get(name.upper()) or "").strip()


def _excepted(host: str, port: int | None, exceptions: str) -> bool:
    return any(_matches(host.lower().rstrip("."), port, pattern.strip().lower()) for pattern in exceptions.split(","))


def _matches(host: str, port: int | None, pattern: str) -> bool:
    if not pattern:
        return False
    if pattern == "*":
        return True
    if pattern.count(":") == 1:
        pattern, _, wanted = pattern.partition(":")
        if wanted != str(port):
            return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        suffix = pattern.removeprefix("*").removeprefix(".")
        return host == suffix or host.endswith(f".{suffix}")
    try:
        return address in ipaddress.ip_network(pattern.strip("[]"), strict=False)
    except ValueError:
        return False
