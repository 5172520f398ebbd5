"""install/windows.ps1 without a Windows: its syntax, the commands that it names, and its signature check, put into Python line by line."""

from __future__ import annotations

import hashlib
import os
import re
import types
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_powershell
from hypothesis import given, settings
from hypothesis import strategies as st

import connectors.server
from app.releases.signing import SigningKey
from connectors.agent_factory import AgentFactory
from connectors.core import ed25519
from connectors.server.config import ServerConfig
from connectors.server.windows_service import SETTINGS_FILE

PATH = Path(connectors.server.__file__).with_name("install") / "windows.ps1"
SCRIPT = PATH.read_text(encoding="utf-8")

ALLOWED = {
    "ConvertFrom-Json",
    "ConvertTo-Json",
    "Copy-Item",
    "ForEach-Object",
    "Get-ChildItem",
    "Get-CimInstance",
    "Get-Content",
    "Get-Date",
    "Get-FileHash",
    "Get-Item",
    "Get-Service",
    "Invoke-CimMethod",
    "Invoke-RestMethod",
    "Invoke-WebRequest",
    "Join-Path",
    "Move-Item",
    "New-Item",
    "New-ItemProperty",
    "New-Object",
    "New-Service",
    "Out-String",
    "Read-Host",
    "Remove-Item",
    "Restart-Service",
    "Select-Object",
    "Set-Content",
    "Set-StrictMode",
    "Split-Path",
    "Start-Service",
    "Start-Sleep",
    "Stop-Service",
    "Test-Path",
    "Where-Object",
    "Write-Host",
    "Write-Warning",
}
"""Every command of Windows PowerShell 5.1 that the script may use."""


def nodes(kind: str, content: str = SCRIPT) -> list[tree_sitter.Node]:
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
    found, waiting = [], [parser.parse(content.encode()).root_node]
    while waiting:
        node = waiting.pop()
        if node.type == kind or (kind == "error" and (node.type == "ERROR" or node.is_missing)):
            found.append(node)
        waiting += reversed(node.children)
    return found


def texts(kind: str) -> list[str]:
    return [node.text.decode() for node in nodes(kind)]


def test_the_script_has_no_syntax_errors():
    assert [f"line {node.start_point[0] + 1}: {node.text[:60]!r}" for node in nodes("error")] == []
    assert nodes("error", "if ( {")  # the check itself sees some


def test_only_known_commands_are_named():
    own = set(texts("function_name"))
    assert set(texts("command_name")) <= ALLOWED | own
    assert own <= set(texts("command_name"))  # and nothing is defined that is never called
    assert not own & ALLOWED


def test_programs_are_run_in_one_place_and_by_their_full_path():
    assert texts("command_invokation_operator") == ["&"]
    assert "& $Program @Words" in SCRIPT
    given = set(re.findall(r"Invoke-(?:Program|Required) (\S+) ", SCRIPT)) - {"$Program"}
    assert given == {"$Did.Tar", "$Did.Icacls", "$Did.Sc", "$Did.Python", "$path", "$words[0]"}
    for program in ("tar", "icacls", "sc"):
        assert f"Join-Path $env:SystemRoot 'System32\\{program}.exe'" in SCRIPT


def test_nothing_is_evaluated_and_nothing_ends_the_callers_shell():
    code = "\n".join(line for line in SCRIPT.splitlines() if not line.lstrip().startswith("#"))
    for word in ("Invoke-Expression", "iex", "Add-Type", "scriptblock"):
        assert not re.search(rf"\b{re.escape(word)}\b", code, re.IGNORECASE), word
    assert not [text for text in texts("flow_control_statement") if text.lower().startswith("exit")]
    assert [node.text for node in nodes("flow_control_statement", "exit 1")] == [b"exit 1"]  # the check itself sees one
    assert "Tls12" in code
    assert "SkipCertificateCheck" not in code
    assert "ServerCertificateValidationCallback" not in code


def test_a_download_that_was_cut_off_does_nothing():
    last = SCRIPT.rstrip().splitlines()[-1]
    assert last.startswith("Invoke-IncidentRcaInstaller -Uninstall")
    statements = [node for node in nodes("program")[0].children[-1].children if node.type != "comment"]
    kinds = [node.type for node in statements if node.type != "param_block"]
    assert kinds == ["function_statement", "pipeline"]
    for share in (0.2, 0.5, 0.9):  # half a function is no function: PowerShell reads all of it before it runs any
        assert nodes("error", SCRIPT[: int(len(SCRIPT) * share)])


def test_the_script_survives_any_encoding():
    assert SCRIPT.isascii()
    assert "\t" not in SCRIPT


def test_the_script_knows_every_option_of_the_agent():
    listed = re.search(r"\$Options = '([^']+)'", SCRIPT)[1].split()
    options = ServerConfig.options().values()
    assert set(listed) == {option.variable for option in options if option.scope == "runtime"}


def test_the_script_and_the_service_agree_on_names():
    assert f"Join-Path $Did.Data '{SETTINGS_FILE}'" in SCRIPT
    assert "'logs\\agent.log'" in SCRIPT
    assert "@('service', $Did.Name, $Did.Data)" in SCRIPT


def test_the_token_is_in_one_file_that_others_cannot_read():
    uses = [line.strip() for line in SCRIPT.splitlines() if "$Did.Token)" in line or "$Did.Token " in line]
    assert not [line for line in uses if "Write-" in line or "Invoke-Required" in line or "New-Service" in line]
    assert "*S-1-5-18:F', '*S-1-5-32-544:F'" in SCRIPT
    assert SCRIPT.index("        Set-Permissions\n") < SCRIPT.index('GetBytes("$($Did.Token)')
    assert "AGENT_TOKEN" not in re.search(r"function Get-Settings \{.*?\n    \}", SCRIPT, re.DOTALL)[0].replace("AGENT_TOKEN_FILE", "")


@pytest.mark.parametrize("label", ["plain", "it's $(Get-Date) \u2019 `\" ;"])
def test_the_printed_commands_are_powershell_too(label):
    config = {"os": "windows", "service_name": "other", "labels": {"a": label}}
    agent = AgentFactory.create_agent("server", "https://platform.example.com", "t0ken", config)
    others = [text for _, text in agent.get_alternatives()]
    for text in (agent.get_deployment_command(), agent.get_uninstall_command(), agent.get_run_command(), *others):
        assert not nodes("error", text)
        named = {node.text.decode() for node in nodes("command_name", text)}
        assert named <= ALLOWED | {"Invoke-Expression", "Write-Error", "powershell", "incident-rca-agent"}


# The signature check.


class Number(int):
    """What the script uses of System.Numerics.BigInteger."""

    Sign = property(lambda self: (self > 0) - (self < 0))
    IsEven = property(lambda self: self % 2 == 0)
    IsZero = property(lambda self: self == 0)
    IsOne = property(lambda self: self == 1)


class BigInteger:
    Add = staticmethod(lambda a, b: Number(int(a) + int(b)))
    Subtract = staticmethod(lambda a, b: Number(int(a) - int(b)))
    Multiply = staticmethod(lambda a, b: Number(int(a) * int(b)))
    Pow = staticmethod(lambda a, b: Number(int(a) ** int(b)))
    Parse = staticmethod(Number)
    Compare = staticmethod(lambda a, b: (a > b) - (a < b))

    @staticmethod
    def Divide(a, b):  # noqa: N802 - its name there
        assert a >= 0  # .NET rounds to zero, Python down: alike only here
        assert b > 0
        return Number(int(a) // int(b))

    @staticmethod
    def Remainder(a, b):  # noqa: N802 - its name there
        assert b > 0
        return Number(abs(int(a)) % int(b) * (1 if a >= 0 else -1))  # the sign of the dividend, as .NET has it

    @staticmethod
    def ModPow(a, b, modulus):  # noqa: N802 - its name there
        assert a >= 0
        return Number(pow(int(a), int(b), int(modulus)))


def to_python(script: str) -> str:
    """The part of the script between its marks, as Python: every line has one of a few shapes, and a line of another fails."""
    begin, end = script.index("    $Two = "), script.index("    # The end of Ed25519.")
    lines, block = [], 0
    for raw in script[begin:end].splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line == "}":
            block -= 1
            continue
        if found := re.fullmatch(r"function ([\w-]+)\((.*)\) \{", line):
            lines.append("    " * block + f"def {found[1].replace('-', '_')}({found[2].replace('$', '')}):")
            block += 1
        elif found := re.fullmatch(r"(if|while) \((.*)\) \{", line):
            lines.append("    " * block + f"{found[1]} {expression(found[2])}:")
            block += 1
        elif found := re.fullmatch(r"return (.*)", line):
            lines.append("    " * block + f"return {expression(found[1])}")
        elif found := re.fullmatch(r"\$(\w+) = (.*)", line):
            lines.append("    " * block + f"{found[1]} = {expression(found[2])}")
        else:
            raise AssertionError(f"a line that this test cannot read: {line}")
    assert block == 0
    return "\n".join(lines)


def expression(text: str) -> str:
    if found := re.fullmatch(r"([A-Z]\w+-\w+) (.+)", text):  # a command with its arguments
        words = re.findall(r"\$\w+|\(\[bigint\]\d+\)", found[2])
        assert " ".join(words) == found[2]
        return f"{found[1].replace('-', '_')}({', '.join(map(expression, words))})"
    for pattern, by in (
        (r"\$null -eq \$(\w+)", r"\1 is None"),
        (r"@\((.*)\)$", r"[\1]"),
        (r"\[bigint\]::", "bigint."),
        (r"\[bigint\](\d+)", r"big(\1)"),
        (r"\$null\b", "None"),
        (r"\$false\b", "False"),
        (r"-not ", "not "),
        (r" -and ", " and "),
        (r" -ne ", " != "),
        (r" -eq ", " == "),
        (r" -ge ", " >= "),
        (r" -gt ", " > "),
        (r"\$(\w+)", r"\1"),
    ):
        text = re.sub(pattern, by, text)
    assert not re.search(r"[$@]|::| -\w", text), text
    return text


@pytest.fixture(scope="module")
def curve():
    module = types.ModuleType("curve")
    module.__dict__.update(bigint=BigInteger, big=Number)
    exec(compile(to_python(SCRIPT), "windows.ps1", "exec"), module.__dict__)
    return module


def accepts(curve, key, signature, message) -> bool:
    digest = hashlib.sha512(signature[:32] + key + message).digest()
    numbers = (Number(int.from_bytes(part, "little")) for part in (key, signature[:32], signature[32:], digest))
    return curve.Test_Signature(*numbers)


def test_the_constants_are_those_of_the_curve(curve):
    assert (curve.Prime, curve.Order, curve.CurveD) == (ed25519._P, ed25519._ORDER, ed25519._D)
    assert (curve.RootOfMinusOne, tuple(curve.Base)) == (ed25519._ROOT_OF_MINUS_ONE, ed25519._BASE)


@settings(max_examples=15, deadline=None, database=None)
@given(message=st.binary(max_size=300), spot=st.integers(0, 63), bit=st.integers(0, 7))
def test_a_signature_is_accepted_and_a_changed_one_refused(curve, message, spot, bit):
    key = SigningKey.generate()
    signature = key.sign(message)
    assert accepts(curve, key.public, signature, message)
    assert not accepts(curve, key.public, signature, message + b"x")
    assert not accepts(curve, SigningKey.generate().public, signature, message)
    changed = bytearray(signature)
    changed[spot] ^= 1 << bit
    assert not accepts(curve, key.public, bytes(changed), message)


def test_what_the_agent_refuses_the_script_refuses(curve):
    message, key = b"message", SigningKey.generate()
    signature = key.sign(message)
    scalar = int.from_bytes(signature[32:], "little") + ed25519._ORDER
    bad = [
        (key.public, signature[:32] + scalar.to_bytes(32, "little")),  # the same scalar, written another way
        ((1).to_bytes(32, "little"), signature),  # keys of small order, which would verify anything
        (bytes(32), signature),
        ((ed25519._P + 1).to_bytes(32, "little"), signature),  # no canonical encoding
        ((1 | 1 << 255).to_bytes(32, "little"), signature),
        (key.public, (2).to_bytes(32, "little") + signature[32:]),  # no point of the curve
        *((os.urandom(32), signature) for _ in range(4)),
    ]
    for public, signed in bad:
        assert not ed25519.verify(public, signed, message)
        assert not accepts(curve, public, signed, message)
