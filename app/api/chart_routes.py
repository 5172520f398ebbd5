"""The chart repository for Helm, and the same objects rendered for ``kubectl apply``.

Open to everybody: Helm is given no key, and what is served is published code and the platform's own address. No token is in any of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Annotated

import anyio.to_thread
import yaml
from fastapi import APIRouter, Header, Path, Query, Request, Response

from app.api.chart_repository import ChartRepository
from app.api.dependencies import PlatformDependency
from app.errors import FieldError, InvalidRequestError
from connectors.core.errors import ConfigError
from connectors.kubernetes.artefacts import CHARTS_PATH, INDEX_FILE, MANIFESTS_FILE, PROVENANCE_SUFFIX
from connectors.kubernetes.manifest_url import config_of
from connectors.kubernetes.manifests import manifests

router = APIRouter(prefix=CHARTS_PATH, tags=["charts"])

PackageFile = Annotated[str, Path(description="Name of a chart's package, <name>-<version>.tgz, or with .prov behind it.")]
IfNoneMatch = Annotated[str, Header(include_in_schema=False)]
_ASK_EACH_TIME = "no-cache"
_NEVER_CHANGES = "public, max-age=31536000, immutable"
_VERSION = re.compile(r"v?(\d+)\.(\d+)(\.\d+.*)?")


def _repository(request: Request, platform: PlatformDependency) -> ChartRepository:
    """The application's one repository, so that what it read is read once."""
    state = request.app.state
    if not hasattr(state, "chart_repository"):
        state.chart_repository = ChartRepository(platform.settings.data_dir / "artefacts" / "charts")
    repository: ChartRepository = state.chart_repository
    return repository


@router.get(f"/{INDEX_FILE}", response_class=Response)
@router.head(f"/{INDEX_FILE}", include_in_schema=False)
async def index(request: Request, platform: PlatformDependency, if_none_match: IfNoneMatch = "") -> Response:
    """Helm's index of the charts, with digests; needs no key."""
    return await _answer(_repository(request, platform).index, if_none_match, "application/yaml", _ASK_EACH_TIME)


@router.get(f"/{MANIFESTS_FILE}", response_class=Response)
@router.head(f"/{MANIFESTS_FILE}", include_in_schema=False)
async def rendered(
    request: Request,
    kubernetes: Annotated[str, Query(description="The cluster's version, where it is older than 1.21.", examples=["1.20"])] = "1.21",
    if_none_match: IfNoneMatch = "",
) -> Response:
    """The kubernetes agent's objects for ``kubectl apply``, without the token; further parameters are options of the type.

    Raises:
        InvalidRequestError: a parameter is no option, or its value does not fit.
    """
    version = _VERSION.fullmatch(kubernetes)
    if version is None:
        raise _refused("kubernetes", f"kubernetes must be a version such as 1.20, not {kubernetes!r}")
    try:
        config = config_of({name: text for name, text in request.query_params.items() if name != "kubernetes"})
    except ConfigError as exc:
        raise _refused(exc.field or "query", exc.reason) from exc
    objects = manifests(request.app.state.agent_platform_url, config, kubernetes=(int(version[1]), int(version[2])))
    text = yaml.safe_dump_all(objects, sort_keys=False, width=1000, allow_unicode=True)
    return await _answer(text.encode, if_none_match, "application/yaml", _ASK_EACH_TIME)


@router.get("/{file}", response_class=Response)
@router.head("/{file}", include_in_schema=False)
async def package(file: PackageFile, request: Request, platform: PlatformDependency, if_none_match: IfNoneMatch = "") -> Response:
    """A chart's package ``<name>-<version>.tgz``, or its provenance ``….tgz.prov`` where it is signed; needs no key.

    Raises:
        NotFoundError: there is no such package, or no provenance for it.
    """
    repository = _repository(request, platform)
    if file.endswith(PROVENANCE_SUFFIX):
        signed = file.removesuffix(PROVENANCE_SUFFIX)
        return await _answer(lambda: repository.provenance(signed), if_none_match, "text/plain; charset=utf-8", _ASK_EACH_TIME)
    return await _answer(lambda: repository.package(file), if_none_match, "application/gzip", _NEVER_CHANGES)


async def _answer(read: Callable[[], bytes], if_none_match: str, media_type: str, cache_control: str) -> Response:
    content = await anyio.to_thread.run_sync(read)
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": cache_control, "X-Content-Type-Options": "nosniff"}
    known = [part.strip().removeprefix("W/") for part in if_none_match.split(",")]
    if "*" in known or etag in known:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)


def _refused(field: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError("the manifests cannot be rendered", errors=[FieldError(field, reason)])
