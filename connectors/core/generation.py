"""An agent at work under one configuration; another configuration means another generation, while the instance lives on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from connectors.core.collector import describe_failure
from connectors.core.errors import ConfigError, ConnectorError
from connectors.core.remote_config import Candidate, Trial
from connectors.core.runner import Failure, Runner
from connectors.core.telemetry import Attributes, CollectorResult, Event

if TYPE_CHECKING:
    from connectors.core.base_agent import BaseAgent
    from connectors.core.custom.intake import Intake, Source
    from connectors.core.ledger import Signal

PROVE_WITHIN = 60.0
"""Seconds, beyond what its slowest source may take, within which a new configuration must have proven itself."""
COLLECT = "collect"
CUSTOM = "custom/"

Loop = Callable[[threading.Event], None]


class Generation:
    """The loops of ``agent``: collecting, watching, and its sources of custom metrics.

    Args:
        agent: who works.
        candidate: the remote configuration that it is to prove; None where there is nothing to prove.
        environ: where the file of custom commands is named.
    """

    def __init__(self, agent: BaseAgent, candidate: Candidate | None, environ: Mapping[str, str]) -> None:
        self.agent = agent
        self.sources = custom_sources(agent, environ)
        self.stopping = threading.Event()
        self.candidate = candidate
        self._trial: Trial | None = None
        self._judged = False
        self._runner: Runner | None = None

    def start(
        self, loops: Iterable[tuple[str, Loop]], random: Callable[[], float], on_change: Callable[[str, str], None], now: float
    ) -> None:
        """Start its loops; ``now`` is monotonic, and a trial begins with it."""
        if self.candidate is not None:
            awaited = [COLLECT, *(CUSTOM + source.name for source in self.sources)]
            patience = PROVE_WITHIN + max((source.timeout for source in self.sources), default=0.0)
            self._trial = Trial(awaited, self.candidate.failing, now + patience)
        self._runner = Runner(self.stopping, random, on_change)
        for name, loop in loops:
            self._runner.add(name, loop)
        self._runner.start()

    def stop(self, within: float) -> list[str]:
        """Have its loops end, ``within`` seconds at most; the names of those that did not."""
        self.stopping.set()
        return self._runner.join(within) if self._runner else []

    def heard(self, part: str, results: Sequence[CollectorResult], reason: str = "") -> None:
        """A part of it has run, for the trial."""
        if self._trial is not None:
            self._trial.heard(part, results, reason)

    @property
    def failure(self) -> Failure | None:
        """The loop that died for good, if one did under a configuration that nobody is about to replace."""
        return self._runner.failure if self._runner and self._trial is None else None

    @property
    def alive(self) -> bool:
        """Whether every loop's thread is."""
        return self._runner is not None and self._runner.alive

    def verdict(self, now: float) -> str | None:
        """As :meth:`~connectors.core.remote_config.Trial.verdict`, once; None where there is nothing to prove (any more)."""
        if self._trial is None or self._runner is None or self._judged:
            return None
        failure = self._runner.failure
        verdict = f"{failure.loop}: {failure.reason}" if failure else self._trial.verdict(now)
        self._judged = verdict is not None
        if verdict == "":
            self._trial = None
        return verdict


def check_successor(agent: BaseAgent, environ: Mapping[str, str]) -> Callable[..., None]:
    """What refuses a configuration that an agent of this kind cannot work with, before it is tried.

    The check raises a ConfigError.
    """

    def check(config: object) -> None:
        try:
            successor = agent.successor(config)  # type: ignore[arg-type]  # of the agent's own class, which its type does not tell
            if is_custom(successor):
                from connectors.core.custom.assemble import make_sources  # noqa: PLC0415 - most agents have no custom metrics

                make_sources(successor.config, environ)
        except ConfigError:
            raise
        except ConnectorError as exc:
            raise ConfigError(exc.reason, field=exc.field) from exc
        except Exception as exc:  # a type's own code, under a configuration from afar, must not end the agent
            raise ConfigError(f"the agent cannot be made with it: {describe_failure(exc)}") from exc

    return check


def is_custom(agent: BaseAgent) -> bool:
    """Whether the agent's configuration asks for custom metrics."""
    config = agent.config
    return bool(config.custom_commands or config.custom_prometheus or config.custom_otlp_endpoint)


def custom_sources(agent: BaseAgent, environ: Mapping[str, str]) -> Sequence[Source]:
    """The agent's sources of custom metrics; each that cannot be made is one that fails with the reason."""
    if not is_custom(agent):
        return ()
    from connectors.core.custom.assemble import make_each_source  # noqa: PLC0415 - as above

    return make_each_source(agent.config, environ)


def make_intake(
    agent: BaseAgent,
    *,
    append: Callable[[Signal, bytes, int], None],
    tell: Callable[[Event], None],
    heard: Callable[[CollectorResult], None],
    resource: Callable[[], Attributes],
) -> Intake | None:
    """Where the sources of ``agent`` deliver to; None where it has none. The arguments are as in the intake's class."""
    if not is_custom(agent):
        return None
    from connectors.core.custom.intake import Intake, Limits  # noqa: PLC0415 - as above

    return Intake(Limits(agent.config.custom_max_series, agent.config.custom_max_bytes), append, tell, heard, resource)
