"""Who acts, on what, and what the log keeps of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ActorKind = Literal["api-key", "session", "user", "agent", "system", "anonymous"]
REDACTED = "**********"

_SECRET_NAMES = (
    "token",
    "secret",
    "password",
    "passwd",
    "credential",
    "private",
    "authorization",
    "cookie",
    "api_key",
    "apikey",
    "key_hash",
)
_SHOWN = frozenset({"token_id", "token_file", "existing_secret", "token_prefix", "secret_expires_at", "previous_secret_expires_at"})
"""Names that look secret and are not."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: an API key, a browser session of one, a user of the OIDC provider, an agent, the platform itself, or nobody known.

    ``id`` stays the same when ``name`` changes; ``client_address`` is the other end of the connection.
    """

    kind: ActorKind
    id: str
    name: str
    client_address: str = ""
    user_agent: str = ""

    def __str__(self) -> str:
        """The name."""
        return self.name


SYSTEM = Actor("system", "system", "the platform")
"""The platform acting by itself."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is acted on: ``kind`` is a noun of the API (agent, token, api-key, group, webhook …)."""

    kind: str
    id: str
    name: str = ""
    environment_name: str | None = None


def redacted(value: Any) -> Any:
    """``value`` with what stands under a name that tells of a secret replaced, in mappings of any depth."""
    if isinstance(value, Mapping):
        return {str(k): REDACTED if _is_secret(str(k)) and v not in (None, "", False) else redacted(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [redacted(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def changed(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The two states without the keys that are equal in both; one that is None stays None and leaves the other whole."""
    if before is None or after is None:
        return (None if before is None else dict(before)), (None if after is None else dict(after))
    missing = object()
    differing = {k for k in {*before, *after} if before.get(k, missing) != after.get(k, missing)}
    return {k: v for k, v in before.items() if k in differing}, {k: v for k, v in after.items() if k in differing}


def _is_secret(name: str) -> bool:
    lower = name.lower().replace("-", "_")
    return lower not in _SHOWN and any(part in lower for part in _SECRET_NAMES)
