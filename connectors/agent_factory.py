"""AgentFactory and THE table of agent types."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from threading import Lock
from typing import Any, ClassVar

from connectors.core.base_agent import BaseAgent
from connectors.core.errors import AgentTypeConflictError, ConfigError, MissingExtraError, UnknownAgentTypeError

ENTRY_POINT_GROUP = "incident_rca.agent_types"
"""Third parties publish their types here: ``name = "package.module:Class"``."""


class AgentFactory:
    """Makes agents by type name.

    A type is a row ``name -> "module:Class"``; its module is imported when it is first asked for, so that naming a type costs
    nothing and a missing extra is reported by the type that needs it.
    """

    _types: ClassVar[dict[str, str | type[BaseAgent]]] = {
        "docker": "connectors.docker.docker_agent:DockerAgent",
        "kubernetes": "connectors.kubernetes.k8s_agent:K8sAgent",
        "server": "connectors.server.server_agent:ServerAgent",
    }
    _entry_points_read: ClassVar[bool] = False
    _lock: ClassVar[Lock] = Lock()

    @classmethod
    def create_agent(cls, agent_type: str, platform_url: str, agent_token: str, config: Mapping[str, Any] | None = None) -> BaseAgent:
        """An agent of ``agent_type``; touches neither disk nor network.

        Raises:
            UnknownAgentTypeError: no such type; the message lists the known ones.
            MissingExtraError: the type needs a package that is not installed; the message says which extra brings it.
            ConfigError: URL, token or an option is not valid; ``field`` names it.
        """
        return cls.agent_class(agent_type)(platform_url=platform_url, agent_token=agent_token, config=config)

    @classmethod
    def agent_class(cls, agent_type: str) -> type[BaseAgent]:
        """The class of ``agent_type``.

        Raises:
            UnknownAgentTypeError, MissingExtraError: as :meth:`create_agent`.
            AgentTypeConflictError: the table's row names something that is not an agent of that name.
        """
        if not isinstance(agent_type, str) or agent_type not in cls._types:
            cls._read_entry_points()
        row = cls._types.get(agent_type) if isinstance(agent_type, str) else None
        if row is None:
            raise UnknownAgentTypeError(
                f"unknown agent type {agent_type!r}; known types: {', '.join(cls.supported_types())}", field="agent_type"
            )
        if isinstance(row, str):
            row = _load(agent_type, row)
            _check_class(agent_type, row)
            cls._types[agent_type] = row
        return row

    @classmethod
    def register(cls, agent_type: str, agent_class: type[BaseAgent] | str) -> None:
        """Add a type: a class, or ``"module:Class"`` to import when first used.

        Raises:
            AgentTypeConflictError: the name is taken, or the class is not a :class:`BaseAgent`.
            ConfigError: the name is not lower-case letters, digits and dashes.
        """
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", agent_type):
            raise ConfigError(f"agent type {agent_type!r} must be lower-case letters, digits and dashes", field="agent_type")
        cls._read_entry_points()
        if not isinstance(agent_class, str):
            _check_class(agent_type, agent_class)
        with cls._lock:
            if agent_type in cls._types:
                raise AgentTypeConflictError(f"agent type {agent_type!r} is registered already", field="agent_type")
            cls._types[agent_type] = agent_class

    @classmethod
    def unregister(cls, agent_type: str) -> None:
        """Remove a type that :meth:`register` added (tests and reloads).

        Raises:
            UnknownAgentTypeError: no such type.
        """
        with cls._lock:
            if cls._types.pop(agent_type, None) is None:
                raise UnknownAgentTypeError(f"unknown agent type {agent_type!r}", field="agent_type")

    @classmethod
    def supported_types(cls) -> tuple[str, ...]:
        """The names of all types, sorted."""
        cls._read_entry_points()
        return tuple(sorted(cls._types))

    @classmethod
    def _read_entry_points(cls) -> None:
        with cls._lock:
            if cls._entry_points_read:
                return
            cls._entry_points_read = True
            from importlib import metadata  # noqa: PLC0415 - 2 MB resident that an agent of a built-in type need not carry

            for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
                if entry.name in cls._types:
                    raise AgentTypeConflictError(
                        f"{entry.value} wants to be agent type {entry.name!r}, which is registered already", field="agent_type"
                    )
                cls._types[entry.name] = entry.value


def _load(agent_type: str, path: str) -> type[BaseAgent]:
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as exc:
        if exc.name and module_name.startswith(exc.name):
            raise AgentTypeConflictError(f"agent type {agent_type!r} names {path}, which does not exist") from exc
        raise MissingExtraError(
            f"agent type {agent_type!r} needs the package {exc.name!r}: pip install 'incident-rca[{agent_type}]'", field="agent_type"
        ) from exc
    loaded: type[BaseAgent] | None = getattr(module, class_name, None)
    if loaded is None:
        raise AgentTypeConflictError(f"agent type {agent_type!r} names {path}, which does not exist")
    return loaded


def _check_class(agent_type: str, agent_class: object) -> None:
    if not (isinstance(agent_class, type) and issubclass(agent_class, BaseAgent)):
        raise AgentTypeConflictError(f"{agent_class!r} cannot be agent type {agent_type!r}: it is not a subclass of BaseAgent")
    missing = sorted(getattr(agent_class, "__abstractmethods__", ()))
    if missing:
        raise AgentTypeConflictError(f"{agent_class.__name__} cannot be agent type {agent_type!r}: it does not define {', '.join(missing)}")
    if agent_class.agent_type and agent_class.agent_type != agent_type:
        raise AgentTypeConflictError(f"{agent_class.__name__} says that it is {agent_class.agent_type!r}, not {agent_type!r}")
