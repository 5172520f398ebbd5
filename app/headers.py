"""Headers by which browsers treat what the platform sends: one place for pages, answers of the API, and static files."""

from __future__ import annotations

from collections.abc import Mapping

COMMON: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": (
        "accelerometer=(), autoplay=(), camera=(), display-capture=(), fullscreen=(self), geolocation=(), gyroscope=(), magnetometer=(), "
        "microphone=(), midi=(), payment=(), screen-wake-lock=(), usb=(), xr-spatial-tracking=()"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer."""

PAGE_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
        "manifest-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    **COMMON,
    "Cache-Control": "no-store",
}
"""Headers of every page, errors and redirects included."""

API_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    **COMMON,
    "Cache-Control": "no-store",
}
"""Headers of every other answer; what a route has set itself stays."""

STATIC_HEADERS: Mapping[str, str] = {name: value for name, value in API_HEADERS.items() if name != "Cache-Control"}
"""Headers of static files, whose URLs change with their content: browsers may keep them."""

HOT_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
"""All that agents are sent, who are no browsers and come often."""

TRANSPORT_SECURITY = "max-age=31536000"
"""Of ``Strict-Transport-Security`` under TLS: a year, for this host alone."""
