"""What the OpenID provider says of somebody, and the role that follows from it. Pure functions of claims and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.auth.identity import EVERYWHERE, Identity, Role
from app.errors import ForbiddenError
from app.settings import GrantedRole, Settings

_NAME_CLAIMS = ("name", "preferred_username", "email")
_MOST_SHOWN = 5


def claim_values(claims: Mapping[str, Any], path: str) -> list[str] | None:
    """The values of a claim: of that very name, else of the one that the dots in ``path`` lead to; None where there is none.

    One text is a list of one; what is neither text nor a list of texts has no values.
    """
    found: Any = claims.get(path)
    if path not in claims:
        found = claims
        for part in path.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return None
            found = found[part]
    if isinstance(found, str):
        return [found]
    return [value for value in found if isinstance(value, str)] if isinstance(found, Sequence) else []


def display_name(claims: Mapping[str, Any]) -> str:
    """What to call somebody: the first of name, preferred_username and email that is there, else the subject."""
    texts = (claims.get(claim) for claim in _NAME_CLAIMS)
    name = next((text.strip() for text in texts if isinstance(text, str) and text.strip()), str(claims["sub"]))
    return "".join(c if c.isprintable() else " " for c in name)[:255]


def identity_of(claims: Mapping[str, Any], settings: Settings) -> Identity:
    """The identity of whoever has these claims: their strongest role, in the environments of all values that grant it.

    Raises:
        ForbiddenError: nothing grants them a role.
    """
    subject, name = str(claims["sub"]), display_name(claims)
    values = claim_values(claims, settings.oidc_role_claim)
    granted = [settings.oidc_roles[value] for value in values or () if value in settings.oidc_roles]
    if not granted and settings.oidc_default_role:
        granted = [GrantedRole(role=settings.oidc_default_role)]
    if not granted:
        has = "is missing" if values is None else f"has {_listed(values)}"
        raise ForbiddenError(
            f"nothing grants {name} a role here: the claim {settings.oidc_role_claim} {has}, and IRCA_OIDC_ROLES names none"
        )
    role = max(Role.named(one.role) for one in granted)
    patterns = {pattern for one in granted if Role.named(one.role) is role for pattern in one.environments}
    environments = EVERYWHERE if "*" in patterns else tuple(sorted(patterns))
    return Identity(f"oidc:{subject}", name, role, environments, subject)


def _listed(values: Sequence[str]) -> str:
    if not values:
        return "no values"
    shown = ", ".join(repr(value[:60]) for value in values[:_MOST_SHOWN])
    return shown + (f" and {len(values) - _MOST_SHOWN} more" if len(values) > _MOST_SHOWN else "")
