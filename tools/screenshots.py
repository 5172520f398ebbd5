"""Takes the pictures of the documentation: every page of the console over a fleet that is always the same, into docs/images.

Run as ``.venv/bin/python tools/screenshots.py [NAME ...]``; it needs Chromium. Identifiers, figures and names follow from one seed; times
are told relative to a clock that stands still while the pictures are taken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from playwright.sync_api import Error  # noqa: E402 - the path above comes first

from app.auth.service import Role  # noqa: E402
from tests.page_registry import PAGES, Console, RegisteredPage, console  # noqa: E402

IMAGES = ROOT / "docs" / "images"
WIDE, PHONE = (1280, 800), (390, 844)
DARK = ("overview", "instance-server")
ON_A_PHONE = ("overview", "agents")
LARGEST = 200 * 1024


def picture(served: Console, page: RegisteredPage, suffix: str = "", theme: str = "light", size: tuple[int, int] = WIDE) -> Path:
    """Take one picture; where it is.

    Raises:
        ValueError: it is larger than pictures of the documentation may be.
    """
    context = served.context(None if page.role is None else Role.ADMIN, *size, theme=theme)
    try:
        tab = context.new_page()
        tab.goto(served.address(page))
        try:
            tab.wait_for_function(
                "[...document.querySelectorAll('.plot')].slice(0, 2).every(plot => plot.childElementCount)", timeout=5_000
            )
        except Error:
            print(f"{page.name}: a chart is not drawn", file=sys.stderr)
        path = IMAGES / f"{page.name}{suffix}.png"
        tab.screenshot(path=path, animations="disabled", caret="hide")
    finally:
        context.close()
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, more than {LARGEST}")
    return path


def main() -> None:
    """Take the pictures of all pages, or of those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="names of pages in tests/page_registry.py; all when none is given")
    wanted = set(parser.parse_args().names)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="irca-pictures-") as folder, console(Path(folder)) as served:
        for page in PAGES:
            if wanted and page.name not in wanted:
                continue
            picture(served, page)
            if page.name in DARK:
                picture(served, page, "-dark", "dark")
            if page.name in ON_A_PHONE:
                picture(served, page, "-phone", size=PHONE)


if __name__ == "__main__":
    main()
