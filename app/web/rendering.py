"""How a page leaves: templates, the security headers, sign-in when nobody is signed in, and errors as pages. One place for each."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import urllib.parse
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.auth.cookies import session_token
from app.auth.service import Identity, Role
from app.errors import InvalidRequestError, PlatformError, Problem
from app.headers import PAGE_HEADERS
from app.logs import loggable
from app.platform import Platform
from app.web import formats
from connectors._version import __version__
from connectors.core.errors import ConnectorError

_log = logging.getLogger(__name__)
_HERE = Path(__file__).parent

SECURITY_HEADERS = PAGE_HEADERS
"""Headers of every page, errors and redirects included."""


@dataclass(frozen=True, slots=True)
class Section:
    """An entry of the main navigation, shown to whoever has ``role``. ``also`` are beginnings of other paths that belong to it."""

    title: str
    path: str
    role: Role = Role.VIEWER
    also: tuple[str, ...] = ()

    def holds(self, path: str) -> bool:
        """Whether the page at ``path`` belongs to this section."""
        own = path == "/" if self.path == "/" else path == self.path or path.startswith(self.path + "/")
        return own or any(path.startswith(beginning) for beginning in self.also)


NAVIGATION = (
    Section("Overview", "/"),
    Section("Agents", "/agents", also=("/instances/",)),
    Section("Clusters", "/clusters"),
    Section("Explore", "/explore", also=("/events/",)),
    Section("Connect", "/connect", Role.OPERATOR),
    Section("Groups", "/groups"),
    Section("Maintenance", "/maintenance"),
    Section("Webhooks", "/webhooks"),
    Section("Access", "/access", Role.ADMIN),
    Section("Audit", "/audit", Role.ADMIN),
    Section("Settings", "/settings", Role.ADMIN),
    Section("About", "/about"),
)
"""The main navigation, in order. A page that belongs to a section of its own has its row here."""


THEME_COOKIE = "irca_theme"
"""Name of the cookie that carries what the viewer chose to look at."""
THEMES = ("light", "dark")


class SignInNeededError(Exception):
    """Nobody is signed in; the page route answers with the way to the sign-in page."""


def static_directory() -> Path:
    """The folder that the application serves under ``/static``."""
    return _HERE / "static"


def get_platform(request: Request) -> Platform:
    """The running platform."""
    platform: Platform = request.app.state.platform
    return platform


PlatformDependency = Annotated[Platform, Depends(get_platform)]


async def get_viewer(request: Request, platform: PlatformDependency) -> Identity:
    """Who is signed in.

    Raises:
        SignInNeededError: nobody, or the session is over.
    """
    token = session_token(request)
    identity = await platform.auth.session(token) if token else None
    if identity is None:
        raise SignInNeededError
    request.state.viewer = identity
    platform.check_visible(identity, request.scope)
    return identity


Viewer = Annotated[Identity, Depends(get_viewer)]


class PageRoute(APIRoute):
    """A route whose answer is a page: whatever happens inside, what leaves is HTML with the security headers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler inside this treatment."""
        handle = super().get_route_handler()

        async def page(request: Request) -> Response:
            try:
                response = await handle(request)
            except SignInNeededError:
                response = _to_sign_in(request)
            except (PlatformError, ConnectorError) as exc:
                response = problem_page(request, Problem.of(exc))
            except RequestValidationError as exc:
                response = problem_page(request, Problem.of(InvalidRequestError.of_fields(exc.errors())))
            except Exception as exc:  # noqa: BLE001 - a person gets a page, and the log the traceback
                _log.exception("%s %s failed", request.method, loggable(request.url.path), extra={"action": "page_failed"})
                response = problem_page(request, Problem.of(exc))
            for name, value in SECURITY_HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return page


def render(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """The template as a page. It sees ``context``, and ``viewer`` (an Identity or None), ``now``, ``path``, ``form_token``, ``theme``."""
    viewer = getattr(request.state, "viewer", None)
    sections = [s for s in NAVIGATION if viewer and viewer.role >= s.role]
    given = {
        "viewer": viewer,
        "now": datetime.now(UTC),
        "path": page_path(request),
        "sections": sections,
        "form_token": form_token(request),
        "theme": theme(request),
    }
    text = _environment().get_template(template).render(**given, **context)
    return HTMLResponse(text, status)


def form_token(request: Request) -> str:
    """What a form of ours must send back: derived from the session, whose cookie no script and no other site can read."""
    session = session_token(request)
    return hmac.new(session.encode(), b"irca-form", hashlib.sha256).hexdigest() if session else ""


def theme(request: Request) -> str:
    """What the viewer chose to look at: ``light`` or ``dark``; empty leaves it to the browser."""
    chosen = request.cookies.get(THEME_COOKIE, "")
    return chosen if chosen in THEMES else ""


def problem_page(request: Request, problem: Problem) -> HTMLResponse:
    """An error as a page."""
    page = render(request, "problem.html", problem.treatment.status, problem=problem)
    page.headers.update(SECURITY_HEADERS)
    return page


def page_path(request: Request) -> str:
    """Path and query of the page that is asked for."""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def local_path(target: str | None) -> str:
    """``target`` where it is a path of this site, else ``/``: nobody is sent elsewhere after signing in."""
    if not target or not target.startswith("/") or target[1:2] in ("/", "\\") or not target.isprintable():
        return "/"
    return target


def _to_sign_in(request: Request) -> Response:
    wanted = page_path(request) if request.method == "GET" else "/"
    target = "/sign-in" if wanted == "/" else "/sign-in?" + urllib.parse.urlencode({"next": wanted})
    if request.headers.get("hx-request") == "true":  # a redirect would be followed unseen and swapped into the page
        return HTMLResponse("", 401, {"HX-Redirect": target})
    return RedirectResponse(target, 303)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(version=__version__, static=_static_url)
    environment.filters.update(
        ago=formats.ago, instant=formats.instant, exact=formats.exact, compact_json=_compact_json, query=urllib.parse.urlencode
    )
    return environment


@lru_cache(maxsize=64)
def _static_url(name: str) -> str:
    """The URL of a static file; it changes with the content, so that a browser never runs the script of an older version."""
    path = static_directory() / name
    mark = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "missing"
    return f"/static/{name}?v={mark}"


def _compact_json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
