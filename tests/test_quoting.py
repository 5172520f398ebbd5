from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.core.quoting import helm_key, helm_value, posix, posix_command, posix_lines, powershell

QUOTES = "'\u2018\u2019\u201a\u201b"
SHELLS = [shell for shell in ("bash", "sh") if shutil.which(shell)]

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
awkward = st.text(st.sampled_from("'\"\\$`!*?[]{}()<>|&;#~ \t\n\r=,%^" + QUOTES + "aé"), max_size=25)


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """A program that records its argv, NUL-separated, and how to read the record."""
    folder = tmp_path_factory.mktemp("stub")
    record = folder / "argv"
    program = folder / "record-argv"
    program.write_text(f"#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done > {posix(str(record))}\n")
    program.chmod(0o755)
    return program, record


def argv_of(shell: str, command: str, record: Path) -> list[str]:
    done = subprocess.run([shell, "-c", command], capture_output=True, timeout=30, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return record.read_bytes().decode().split("\0")[:-1]


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=40, deadline=None, database=None)
@given(arguments=st.lists(words | awkward, max_size=5))
@example(arguments=["", " ", "-n", "a'b", "$(false)", "`x`", "\\", "!", "~", "*", "a\nb", "é\u2019"])
def test_a_posix_shell_hands_on_exactly_the_words_that_were_quoted(stub, shell, arguments):
    program, record = stub
    assert argv_of(shell, posix_command([str(program), *arguments]), record) == arguments
    assert argv_of(shell, " ".join(map(posix, [str(program), *arguments])), record) == arguments


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=25, deadline=None, database=None)
@given(groups=st.lists(st.lists(words | awkward, max_size=3), max_size=4))
def test_a_command_over_several_lines_is_one_command(stub, shell, groups):
    program, record = stub
    assert argv_of(shell, posix_lines([[str(program)], *groups]), record) == [word for group in groups for word in group]


def read_powershell_literal(text: str) -> str:
    """What PowerShell's tokenizer makes of a verbatim string: it ends at a quote (of five kinds) that no second quote follows."""
    assert text[0] in QUOTES
    value, position = "", 1
    while True:
        character = text[position]
        if character in QUOTES:
            if position + 1 == len(text):
                return value
            assert text[position + 1] in QUOTES, f"the string ends early in {text!r}"
            position += 1
            character = text[position]
        value += character
        position += 1


@settings(max_examples=300, deadline=None, database=None)
@given(text=words | awkward)
@example(text="")
@example(text="'; Remove-Item -Recurse C:\\ #")
@example(text="\u2019; evil \u2018")
@example(text="$env:PATH `n $(1)")
def test_a_powershell_literal_reads_back_as_the_text(text):
    assert read_powershell_literal(powershell(text)) == text


def read_helm_set(text: str) -> tuple[list[str], str]:
    """Key segments and value of one ``helm --set-string key=value``, by its own escaping."""
    key, value = re.fullmatch(r"((?:[^\\=]|\\.)*)=(.*)", text, re.DOTALL).groups()
    segments = re.findall(r"((?:[^\\.]|\\.)*)(?:\.|$)", key, re.DOTALL)[: len(re.split(r"(?<!\\)(?:\\\\)*\.", key))]
    assert not re.search(r"(?<!\\)(?:\\\\)*[,{}]", value), f"{value!r} would be split"
    unescape = lambda part: re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL)  # noqa: E731 - as short as it is
    return [unescape(segment) for segment in segments], unescape(value)


@settings(max_examples=200, deadline=None, database=None)
@given(segments=st.lists(st.text(st.sampled_from("ab.,=[]{}/-_"), min_size=1, max_size=8), min_size=1, max_size=3), value=awkward)
def test_a_helm_setting_reads_back_as_key_and_value(segments, value):
    assert read_helm_set(f"{helm_key(segments)}={helm_value(value)}") == (segments, value)
