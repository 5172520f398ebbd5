"""Where deliveries may go. A webhook must not become a way into the platform's own network (server-side request forgery).

The name is resolved here and the connection made to an address that was looked at, so that a name which changes its address between
the two (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence

from app.errors import FieldError, InvalidRequestError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_MOST_URL = 2000
_SHARED = ipaddress.ip_network("100.64.0.0/10")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefusedError(Exception):
    """The endpoint's address is not one that deliveries may go to; the message says which and why."""


def check_url(url: str) -> urllib.parse.SplitResult:
    """The parts of an endpoint's URL.

    Raises:
        InvalidRequestError: it is not an http or https URL with a host and without credentials or fragment.
    """
    reason = ""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            reason = "must look like https://receiver.example.com/path"
        elif parts.username or parts.password or parts.fragment:
            reason = "must not hold credentials or a fragment"
        elif parts.port == 0 or len(url) > _MOST_URL or any(c.isspace() or not c.isprintable() for c in url):
            reason = "is not a usable URL"
    except ValueError as exc:
        reason = f"is not a URL: {exc}"
    if reason:
        raise InvalidRequestError("the URL cannot be used", errors=[FieldError("url", reason)])
    return parts


def parse_networks(text: str) -> list[Network]:
    """Networks in CIDR form, separated by commas or spaces.

    Raises:
        ValueError: one of them is none.
    """
    return [ipaddress.ip_network(word, strict=False) for word in text.replace(",", " ").split()]


def refusal(address: Address, allowed: Sequence[Network]) -> str:
    """Why deliveries may not go to ``address``; empty when they may."""
    real = _embedded(address)
    if any(candidate in network for candidate in {address, real} for network in allowed if network.version == candidate.version):
        return ""
    kinds = (
        (real.is_loopback, "this machine itself"),
        (real.is_link_local, "link-local, where clouds keep their metadata"),
        (real.is_multicast, "multicast"),
        (real.is_unspecified, "no address"),
        (real.version == _SHARED.version and real in _SHARED, "shared by providers (100.64.0.0/10)"),
        (real.is_private, "private"),
        (real.is_reserved or not real.is_global, "reserved"),
    )
    kind = next((name for found, name in kinds if found), "")
    return f"{address} is {kind}; IRCA_WEBHOOK_ALLOWED_NETWORKS can allow it" if kind else ""


async def allowed_address(host: str, port: int, allowed: Sequence[Network], resolve: Resolve | None = None) -> str:
    """An address of ``host`` that deliveries may go to. All of its addresses must be allowed: which one would be used is chance.

    Raises:
        AddressRefusedError: one of them is not.
        OSError: the name cannot be resolved.
    """
    found = [ipaddress.ip_address(text.partition("%")[0]) for text in await (resolve or _resolve)(host, port)]
    if not found:
        raise OSError(f"{host} has no address")
    for address in found:
        if reason := refusal(address, allowed):
            raise AddressRefusedError(reason if str(address) == host else f"{host} leads to {reason}")
    return str(found[0])


def _embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv6 address of a transition mechanism; else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address.sixtofour:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


async def _resolve(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
