"""The pages of webhooks: endpoints, their forms, the delivery log, one delivery."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from app.auth.service import Identity, Role
from app.errors import FieldError, ForbiddenError, InvalidRequestError, PlatformError, Problem
from app.events.catalogue import CATALOGUE
from app.platform import Platform
from app.web.forms import Form, actor_of, submitted
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render
from app.webhooks.filters import WebhookFilters
from app.webhooks.payloads import TemplateName
from app.webhooks.service import EndpointSpec
from app.webhooks.views import DeliveryStatus, WebhookView

router = APIRouter(route_class=PageRoute, include_in_schema=False)

DELIVERIES_SHOWN = 50
SEVERITIES = ((9, "info and above"), (13, "warn and above"), (17, "error and above"))
TEMPLATES: dict[TemplateName, str] = {"standard": "Standard Webhooks", "slack": "Slack", "pagerduty": "PagerDuty"}


@router.get("/webhooks")
async def webhooks(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Every endpoint and how it fares."""
    _require_everywhere(viewer)
    return render(request, "webhooks.html", webhooks=await platform.webhooks.list_endpoints(), may_change=viewer.role >= Role.ADMIN)


@router.get("/webhooks/new")
async def new_webhook(request: Request, viewer: Viewer) -> Response:
    """The form for a new endpoint."""
    _require_everywhere(viewer)
    viewer.require(Role.ADMIN)
    return _form_page(request, None, EndpointSpec("", ""), None)


@router.post("/webhooks/new")
async def create_webhook(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Create an endpoint and show its secret, this once."""
    form = await _submitted(request, platform, viewer, Role.ADMIN)
    try:
        spec = _spec(form)
        made = await platform.webhooks.create(spec, actor_of(request, viewer))
    except PlatformError as exc:
        return _form_page(request, None, _draft(form), exc)
    return render(request, "webhook_secret.html", 201, webhook=made, rotated=False)


@router.get("/webhooks/{webhook_id}")
async def webhook(
    request: Request, platform: PlatformDependency, viewer: Viewer, webhook_id: str, status: str = "", cursor: str = ""
) -> Response:
    """One endpoint: how it fares, its filters, and the delivery log."""
    _require_everywhere(viewer)
    wanted = next((s for s in DeliveryStatus if s.value == status), None)
    found = await platform.webhooks.get(webhook_id)
    page = await platform.webhooks.list_deliveries(cursor or None, DELIVERIES_SHOWN, endpoint_id=webhook_id, status=wanted)
    filters = {"status": wanted.value} if wanted else {}
    return render(
        request,
        "webhook.html",
        webhook=found,
        deliveries=page.items,
        statuses=[s.value for s in DeliveryStatus],
        chosen=wanted.value if wanted else "",
        next_query={**filters, "cursor": page.next_cursor} if page.next_cursor else None,
        severity=dict(SEVERITIES).get(found.filters.min_severity, f"severity {found.filters.min_severity} and above"),
        shape=TEMPLATES[found.template],
        may_change=viewer.role >= Role.ADMIN,
        may_act=viewer.role >= Role.OPERATOR,
    )


@router.get("/webhooks/{webhook_id}/edit")
async def edit_webhook(request: Request, platform: PlatformDependency, viewer: Viewer, webhook_id: str) -> Response:
    """The form for changing an endpoint."""
    _require_everywhere(viewer)
    viewer.require(Role.ADMIN)
    found = await platform.webhooks.get(webhook_id)
    return _form_page(request, found, EndpointSpec(found.name, found.url, found.template, found.filters, found.enabled), None)


@router.post("/webhooks/{webhook_id}/edit")
async def update_webhook(request: Request, platform: PlatformDependency, viewer: Viewer, webhook_id: str) -> Response:
    """Change an endpoint."""
    form = await _submitted(request, platform, viewer, Role.ADMIN)
    found = await platform.webhooks.get(webhook_id)
    try:
        version = int(form.text("version")) if form.text("version").isdecimal() else None
        await platform.webhooks.update(webhook_id, _spec(form), actor_of(request, viewer), version)
    except PlatformError as exc:
        return _form_page(request, found, _draft(form), exc)
    return RedirectResponse(f"/webhooks/{webhook_id}", 303)


@router.post("/webhooks/{webhook_id}/rotate")
async def rotate(request: Request, platform: PlatformDependency, viewer: Viewer, webhook_id: str) -> Response:
    """Change the secret, with a day's overlap, and show it, this once."""
    await _submitted(request, platform, viewer, Role.ADMIN)
    made = await platform.webhooks.rotate(webhook_id, 86_400, actor_of(request, viewer))
    return render(request, "webhook_secret.html", webhook=made, rotated=True)


@router.post("/webhooks/{webhook_id}/delete")
async def delete_webhook(request: Request, platform: PlatformDependency, viewer: Viewer, webhook_id: str) -> Response:
    """Delete an endpoint."""
    await _submitted(request, platform, viewer, Role.ADMIN)
    await platform.webhooks.delete(webhook_id, actor_of(request, viewer))
    return RedirectResponse("/webhooks", 303)


@router.post("/webhooks/{webhook_id}/test")
async def test(request: Request, platform: PlatformDependency, viewer: Viewer, webhook_id: str) -> Response:
    """Send a test event, and show what comes of it."""
    await _submitted(request, platform, viewer, Role.OPERATOR)
    delivery = await platform.webhooks.test(webhook_id, actor_of(request, viewer))
    return RedirectResponse(f"/webhooks/{webhook_id}/deliveries/{delivery.id}", 303)


@router.post("/webhooks/{webhook_id}/replay")
async def replay(request: Request, platform: PlatformDependency, viewer: Viewer, webhook_id: str) -> Response:
    """Deliver again: the delivery that the form names, or every dead one."""
    form = await _submitted(request, platform, viewer, Role.OPERATOR)
    await platform.webhooks.replay(webhook_id, actor_of(request, viewer), delivery_id=form.text("delivery_id") or None)
    return RedirectResponse(f"/webhooks/{webhook_id}", 303)


@router.get("/webhooks/{webhook_id}/deliveries/{delivery_id}")
async def delivery(request: Request, platform: PlatformDependency, viewer: Viewer, webhook_id: str, delivery_id: str) -> Response:
    """One delivery: its message and every try."""
    _require_everywhere(viewer)
    found = await platform.webhooks.get_delivery(delivery_id)
    return render(
        request,
        "webhook_delivery.html",
        webhook=await platform.webhooks.get(webhook_id),
        delivery=found,
        message=json.dumps(found.message, indent=2, ensure_ascii=False),
        may_act=viewer.role >= Role.OPERATOR,
    )


async def _submitted(request: Request, platform: Platform, viewer: Identity, role: Role) -> Form:
    _require_everywhere(viewer)
    return await submitted(request, platform, viewer, role)


def _require_everywhere(viewer: Identity) -> None:
    if not viewer.everywhere:
        raise ForbiddenError("webhooks tell of every environment, and this key is limited to some")


def _form_page(request: Request, webhook: WebhookView | None, spec: EndpointSpec, error: PlatformError | None) -> Response:
    problem = Problem.of(error) if error else None
    return render(
        request,
        "webhook_form.html",
        problem.treatment.status if problem else 200,
        webhook=webhook,
        spec=spec,
        problem=problem,
        errors={e.field: e.message for e in error.errors} if error else {},
        event_types=sorted(CATALOGUE),
        severities=SEVERITIES,
        templates=TEMPLATES,
    )


def _draft(form: Form) -> EndpointSpec:
    """What the form says, as far as it can be shown again; never the routing key."""
    template: TemplateName = next((name for name in TEMPLATES if name == form.text("template")), "standard")
    severity = int(form.text("min_severity")) if form.text("min_severity").isdecimal() else 9
    filters = WebhookFilters.model_construct(
        event_types=form.words("event_types"), environments=form.words("environments"), groups=form.words("groups"), min_severity=severity
    )
    return EndpointSpec(form.text("name"), form.text("url"), template, filters, form.flag("enabled"))


def _spec(form: Form) -> EndpointSpec:
    draft = _draft(form)
    if not draft.name or len(draft.name) > 100:  # noqa: PLR2004 - what the API takes, too
        raise InvalidRequestError("the form is not complete", errors=[FieldError("name", "must have 1 to 100 characters")])
    try:
        filters = WebhookFilters.model_validate(draft.filters.model_dump())
    except ValidationError as exc:
        errors = [FieldError(str(e["loc"][0]), str(e["msg"])) for e in exc.errors()]
        raise InvalidRequestError("a filter is not valid", errors=errors) from exc
    return EndpointSpec(draft.name, draft.url, draft.template, filters, draft.enabled, form.text("routing_key"))
