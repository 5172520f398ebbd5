"""The audit log: search and export. There is no way to change it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from app.api.dependencies import Cursor, IdentityDependency, Limit, PlatformDependency, require
from app.api.parameters import OfEnvironment
from app.audit.service import AuditFilter, AuditService
from app.audit.views import AuditEntry
from app.auth.service import Role
from app.errors import ForbiddenError
from app.events.views import Page

COLUMNS = tuple(AuditEntry.model_fields)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


async def everywhere(identity: IdentityDependency) -> None:
    """Refuse a key that is limited to some environments: the log tells of all of them."""
    if not identity.everywhere:
        raise ForbiddenError("the audit log tells of every environment, and this key is limited to some")


router = APIRouter(prefix="/api/v1", tags=["audit"], dependencies=[Depends(require(Role.ADMIN)), Depends(everywhere)])


def audit_filter(  # noqa: PLR0913, PLR0917 - one parameter for each filter of the API; FastAPI passes them by name
    actor_id: Annotated[str | None, Query(description="Id of the API key, or subject of the user.")] = None,
    action: Annotated[str | None, Query(description="Such as webhook.update.")] = None,
    target_kind: Annotated[str | None, Query(description="Such as agent, token or webhook.")] = None,
    target_id: Annotated[str | None, Query(description="Id of what was acted upon.")] = None,
    environment_name: OfEnvironment = None,
    outcome: Annotated[Literal["done", "refused"] | None, Query(description="Only acts that were done, or that were refused.")] = None,
    search: Annotated[str, Query(max_length=200, description="Looks in names, ids, addresses and reasons.")] = "",
    start: Annotated[datetime | None, Query(description="Entries since then.")] = None,
    end: Annotated[datetime | None, Query(description="Entries before then.")] = None,
) -> AuditFilter:
    """The filter that a request's parameters describe."""
    return AuditFilter(actor_id, action, target_kind, target_id, environment_name, outcome, search, start, end)


Wanted = Annotated[AuditFilter, Depends(audit_filter)]
ExportFormat = Annotated[Literal["ndjson", "csv"], Query(description="One JSON object a line, or CSV after a line of names.")]


@router.get("/audit")
async def list_audit(platform: PlatformDependency, wanted: Wanted, cursor: Cursor = None, limit: Limit = 50) -> Page[AuditEntry]:
    """What was done, newest first."""
    return await platform.audit.list_entries(wanted, cursor, limit)


@router.get(
    "/audit/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}, "text/csv": {}}, "description": "Every entry that meets the filter."}},
)
async def export_audit(platform: PlatformDependency, wanted: Wanted, format: ExportFormat = "ndjson") -> StreamingResponse:  # noqa: A002 - the parameter's name in the URL
    """Every entry that meets the filter, newest first: one JSON object a line, or CSV with the JSON of states in a cell."""
    first = await platform.audit.list_entries(wanted, None, 1)  # a filter that cannot be used is refused before anything is sent
    lines = ndjson_lines if format == "ndjson" else csv_lines
    kind = "application/x-ndjson" if format == "ndjson" else "text/csv; charset=utf-8"
    name = f"audit.{format}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(lines(platform.audit, wanted) if first.items else _nothing(format), media_type=kind, headers=headers)


async def ndjson_lines(audit: AuditService, wanted: AuditFilter) -> AsyncIterator[str]:
    """The entries, one JSON object a line."""
    async for entry in audit.export(wanted):
        yield entry.model_dump_json() + "\n"


async def csv_lines(audit: AuditService, wanted: AuditFilter) -> AsyncIterator[str]:
    """The entries as CSV, after a line of names. What a spreadsheet would take for a formula begins with an apostrophe."""
    yield _csv_line(COLUMNS)
    async for entry in audit.export(wanted):
        values = entry.model_dump(mode="json")
        yield _csv_line([_cell(values[name]) for name in COLUMNS])


async def _nothing(format: str) -> AsyncIterator[str]:  # noqa: A002 - as in export_audit
    if format == "csv":
        yield _csv_line(COLUMNS)


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return "'" + text if text.startswith(_FORMULA) else text


def _csv_line(cells: list[str] | tuple[str, ...]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()
