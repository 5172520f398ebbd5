"""Deployment artefacts as files: the docker agent's build context and image, each with its checksum.

Open to everybody: a Docker host that is about to get its first agent has no key to show, ``docker build URL`` cannot send one, and
the files hold nothing but published code. They tell no more about the platform than its version, which ``/healthz`` tells as well.
"""

from __future__ import annotations

import os
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import FileResponse

from app.api.dependencies import PlatformDependency
from app.errors import NotFoundError
from connectors.docker.artefacts import ARTEFACT_PATH, BUILD_COMMAND, CHECKSUM_SUFFIX, CONTEXT_COMMAND, CONTEXT_FILE, IMAGE_FILE

router = APIRouter(tags=["artefacts"])

_MADE_BY = {CONTEXT_FILE: CONTEXT_COMMAND, IMAGE_FILE: BUILD_COMMAND}


@router.get(ARTEFACT_PATH + "/{name}", response_class=FileResponse)
@router.head(ARTEFACT_PATH + "/{name}", include_in_schema=False)
async def docker_artefact(
    name: Annotated[str, Path(description="context.tar.gz or image.tar.gz; each also with .sha256 behind it.")],
    platform: PlatformDependency,
    if_none_match: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """The docker agent's ``context.tar.gz`` or ``image.tar.gz``, or its ``.sha256``; needs no key, answers ranges and validators.

    Raises:
        NotFoundError: there is no such artefact, or nobody has made it yet; the reason says how.
    """
    made_by = _MADE_BY.get(name.removesuffix(CHECKSUM_SUFFIX))
    if made_by is None:
        raise NotFoundError(f"there is no artefact {name!r}; there are {', '.join(_MADE_BY)}, each also with {CHECKSUM_SUFFIX}")
    path = platform.settings.data_dir / ARTEFACT_PATH.strip("/") / name
    try:
        found = await anyio.to_thread.run_sync(os.stat, path)
    except OSError as exc:
        raise NotFoundError(f"{name} has not been made yet: run `{made_by}` on the platform's machine, with its data directory") from exc
    etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
    # The files keep their names when they are made anew, so a cache has to ask each time.
    headers = {"ETag": etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if _matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    media_type = "text/plain; charset=ascii" if name.endswith(CHECKSUM_SUFFIX) else "application/gzip"
    return FileResponse(path, headers=headers, media_type=media_type, stat_result=found)


def _matches(if_none_match: str, etag: str) -> bool:
    candidates = [part.strip().removeprefix("W/") for part in if_none_match.split(",")]
    return "*" in candidates or etag in candidates
