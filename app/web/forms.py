"""Forms of our pages: who may send one, and what it holds.

A form changes things, so it must come from a page of ours: by what the browser says of its origin, and by the token that the page carried
(``form_token`` in templates), which is derived from the session and known to no other site.
"""

from __future__ import annotations

import hmac
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request

from app.audit.records import Actor
from app.auth.service import Identity, Role
from app.errors import BodyTooLargeError, ForbiddenError
from app.platform import Platform
from app.web.rendering import form_token

TOKEN_FIELD = "form_token"  # noqa: S105 - a field's name
_MAX_FORM_BYTES = 262_144
_MAX_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class Form:
    """What a form sent: every value of every field, in order."""

    values: Mapping[str, Sequence[str]]

    def text(self, name: str, default: str = "") -> str:
        """The last value of a field, without white space around it."""
        return self.values.get(name, [default])[-1].strip()

    def words(self, name: str) -> list[str]:
        """The words of a field in which they stand one a line or separated by commas."""
        return [word.strip() for word in self.text(name).replace(",", "\n").splitlines() if word.strip()]

    def every(self, name: str) -> list[str]:
        """Every value of a field: of a row of checkboxes, of a list with several choices."""
        return list(self.values.get(name, []))

    def flag(self, name: str) -> bool:
        """Whether a checkbox is ticked."""
        return name in self.values


async def read_form(request: Request, limit: int = _MAX_FORM_BYTES) -> Form:
    """The form that a request carries, of at most ``limit`` bytes.

    Raises:
        BodyTooLargeError: it is larger than any that the pages send.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise BodyTooLargeError("the form is larger than any that the pages send")
    try:
        parsed = urllib.parse.parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as exc:
        raise BodyTooLargeError("the form has more fields than any that the pages send") from exc
    return Form(parsed)


async def submitted(request: Request, platform: Platform, viewer: Identity, role: Role) -> Form:
    """The form of somebody who is signed in and may send it.

    Raises:
        ForbiddenError: it comes from another site or from an earlier session, or ``viewer`` has a lesser role.
        BodyTooLargeError: as :func:`read_form`.
    """
    viewer.require(role)
    require_own_origin(request, platform)
    form = await read_form(request)
    expected = form_token(request)
    if not expected or not hmac.compare_digest(form.text(TOKEN_FIELD).encode(), expected.encode()):
        raise ForbiddenError("this form belongs to an earlier session: open the page again and repeat the change")
    return form


def require_own_origin(request: Request, platform: Platform) -> None:
    """Refuse what a browser says another site made it send; a client that says neither is no browser and has no cookie to abuse.

    Raises:
        ForbiddenError: the form was sent from another site.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = {request.headers.get("host", ""), urllib.parse.urlsplit(platform.settings.resolved_public_url()).netloc}
    from_own_page = site in ("same-origin", "none") if site is not None else origin is None or urllib.parse.urlsplit(origin).netloc in own
    if not from_own_page:
        raise ForbiddenError("this form was sent from another site; open the platform's own page and try again")


def actor_of(request: Request, viewer: Identity) -> Actor:
    """Who is signed in, for the audit log."""
    address = request.client.host if request.client else ""
    return viewer.actor(address, request.headers.get("user-agent", ""))
