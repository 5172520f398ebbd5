"""The URL at which the platform renders an agent's objects: its query holds the options, never the token. Pure, and both directions."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

from connectors.core.errors import ConfigError
from connectors.kubernetes.artefacts import CHARTS_PATH, MANIFESTS_FILE
from connectors.kubernetes.config import K8sAgentConfig

_NOT_RENDERED = frozenset({"ca_file", "view"})
"""Options that mean nothing to a rendered object."""


def manifests_url(platform_url: str, config: K8sAgentConfig) -> str:
    """Where ``platform_url`` renders the objects of ``config``."""
    texts = {name: _as_text(value) for name, value in config.explicit("deploy").items()}
    texts |= {name: text for variable, text in config.environment().items() if (name := variable.lower()) not in _NOT_RENDERED}
    query = urllib.parse.urlencode(texts, quote_via=urllib.parse.quote, safe=",/:@=")
    return f"{platform_url}{CHARTS_PATH}/{MANIFESTS_FILE}" + (f"?{query}" if query else "")


def config_of(query: Mapping[str, str]) -> K8sAgentConfig:
    """The configuration that the parameters of such a URL describe.

    Raises:
        ConfigError: a parameter is no option that can be rendered, or its value does not fit; ``field`` names it.
    """
    options = K8sAgentConfig.options()
    runtime: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, text in query.items():
        known = options.get(name)
        if known is None or name in _NOT_RENDERED:
            names = ", ".join(sorted(options.keys() - _NOT_RENDERED))
            raise ConfigError(f"{name} is not an option of the manifests; there are {names}", field=name)
        if known.scope == "runtime":
            runtime[known.variable] = text
        else:
            values[name] = _from_text(name, known.default, text)
    return K8sAgentConfig.from_environment(runtime, config=values)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _from_text(name: str, default: Any, text: str) -> Any:
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ConfigError(f"{name} must be true or false, not {text!r}", field=name)
        return text == "true"
    if isinstance(default, int):
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{name} must be a whole number, not {text!r}", field=name) from None
    return tuple(filter(None, text.split(","))) if isinstance(default, tuple) else text
