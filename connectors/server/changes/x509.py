"""As much of X.509 as tells whose a certificate is and when it ends: a reader of DER, without a library. Pure functions."""

from __future__ import annotations

import base64
import binascii
import calendar
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_BLOCK: Final = re.compile(
    rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----\s+([A-Za-z0-9+/=\s]{1,200000})-----END (?:TRUSTED |X509 )?CERTIFICATE-----"
)
_SEQUENCE, _INTEGER, _OID, _UTC_TIME, _TIME, _VERSION, _SET = 0x30, 0x02, 0x06, 0x17, 0x18, 0xA0, 0x31
_COMMON_NAME, _ORGANIZATION = bytes.fromhex("550403"), bytes.fromhex("55040a")
_BMP_STRING: Final = 0x1E
_MOST: Final = 20
_LONG_FORM: Final = 0x80
_MOST_LENGTH_BYTES: Final = 4
_PIVOT: Final = 50
"""Two-digit years below it are of this century (RFC 5280)."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Whose a certificate is, who gave it, and when it ends (Unix seconds)."""

    subject: str
    issuer: str
    serial: str
    not_before: int
    not_after: int
    fingerprint: str


def certificates(content: bytes) -> list[Certificate]:
    """The certificates in a file's content, PEM or DER, in order; those that cannot be understood are left out."""
    found = []
    blocks = [match[1] for match in _BLOCK.finditer(content)][:_MOST]
    for block in blocks:
        try:
            found.append(parse(base64.b64decode(block)))
        except (ValueError, binascii.Error):
            continue
    if not blocks and content[:1] == bytes([_SEQUENCE]):
        with suppress(ValueError):
            found.append(parse(content))
    return found


def parse(der: bytes) -> Certificate:
    """A certificate's DER.

    Raises:
        ValueError: it is none.
    """
    tag, whole, _ = _read(der, 0)
    inner, body, _ = _read(whole, 0)
    if tag != _SEQUENCE or inner != _SEQUENCE:
        raise ValueError("it is no certificate")
    parts = list(_items(body))
    if parts and parts[0][0] == _VERSION:
        parts.pop(0)
    if len(parts) < 5 or parts[0][0] != _INTEGER or parts[3][0] != _SEQUENCE:  # noqa: PLR2004 - serial, algorithm, issuer, validity, subject
        raise ValueError("it is no certificate")
    times = [_time(kind, text) for kind, text in _items(parts[3][1])]
    if len(times) != 2:  # noqa: PLR2004 - from and until
        raise ValueError("it does not say how long it is valid")
    serial = parts[0][1].hex().lstrip("0") or "0"
    return Certificate(_name(parts[4][1]), _name(parts[2][1]), serial, times[0], times[1], hashlib.sha256(der).hexdigest())


def _read(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Tag and content of the element at ``at``, and where the next one begins."""
    if at + 2 > len(data):
        raise ValueError("it ends too early")
    tag, length = data[at], data[at + 1]
    at += 2
    if length >= _LONG_FORM:
        count = length - _LONG_FORM
        if not 0 < count <= _MOST_LENGTH_BYTES or at + count > len(data):
            raise ValueError("a length is wrong")
        length = int.from_bytes(data[at : at + count], "big")
        at += count
    if at + length > len(data):
        raise ValueError("it ends too early")
    return tag, data[at : at + length], at + length


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        tag, content, at = _read(data, at)
        yield tag, content


def _name(data: bytes) -> str:
    """The common name of a distinguished name, else its organisation."""
    names: dict[bytes, str] = {}
    for kind, part in _items(data):
        if kind != _SET:
            continue
        for _, pair in _items(part):
            items = list(_items(pair))
            if len(items) == 2 and items[0][0] == _OID:  # noqa: PLR2004 - a name and its value
                encoding = "utf-16-be" if items[1][0] == _BMP_STRING else "utf-8"
                names.setdefault(items[0][1], items[1][1].decode(encoding, "replace"))
    return (names.get(_COMMON_NAME) or names.get(_ORGANIZATION) or "")[:200]


def _time(kind: int, content: bytes) -> int:
    text = content.decode("ascii", "replace")
    if kind == _UTC_TIME and re.fullmatch(r"\d{12}Z", text):
        year = int(text[:2])
        text = f"{year + (2000 if year < _PIVOT else 1900)}{text[2:]}"
    elif kind != _TIME or not re.fullmatch(r"\d{14}Z", text):
        raise ValueError("a time is wrong")
    fields = [int(text[:4]), *(int(text[at : at + 2]) for at in range(4, 14, 2))]
    return calendar.timegm((fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], 0, 0, 0))
