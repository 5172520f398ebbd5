"""The Homebrew tap as git's plain ("dumb") HTTP protocol wants it: files. Open to everybody, as the packages are."""

from __future__ import annotations

import re
import time
from typing import Annotated, Final

import anyio.to_thread
from fastapi import APIRouter, Path, Request, Response

from app.api.dependencies import PlatformDependency
from app.api.package_routes import INSTALL_PATH
from app.errors import NotFoundError
from app.platform import Platform
from app.releases.tap import DIRECTORY, INFO_REFS, TapRepository, tap_files

TAP_PATH: Final = f"{INSTALL_PATH}/{DIRECTORY}"

TapPath = Annotated[str, Path(description="Path in the bare git repository, such as info/refs or HEAD.")]

router = APIRouter(tags=["packages"])

_OBJECT = re.compile(r"objects/[0-9a-f]{2}/.*")


@router.get(TAP_PATH + "/{path:path}", response_class=Response)
@router.head(TAP_PATH + "/{path:path}", include_in_schema=False)
async def tap_file(path: TapPath, platform: PlatformDependency, request: Request) -> Response:
    """A file of the Homebrew tap, which ``brew tap`` clones with git; needs no key.

    Raises:
        NotFoundError: there is no such file, or no release for macOS was ever published here; the reason says what to do.
    """
    repository = TapRepository(platform.settings.data_dir / DIRECTORY)
    if path == INFO_REFS:  # what every clone and fetch begins with
        await _offer(repository, platform, request.app.state.agent_platform_url)
    content = await anyio.to_thread.run_sync(repository.read, path)
    is_object = _OBJECT.fullmatch(path)
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if is_object else "no-cache",
        "Content-Length": str(len(content)),
        "X-Content-Type-Options": "nosniff",
    }
    media_type = "application/x-git-loose-object" if is_object else "text/plain; charset=ascii"
    return Response(b"" if request.method == "HEAD" else content, media_type=media_type, headers=headers)


async def _offer(repository: TapRepository, platform: Platform, platform_url: str) -> None:
    """Make what the current release has for macOS the tap's last commit; one without leaves the tap as it is, if there is any."""
    try:
        release = await platform.packages.current()
        files = tap_files(release, platform_url, time.time())
    except NotFoundError:
        if not await anyio.to_thread.run_sync(lambda: repository.exists):
            raise
        return
    message = f"incident-rca-agent {release.version}"
    await anyio.to_thread.run_sync(lambda: repository.record(files, message=message, time=int(release.manifest.created)))
