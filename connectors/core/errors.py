"""The error tree of :mod:`connectors`.

Every error carries a stable kebab-case ``code``, whether trying again may help (``retryable``) and a ``reason``: a sentence for a
person. HTTP statuses and log levels are not decided here; the platform keeps that table (``app/errors.py``).
"""

from __future__ import annotations

from typing import ClassVar


class ConnectorError(Exception):
    """Something went wrong in a connector."""

    code: ClassVar[str] = "connector-error"
    retryable: ClassVar[bool] = False

    def __init__(self, reason: str = "", *, field: str | None = None) -> None:
        self.reason = reason or (type(self).__doc__ or "").strip().splitlines()[0]
        self.field = field
        super().__init__(self.reason)


class ConfigError(ConnectorError):
    """The configuration is not valid."""

    code = "invalid-config"


class UnknownAgentTypeError(ConnectorError):
    """No agent type has this name."""

    code = "unknown-agent-type"


class AgentTypeConflictError(ConnectorError):
    """An agent type of this name is registered already, or the class is not an agent."""

    code = "agent-type-conflict"


class IncompleteAgentError(ConnectorError, TypeError):
    """A subclass of BaseAgent leaves abstract methods undefined."""

    code = "incomplete-agent"


class MissingExtraError(ConnectorError, ImportError):
    """An agent type needs a package that is not installed."""

    code = "missing-extra"


class ControlError(ConnectorError):
    """A control command (start, stop, status) failed."""

    code = "control-failed"


class ToolMissingError(ControlError):
    """The program that controls this runtime is not installed or not on the path."""

    code = "tool-missing"


class PermissionRefusedError(ControlError):
    """The runtime refused the operation for lack of permission."""

    code = "permission-refused"


class NotDeployedError(ControlError):
    """There is no agent deployed under that name."""

    code = "not-deployed"


class RuntimeUnavailableError(ControlError):
    """The engine, cluster or service manager does not answer."""

    code = "runtime-unavailable"
    retryable = True


class CollectorError(ConnectorError):
    """A collector could not gather its data."""

    code = "collector-failed"
    retryable = True


class StateError(ConnectorError):
    """The agent's state directory cannot be used."""

    code = "state-unusable"


class SpoolFullError(StateError):
    """The disk has no room for the spool."""

    code = "spool-full"
    retryable = True


class TransportError(ConnectorError):
    """The platform could not be reached or answered with a failure that may pass."""

    code = "platform-unreachable"
    retryable = True

    def __init__(self, reason: str = "", *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after = retry_after


class AuthenticationError(TransportError):
    """The platform refused the token or credential; ``refusal`` is the platform's code for why."""

    code = "authentication-refused"
    retryable = True  # a token can be rotated or restored while the agent keeps what it collects

    def __init__(self, reason: str = "", *, refusal: str = "unauthenticated", status: int = 401) -> None:
        super().__init__(reason, status=status)
        self.refusal = refusal


class RejectedError(TransportError):
    """The platform refused this request for good (400, 413): sending it again cannot help."""

    code = "rejected"
    retryable = False


class PackageError(ConnectorError):
    """A package of the agent, or what describes it, is refused."""

    code = "package-refused"


class ManifestError(PackageError):
    """The manifest cannot be read."""

    code = "manifest-malformed"


class SignatureError(PackageError):
    """The manifest was not signed by a key that is trusted here."""

    code = "signature-invalid"


class ManifestExpiredError(PackageError):
    """The manifest has expired."""

    code = "manifest-expired"


class ManifestNotYetValidError(PackageError):
    """By this machine's clock the manifest has not been made yet, so the clock is wrong."""

    code = "manifest-not-yet-valid"


class DowngradeError(PackageError):
    """The manifest's version is lower than the one that is installed."""

    code = "downgrade-refused"


class NoMatchingPackageError(PackageError):
    """No file of the manifest runs on this host; the reason says what each one misses."""

    code = "no-matching-package"
