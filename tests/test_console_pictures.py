"""The documentation's pictures of the console: one of every page, each of them shown somewhere."""

import re
from pathlib import Path

from page_registry import PAGES

DOCS = Path(__file__).parents[1] / "docs"
SHOWN = set(re.findall(r"images/([\w-]+)\.png", (DOCS / "console.md").read_text(encoding="utf-8")))


def test_every_page_has_its_picture_in_the_documentation():
    assert {page.name for page in PAGES} - SHOWN == set(), "take them with tools/screenshots.py and show them in docs/console.md"


def test_every_picture_that_is_shown_is_there_and_no_other():
    assert {path.stem for path in (DOCS / "images").glob("*.png")} == SHOWN
