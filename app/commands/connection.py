"""Where the platform is and which key to show it: what the commands that ask the platform share."""

from __future__ import annotations

import ipaddress
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.output import USAGE, CommandError

if TYPE_CHECKING:
    from app.commands.client import PlatformClient

LOCAL_KEY_FILE = "local-api-key"
"""File in the data directory that holds the key of ``incident-rca up``; only its owner may read it."""

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="Where the platform is (IRCA_URL; default: http://localhost:8000).", metavar="URL", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def connect(option: str | None) -> PlatformClient:
    """A client for the URL and key that option and environment give.

    Raises:
        CommandError: the URL is not one.
    """
    from app.commands.client import PlatformClient  # noqa: PLC0415 - an HTTP client is heavy, and --help needs none

    url = platform_url(option)
    return PlatformClient(url, find_key(url))


def platform_url(option: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """Where the platform is: option, ``IRCA_URL``, ``IRCA_PUBLIC_URL``, or this machine at ``IRCA_PORT``.

    Raises:
        CommandError: that is not an http or https URL.
    """
    port = environ.get("IRCA_PORT") or "8000"
    url = option or environ.get("IRCA_URL") or environ.get("IRCA_PUBLIC_URL") or f"http://localhost:{port}"
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        valid = False
    if not valid:
        raise CommandError(f"the platform's URL must look like http://localhost:8000, not {url!r}", exit_code=USAGE)
    return url.rstrip("/")


def find_key(url: str, environ: Mapping[str, str] = os.environ) -> str:
    """The API key: ``IRCA_API_KEY``, else (only for a platform on this machine) the one that ``incident-rca up`` left for its owner."""
    key = environ.get("IRCA_API_KEY", "").strip()
    if key or not is_loopback(url):
        return key
    try:
        return (Path(environ.get("IRCA_DATA_DIR") or "data") / LOCAL_KEY_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def is_loopback(url: str) -> bool:
    """Whether ``url`` names this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
