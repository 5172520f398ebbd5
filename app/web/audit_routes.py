"""The page of the audit log."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from app.audit.service import AuditFilter
from app.auth.service import Role
from app.errors import ForbiddenError
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ENTRIES_SHOWN = 50


@router.get("/audit")
async def audit(  # noqa: PLR0913, PLR0917 - one parameter for each filter; FastAPI passes them by name
    request: Request,
    platform: PlatformDependency,
    viewer: Viewer,
    search: str = "",
    action: str = "",
    outcome: str = "",
    environment_name: str = "",
    day: str = "",
    cursor: str = "",
) -> Response:
    """What was done, newest first. A day that is none is no filter."""
    viewer.require(Role.ADMIN)
    if not viewer.everywhere:
        raise ForbiddenError("the audit log tells of every environment, and this key is limited to some")
    end = _end_of(day)
    outcome = outcome if outcome in ("done", "refused") else ""
    wanted = AuditFilter(
        action=action.strip() or None,
        environment_name=environment_name.strip() or None,
        outcome=outcome or None,
        search=search.strip(),
        end=end,
    )
    page = await platform.audit.list_entries(wanted, cursor or None, ENTRIES_SHOWN)
    given = {
        "search": search.strip(),
        "action": action.strip(),
        "outcome": outcome,
        "environment_name": environment_name.strip(),
        "day": day if end else "",
    }
    filters = {name: value for name, value in given.items() if value}
    exported = {name: value for name, value in filters.items() if name != "day"} | ({"end": end.isoformat()} if end else {})
    return render(
        request,
        "audit.html",
        entries=page.items,
        given=given,
        filtered=bool(filters),
        export_query=exported,
        next_query={**filters, "cursor": page.next_cursor} if page.next_cursor else None,
    )


def _end_of(day: str) -> datetime | None:
    """The end of a day (``2026-11-22``) in UTC."""
    try:
        return datetime.fromisoformat(day).replace(hour=23, minute=59, second=59, microsecond=999_999, tzinfo=UTC) if day else None
    except ValueError:
        return None
