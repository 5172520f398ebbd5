"""BaseAgent: what every agent type shares.

An agent has two faces. *Control* works from anywhere: :meth:`~BaseAgent.start`, :meth:`~BaseAgent.stop` and
:meth:`~BaseAgent.get_deployment_command` act on, or describe, an agent deployed in somebody's environment. *Runtime* works inside
that environment: :meth:`~BaseAgent.collect_metrics`, :meth:`~BaseAgent.send_data`, :meth:`~BaseAgent.heartbeat` and
:meth:`~BaseAgent.run`. Creating an agent touches neither disk nor network.
"""

from __future__ import annotations

import threading
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from connectors.core.agent_config import AgentConfig
from connectors.core.errors import ConfigError, IncompleteAgentError
from connectors.core.secret import Secret
from connectors.core.telemetry import Attributes, Collection, Event

if TYPE_CHECKING:
    from connectors.core.preflight import Check
    from connectors.core.runtime import Runtime


class BaseAgent(ABC):
    """An agent of one type, for one platform, with one token and configuration.

    Args:
        platform_url: where the platform is reached from the environment, ``http`` or ``https``.
        agent_token: the enrolment token that provisioning gave.
        config: options of :attr:`config_class`, as a mapping or an instance of it.

    Raises:
        ConfigError: the URL, the token or an option is not valid; ``field`` names it.
        IncompleteAgentError: the class leaves abstract methods undefined.
    """

    agent_type: ClassVar[str] = ""
    """The type's name in the factory's table, the API and the pages."""
    description: ClassVar[str] = ""
    """One sentence on what the type connects and watches."""
    runs_on: ClassVar[tuple[str, ...]] = ()
    """Where it runs, for people: "Docker Engine 20.10 or newer"."""
    config_class: ClassVar[type[AgentConfig]] = AgentConfig
    default_state_dir: ClassVar[str] = "/var/lib/incident-rca"
    """Where identity, credential and spool are kept unless ``state_dir`` says otherwise."""
    needed_resource: ClassVar[tuple[str, ...]] = ()
    """Attributes that the platform must know; while one is missing, :meth:`resource` is asked again at each heartbeat."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """Refuse a class that leaves abstract methods undefined, by their names."""
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise IncompleteAgentError(f"{cls.__name__} cannot be created: it does not define {', '.join(missing)}")
        return super().__new__(cls)

    def __init__(self, platform_url: str, agent_token: str | Secret, config: Mapping[str, Any] | AgentConfig | None = None) -> None:
        self.platform_url = _check_url(platform_url)
        self._token = agent_token if isinstance(agent_token, Secret) else Secret(agent_token)
        if not self._token or not _is_header_safe(self._token.reveal()):
            raise ConfigError("agent_token must be a non-empty string of printable ASCII without spaces", field="agent_token")
        self.config = config if isinstance(config, self.config_class) else self.config_class.from_mapping(_as_mapping(config))
        self._runtime_lock = threading.Lock()
        self._runtime: Runtime | None = None

    @property
    def agent_token(self) -> str:
        """The enrolment token. It never shows in ``repr``."""
        return self._token.reveal()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(platform_url={self.platform_url!r}, agent_token={self._token!r})"

    # Control: from anywhere.

    @abstractmethod
    def start(self) -> None:
        """Start the deployed agent. Starting a running one changes nothing.

        Raises:
            ControlError: with the reason, one subclass for each kind (tool missing, no permission, not deployed, unavailable).
        """

    @abstractmethod
    def stop(self) -> None:
        """Stop the deployed agent. Stopping a stopped one changes nothing.

        Raises:
            ControlError: as :meth:`start`.
        """

    @abstractmethod
    def get_deployment_command(self) -> str:
        """The command that deploys this agent: pure, quoted for the shell it is for, safe to run again."""

    def get_instructions(self) -> str:
        """Numbered steps for a person who is about to run the deployment command."""
        return "1. Run the command.\n2. The agent appears on the platform within a minute."

    def get_uninstall_command(self) -> str:
        """The command that removes this agent and all it left; needs no token. Empty where the type has none."""
        return ""

    def get_alternatives(self) -> Sequence[tuple[str, str]]:
        """Other ways to deploy this agent, as (title, content): commands and files to paste. Empty where the type has none."""
        return ()

    # Runtime: inside the environment.

    @abstractmethod
    def _gather_data(self) -> Collection:
        """Gather this round's data. Collectors that fail are reported in the collection, not raised."""

    def resource(self) -> Attributes:
        """OTel resource attributes of what this instance runs on, identifying ones first. Gathered at start."""
        return {}

    def machine_id(self) -> str:
        """What tells this instance's machine (node, pod) from others where the operating system's own answer is wrong.

        Empty leaves it to the operating system. ``AGENT_MACHINE_ID`` in the environment goes before it.
        """
        return ""

    def watch(self, emit: Callable[[Event], None], stopping: threading.Event) -> None:  # noqa: ARG002 - for types that watch
        """Report changes as they happen, through ``emit``, until ``stopping`` is set. By default a type watches nothing.

        Runs in a supervised thread of its own; raising a ``ConnectorError`` that is retryable restarts it after a pause and degrades
        the agent meanwhile.
        """
        stopping.wait()

    def close(self) -> None:  # noqa: B027 - a type that opens nothing has nothing to let go of
        """Let go of what running opened: connections, leases. Called when the instance ends; what runs afterwards opens anew."""

    def successor(self, config: AgentConfig) -> Self:
        """An agent like this one under another configuration, which takes over while the instance runs (remote configuration).

        Raises:
            ConfigError: the type cannot work with ``config``.
        """
        return type(self)(self.platform_url, self._token, config)

    def preflight(self) -> Sequence[Check]:
        """The type's own preflight checks, which ``incident-rca-agent check`` runs after the common ones."""
        return ()

    @property
    def state_dir(self) -> Path:
        """The directory for identity, credential and spool."""
        return Path(self.config.state_dir or self.default_state_dir)

    def collect_metrics(self) -> Collection:
        """Gather once: every collector's metrics and how each collector fared. Sends nothing."""
        return self._gather_data()

    def send_data(self, collection: Collection) -> int:
        """Put ``collection`` into the spool, then send what the spool holds until it is empty or the platform is away.

        Returns:
            How many spooled batches the platform has taken in this call; 0 means that they wait on disk.

        Raises:
            StateError: the state directory cannot be used.
        """
        return self.runtime.send_data(collection)

    def heartbeat(self) -> bool:
        """Tell the platform that this instance is alive and how it is (one OpAMP exchange), enrolling at first contact.

        Returns:
            Whether the platform answered. A refusal or an absent platform is recorded in the status, not raised.
        """
        return self.runtime.heartbeat()

    def run(self, stopping: threading.Event | None = None) -> int:
        """Collect, send, heartbeat and watch until SIGTERM or SIGINT (or until ``stopping`` is set).

        Returns:
            The process's exit code: 0 after an orderly stop, 1 when a supervised loop died for good.
        """
        return self.runtime.run(stopping)

    @property
    def runtime(self) -> Runtime:
        """The instance at work: made at first use, for it opens the state directory."""
        with self._runtime_lock:
            if self._runtime is None:
                from connectors.core.runtime import Runtime  # noqa: PLC0415 - control use must not pay for what only running needs

                self._runtime = Runtime(self, clock=time.time)
            return self._runtime


def _check_url(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        host, _port = parts.hostname, parts.port
    except (ValueError, TypeError, AttributeError) as exc:
        raise ConfigError(f"platform_url is not a URL: {exc}", field="platform_url") from exc
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"platform_url must look like https://platform.example.com, not {url!r}", field="platform_url")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ConfigError("platform_url must not hold a query, a fragment or credentials", field="platform_url")
    if any(c.isspace() or not c.isprintable() for c in url):
        raise ConfigError("platform_url must not hold white space or control characters", field="platform_url")
    return url.rstrip("/")


def _is_header_safe(text: str) -> bool:
    return all("!" <= c <= "~" for c in text)


def _as_mapping(config: Mapping[str, Any] | AgentConfig | None) -> Mapping[str, Any]:
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return config
    raise ConfigError(f"config must be a mapping of options, not {type(config).__name__}", field="config")
