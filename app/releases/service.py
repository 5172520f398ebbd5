"""Releases for those who ask the running platform: read once, verified once, off the event loop, and again when the disk changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from app.errors import NotFoundError, ReleaseError
from app.releases.release import Release
from app.releases.repository import SELF_BUILT_LIFE, PackageRepository, describe

_log = logging.getLogger(__name__)
_MOST_HELD = 16


class PackageService:
    """What routes ask for releases of the agent."""

    def __init__(self, repository: PackageRepository, clock: Callable[[], float]) -> None:
        self.repository = repository
        self._clock = clock
        self._lock = asyncio.Lock()
        self._state: object = None
        self._held: dict[str, Release] = {}
        self._refusal = ""

    async def current(self) -> Release:
        """The release that hosts are given. The first call may build it, which takes less than a second.

        Raises:
            NotFoundError: there is none, and none can be built; the reason says what to do.
            ReleaseError: what is published cannot be verified.
        """
        return await self._get("")

    async def find(self, version: str) -> Release:
        """The release of that version.

        Raises:
            NotFoundError: there is none.
            ReleaseError: it cannot be verified.
        """
        return await self._get(version)

    async def _get(self, version: str) -> Release:
        async with self._lock:  # two who ask first must not build the same at once
            state = await asyncio.to_thread(self.repository.state)
            held = self._held.get(version) if state == self._state else None
            if held is not None and not self._due(held):
                return held
            try:
                found = await asyncio.to_thread(self.repository.find if version else _current(self.repository), version)
            except (NotFoundError, ReleaseError) as exc:
                if not version and exc.reason != self._refusal:
                    _log.warning("no package for hosts: %s", exc.reason, extra={"action": "package_missing"})
                    self._refusal = exc.reason
                raise
            # Building changes the directory, so the state is that of before: what changed in between is then looked at once more.
            if state != self._state or len(self._held) >= _MOST_HELD:
                self._held.clear()
            self._state = state
            self._held[version] = found
            if not version:
                self._refusal = ""
                self._tell(found)
            return found

    def _due(self, held: Release) -> bool:
        return held.built_here and held.manifest.expires - self._clock() < SELF_BUILT_LIFE / 2

    def _tell(self, found: Release) -> None:
        log = _log.warning if found.manifest.expires < self._clock() else _log.info
        origin = "built here and signed with this platform's own key" if found.built_here else "published"
        log("packages for hosts: %s (%s)", describe(found.manifest), origin, extra={"action": "package_current", "version": found.version})


def _current(repository: PackageRepository) -> Callable[[str], Release]:
    return lambda _: repository.current()
