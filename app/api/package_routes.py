"""The agent's packages and install scripts, for hosts that are about to get an agent or a new version of it.

Open to everybody: a host that is about to get its first agent has no key to show, and the files hold nothing but published code. What
makes them trustworthy is the manifest's signature, not who may fetch them.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Final

import anyio.to_thread
from fastapi import APIRouter, Header, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

import connectors.server
from app.api.dependencies import PlatformDependency
from app.errors import NotFoundError, StorageError
from app.releases.release import Release
from app.releases.signing import public_base64, public_pem
from connectors.core.package_manifest import MANIFEST_FILE, PACKAGES_PATH, PUBLIC_KEY_FILE, SIGNATURE_FILE

INSTALL_PATH: Final = "/install"
CHECKSUM_SUFFIX: Final = ".sha256"
VERSION_PLACEHOLDER: Final = "@IRCA_VERSION@"
PUBLIC_KEY_PLACEHOLDER: Final = "@IRCA_PUBLIC_KEY@"

router = APIRouter(tags=["packages"])

_SCRIPTS = {
    "linux.sh": "text/x-shellscript; charset=utf-8",
    "macos.sh": "text/x-shellscript; charset=utf-8",
    "windows.ps1": "text/plain; charset=utf-8",
}
_SHELF = Path(connectors.server.__file__).with_name("install")
_ASK_EACH_TIME = "no-cache"
_FOR_EVER = "public, max-age=31536000, immutable"
_JSON = "application/json"
_BYTES = "application/octet-stream"
_PEM = "application/x-pem-file"
_TEXT = "text/plain; charset=ascii"

IfNoneMatch = Annotated[str, Header(include_in_schema=False)]


@router.get(PACKAGES_PATH + "/{name}", response_class=Response)
@router.head(PACKAGES_PATH + "/{name}", include_in_schema=False)
async def current_release(
    name: Annotated[str, PathParameter(description="manifest.json, manifest.json.sig or public-key.pem.")],
    platform: PlatformDependency,
    request: Request,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """``manifest.json``, ``manifest.json.sig`` (64 bytes, Ed25519) or ``public-key.pem`` of the release that hosts are given; needs no key.

    Raises:
        NotFoundError: there is no such file, or nothing is published; the reason says what to do.
    """
    if name not in (MANIFEST_FILE, SIGNATURE_FILE, PUBLIC_KEY_FILE):
        raise NotFoundError(f"there is no {_shown(name)} here; there are {MANIFEST_FILE}, {SIGNATURE_FILE} and {PUBLIC_KEY_FILE}")
    content, media_type = _signed(await platform.packages.current(), name)
    return _answer(request, content, media_type, if_none_match)


@router.get(PACKAGES_PATH + "/{version}/{name}", response_class=FileResponse)
@router.head(PACKAGES_PATH + "/{version}/{name}", include_in_schema=False)
async def release_file(
    version: Annotated[str, PathParameter(description="Version of the release, such as 1.4.0.")],
    name: Annotated[str, PathParameter(description="A file that the release's manifest names, or one of its signed manifest.")],
    platform: PlatformDependency,
    request: Request,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """A file of the release of that version, or its signed manifest; needs no key, answers ranges and validators.

    Raises:
        NotFoundError: there is no such release, or no such file in it.
    """
    release = await platform.packages.find(version)
    if name in (MANIFEST_FILE, SIGNATURE_FILE, PUBLIC_KEY_FILE):
        return _answer(request, *_signed(release, name), if_none_match)  # a signature can be renewed
    file = release.manifest.file(name)
    if file is None:
        known = ", ".join(one.name for one in release.manifest.files)
        raise NotFoundError(f"release {release.version} has no file {_shown(name)}; it has {known}")
    # What a platform builds from a checkout changes with the code while the version stays.
    etag = f'"{file.sha256}"'
    headers = _headers(etag, _ASK_EACH_TIME if release.built_here else _FOR_EVER)
    if _matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    path = release.path(file)
    try:
        found = await anyio.to_thread.run_sync(os.stat, path)
    except OSError as exc:
        raise StorageError(f"{file.name} of release {release.version} cannot be read: {exc.strerror}") from exc
    return FileResponse(path, headers=headers, media_type="application/gzip", stat_result=found)


@router.get(INSTALL_PATH + "/{name}", response_class=Response)
@router.head(INSTALL_PATH + "/{name}", include_in_schema=False)
async def install_script(
    name: Annotated[str, PathParameter(description="linux.sh, macos.sh or windows.ps1; each also with .sha256 behind it.")],
    platform: PlatformDependency,
    request: Request,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """An install script, with the current version and the public key of its signature filled in, or its ``.sha256``; needs no key.

    Raises:
        NotFoundError: there is no such script, or no release that it could install.
    """
    script = name.removesuffix(CHECKSUM_SUFFIX)
    text = await anyio.to_thread.run_sync(_template, script) if script in _SCRIPTS else None
    if text is None:
        raise NotFoundError(f"there is no install script {_shown(name)}; there are {', '.join(_SCRIPTS)}, each also with {CHECKSUM_SUFFIX}")
    content = render(text, await platform.packages.current())
    if name == script:
        return _answer(request, content, _SCRIPTS[script], if_none_match)
    return _answer(request, f"{hashlib.sha256(content).hexdigest()}  {script}\n".encode("ascii"), _TEXT, if_none_match)


def render(template: bytes, release: Release) -> bytes:
    """An install script for this release: its version and its public key (base64 of the 32 raw bytes) in place of the placeholders."""
    filled = template.replace(VERSION_PLACEHOLDER.encode("ascii"), release.version.encode("ascii"))
    return filled.replace(PUBLIC_KEY_PLACEHOLDER.encode("ascii"), public_base64(release.public_key).encode("ascii"))


def _template(script: str) -> bytes | None:
    try:
        return (_SHELF / script).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StorageError(f"the install script {script} cannot be read: {exc.strerror}") from exc


def _signed(release: Release, name: str) -> tuple[bytes, str]:
    return {
        MANIFEST_FILE: (release.content, _JSON),
        SIGNATURE_FILE: (release.signature, _BYTES),
        PUBLIC_KEY_FILE: (public_pem(release.public_key), _PEM),
    }[name]


def _answer(request: Request, content: bytes, media_type: str, if_none_match: str) -> Response:
    """A small document that may change: with a validator, to be asked for each time."""
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    headers = _headers(etag, _ASK_EACH_TIME)
    if _matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(media_type=media_type, headers={**headers, "Content-Length": str(len(content))})
    return Response(content, media_type=media_type, headers=headers)


def _headers(etag: str, cache_control: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": cache_control, "X-Content-Type-Options": "nosniff"}


def _matches(if_none_match: str, etag: str) -> bool:
    candidates = [part.strip().removeprefix("W/") for part in if_none_match.split(",")]
    return "*" in candidates or etag in candidates


def _shown(name: str) -> str:
    return repr(name[:64])
