"""Who is asking, and what that lets them do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from fnmatch import fnmatchcase

from app.audit.records import Actor, ActorKind
from app.errors import FieldError, ForbiddenError, InvalidRequestError

EVERYWHERE = ("*",)
"""Patterns of environments that leave out none."""


class Role(IntEnum):
    """What a key may do; each role may do all that a lesser one may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @classmethod
    def named(cls, name: str) -> Role:
        """The role of this name.

        Raises:
            InvalidRequestError: there is none.
        """
        try:
            return cls[name.upper()]
        except KeyError:
            known = ", ".join(r.name.lower() for r in cls)
            raise InvalidRequestError(f"unknown role {name!r}", errors=[FieldError("role", f"must be one of {known}")]) from None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is asking: an API key, directly or through a browser session, or a user of the OpenID provider.

    ``environments`` are patterns (``prod-*``) of names. ``subject`` is the user's at the provider, None for a key; ``key_id`` is
    ``oidc:<subject>`` then. ``expires_at`` is when the key or the session ends, None for never.
    """

    key_id: str
    name: str
    role: Role
    environments: tuple[str, ...] = EVERYWHERE
    subject: str | None = None
    expires_at: datetime | None = None

    def require(self, role: Role) -> None:
        """Do nothing, or raise ForbiddenError when the role is not enough."""
        if self.role < role:
            who = "user" if self.subject is not None else "key"
            raise ForbiddenError(f"this needs the role {role.name.lower()}; the {who} {self.name!r} has {self.role.name.lower()}")

    def sees(self, environment_name: str | None) -> bool:
        """Whether the role holds in this environment; what belongs to no environment (None) is seen by everybody."""
        if environment_name is None or self.environments == EVERYWHERE:
            return True
        return any(fnmatchcase(environment_name, pattern) for pattern in self.environments)

    @property
    def everywhere(self) -> bool:
        """Whether the role holds in every environment; what is not of one environment (groups, webhooks, keys) takes that to change."""
        return "*" in self.environments

    def actor(self, client_address: str = "", user_agent: str = "", *, kind: ActorKind = "session") -> Actor:
        """The same for the audit log: a user by their subject, anybody else as ``kind`` by the key."""
        if self.subject is not None:
            return Actor("user", self.subject, self.name, client_address, user_agent)
        return Actor(kind, self.key_id, self.name, client_address, user_agent)


def digest(text: str) -> bytes:
    """What is stored of a key's or token's text, and looked up."""
    return hashlib.sha256(text.encode()).digest()
