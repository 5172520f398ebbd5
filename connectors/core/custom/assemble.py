"""The sources of custom metrics that a configuration asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from connectors.core.agent_config import AgentConfig
from connectors.core.custom.intake import PeriodicSource, Source
from connectors.core.errors import CollectorError, ConfigError
from connectors.core.telemetry import Metric

OTLP = "otlp"
"""The name of the source that receives OTLP."""
_TRY_AGAIN = 60.0
_LARGEST_PORT = 65_535


def make_sources(config: AgentConfig, environ: Mapping[str, str] = os.environ) -> list[Source]:
    """The sources that ``config`` asks for; nothing is run, opened or reached yet.

    Raises:
        ConfigError: a command is not declared on the host, or an endpoint is not allowed.
    """
    makers = list(_makers(config, environ))
    names = [name for name, _ in makers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two sources of custom metrics have the name {twice[0]}", field="custom_commands")
    return [make() for _, make in makers]


def make_each_source(config: AgentConfig, environ: Mapping[str, str] = os.environ) -> list[Source]:
    """As :func:`make_sources`, but in place of a source that cannot be made one that fails with the reason."""
    sources: dict[str, Source] = {}
    for name, make in _makers(config, environ):
        try:
            source = make()
        except ConfigError as exc:
            source = PeriodicSource(name, _TRY_AGAIN, 0.0, partial(_fail, exc.reason))
        sources.setdefault(name, source)
    return list(sources.values())


def _makers(config: AgentConfig, environ: Mapping[str, str]) -> Iterator[tuple[str, Callable[[], Source]]]:
    for name in dict.fromkeys(config.custom_commands):
        yield name, partial(_make_command, name, environ)
    for name, url in config.custom_prometheus.items():
        yield name, partial(_make_scrape, name, url, config)
    if config.custom_otlp_endpoint:
        yield OTLP, partial(_make_receiver, config.custom_otlp_endpoint)


def _make_command(name: str, environ: Mapping[str, str]) -> Source:
    from connectors.core.custom.commands import (  # noqa: PLC0415 - only for who has commands
        commands_file,
        declared_commands,
        selected_command,
    )

    path = commands_file(environ)
    command = selected_command(name, declared_commands(path), path)
    from connectors.core.custom.exec import run_command  # noqa: PLC0415 - needs a POSIX system, as those that can declare are

    return PeriodicSource(name, command.interval, command.timeout, partial(run_command, command))


def _make_scrape(name: str, url: str, config: AgentConfig) -> Source:
    from connectors.core.custom.prometheus_scrape import checked_endpoint, scrape  # noqa: PLC0415 - only for who scrapes

    endpoint = checked_endpoint(url, config.custom_prometheus_hosts)
    timeout, labels = config.custom_timeout, config.custom_prometheus_labels
    return PeriodicSource(name, config.custom_interval, timeout, lambda _stopping: scrape(endpoint, timeout, labels))


def _make_receiver(address: str) -> Source:
    if int(address.rpartition(":")[2]) > _LARGEST_PORT:
        raise ConfigError(f"custom_otlp_endpoint must name a port up to {_LARGEST_PORT}, not {address!r}", field="custom_otlp_endpoint")
    from connectors.core.custom.otlp_receiver import OtlpReceiver  # noqa: PLC0415 - only for who receives

    return OtlpReceiver(address)


def _fail(reason: str, _stopping: object) -> Sequence[Metric]:
    raise CollectorError(reason)
