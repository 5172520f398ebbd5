"""Commands that the documents show are ones that there are, with options that they have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from app.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("connectors/**/*.md")])
_ENDS = frozenset({"|", "||", "&&", ">", ";", "<"})


def shown() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                found += [
                    (str(page.relative_to(ROOT)), part) for part in re.findall(r"^incident-rca (?!-).*|\$\(incident-rca [^)|]*", line)
                ]
    return found


def words(text: str) -> list[str]:
    lexer = shlex.shlex(text.removeprefix("$("), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    split: list[str] = []
    for word in lexer:
        if word in _ENDS:
            break
        split.append(word)
    return split[1:]


def test_the_documents_show_commands():
    assert len(shown()) > 30


@pytest.mark.parametrize(("page", "text"), shown())
def test_a_documented_command_can_be_given_so(page: str, text: str):
    command, arguments = typer.main.get_command(app), words(text)
    context = command.make_context("incident-rca", [], resilient_parsing=True)
    while hasattr(command, "commands"):
        assert arguments[0] in command.commands, f"{page}: {text}"
        command = command.commands[arguments.pop(0)]
    made = command.make_context(command.name, arguments, parent=context)
    assert made.command is command
