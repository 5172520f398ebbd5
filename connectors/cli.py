"""``incident-rca-agent``: run an agent here, check what would keep it from working, and ask how it is.

Imports stay lean: what ``run`` loads is resident in somebody's environment for as long as the agent lives, so everything that only
another command needs is imported there.

Exit codes: 0 all is well; 1 the agent was stopped by a fault; 2 wrong usage or configuration; 3 a preflight check failed, or the agent
is not healthy.
"""

from __future__ import annotations

from connectors.core.deferred import RARELY_USED, defer, import_undescribed

defer(*RARELY_USED)  # before anything imports them
import_undescribed("annotated_types")

# isort: split
import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from connectors._version import __version__
from connectors.agent_factory import AgentFactory
from connectors.core.base_agent import BaseAgent
from connectors.core.errors import ConfigError, ConnectorError, StateError
from connectors.core.identity import CREDENTIAL_FILE, NO_TOKEN
from connectors.core.secret import Secret

if TYPE_CHECKING:
    import argparse

    from connectors.core.status import AgentStatus

OK: Final = 0
FAULT: Final = 1
USAGE: Final = 2
UNHEALTHY: Final = 3

DEFAULT_CONFIG_FILE: Final = "/etc/incident-rca/agent.toml"
CREDENTIAL_NAME: Final = "agent_token"
_FILE_KEYS: Final = ("agent_type", "platform_url", "token_file")
_LARGEST_TOKEN = 4096
_SKEW_WORTH_SAYING = 2.0

_EXIT_CODES = """\
exit codes:
  0  all is well (run: stopped in an orderly way)
  1  the agent was stopped by a fault
  2  wrong usage or configuration
  3  check: a check failed; status: the agent is not healthy or not running

The token is read from AGENT_TOKEN, or from the file that AGENT_TOKEN_FILE or --token-file names; it is never an argument, because
arguments show in process lists. Once the agent has enrolled, it works with its own credential and needs the token no more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code; every failure that is understood is one line on standard error."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = _as_a_service(given) or _parser().parse_args(given)
    try:
        code: int = arguments.command(arguments, os.environ)
    except (KeyboardInterrupt, _Terminated):
        return OK
    except ConnectorError as exc:
        print(f"incident-rca-agent: {exc.reason}", file=sys.stderr)
        return (
            USAGE if isinstance(exc, ConfigError) or exc.code in ("unknown-agent-type", "missing-extra", "agent-type-conflict") else FAULT
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it flushes at exit
        return OK
    return code


def _as_a_service(argv: Sequence[str]) -> Any:
    """The arguments of ``run`` as services start it, read without argparse, which would stay resident; None for all others."""
    match argv:
        case ["run"]:
            agent_type = None
        case ["run", "--type", agent_type] if not agent_type.startswith("-"):
            pass
        case _:
            return None
    options = dict.fromkeys(("platform_url", "token_file", "config_file", "state_dir"))
    return types.SimpleNamespace(command=_run, agent_type=agent_type, **options)


def _parser() -> argparse.ArgumentParser:
    import argparse  # noqa: PLC0415 - see _as_a_service

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--type", dest="agent_type", metavar="TYPE", help="agent type (AGENT_TYPE; default: server)")
    shared.add_argument("--platform-url", metavar="URL", help="where the platform is (PLATFORM_API_URL)")
    shared.add_argument("--token-file", metavar="FILE", help="file that holds the enrolment token (AGENT_TOKEN_FILE)")
    shared.add_argument("--config-file", metavar="FILE", help=f"TOML file of options (AGENT_CONFIG_FILE; default: {DEFAULT_CONFIG_FILE})")
    shared.add_argument("--state-dir", metavar="DIR", help="directory for identity, credential and spool (STATE_DIR)")
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--json", action="store_true", help="print one JSON document")

    parser = argparse.ArgumentParser(
        prog="incident-rca-agent",
        allow_abbrev=False,
        description="Connect this environment to an incident-rca platform.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command, parents, summary in (
        ("run", _run, [shared], "run the agent until SIGTERM or SIGINT"),
        ("check", _check, [shared, machine], "find out what would keep the agent from working (preflight)"),
        ("status", _status, [shared, machine], "say how the agent on this machine is"),
        ("version", _version, [machine], "print the version"),
    ):
        sub = commands.add_parser(
            name,
            parents=parents,
            allow_abbrev=False,  # --token must not pass for --token-file: its value would be shown
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command)
    service = commands.add_parser("service", allow_abbrev=False)
    service.add_argument("name")
    service.add_argument("directory")
    service.set_defaults(command=_service)
    return parser


@dataclasses.dataclass(frozen=True, slots=True)
class _Setup:
    """What arguments, environment and file say together."""

    agent_class: type[BaseAgent]
    platform_url: str
    token: Secret
    config: Any

    @property
    def state_dir(self) -> Path:
        return Path(self.config.state_dir or self.agent_class.default_state_dir)

    def agent(self, token: Secret) -> BaseAgent:
        if not self.platform_url:
            raise ConfigError("where is the platform? set PLATFORM_API_URL or give --platform-url", field="platform_url")
        return self.agent_class(self.platform_url, token, self.config)


def _prepare(arguments: argparse.Namespace, environ: MutableMapping[str, str]) -> _Setup:
    """Arguments before environment before file before defaults.

    The token is taken out of the environment, so that no program that the agent starts inherits it.
    """
    file = _read_config_file(arguments.config_file, environ)
    own = {key: _text(key, file.pop(key)) for key in _FILE_KEYS if key in file}
    agent_class = AgentFactory.agent_class(arguments.agent_type or environ.get("AGENT_TYPE") or own.get("agent_type") or "server")
    overrides = {"state_dir": arguments.state_dir} if arguments.state_dir else {}
    return _Setup(
        agent_class=agent_class,
        platform_url=arguments.platform_url or environ.get("PLATFORM_API_URL") or own.get("platform_url", ""),
        token=_read_token(arguments.token_file, environ, own.get("token_file", "")),
        config=agent_class.config_class.from_environment(environ, file=file, config=overrides),
    )


def _read_config_file(argument: str | None, environ: MutableMapping[str, str]) -> dict[str, Any]:
    """The configuration file's table; one that was named must be there, the default one need not. ``AGENT_CONFIG_FILE=`` means none."""
    named = argument if argument is not None else environ.get("AGENT_CONFIG_FILE")
    if named == "" or (named is None and not Path(DEFAULT_CONFIG_FILE).exists()):
        return {}
    import tomllib  # noqa: PLC0415 - many agents have no file

    path = named or DEFAULT_CONFIG_FILE
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"the configuration file {path} cannot be read: {exc.strerror}", field="config_file") from exc
    except ValueError as exc:
        raise ConfigError(f"the configuration file {path} is not TOML: {exc}", field="config_file") from exc


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{key} in the configuration file must be a string, not {value!r}", field=key)
    return value


def _read_token(argument: str | None, environ: MutableMapping[str, str], file: str) -> Secret:
    text = environ.pop("AGENT_TOKEN", "").strip()
    path = argument or ("" if text else environ.get("AGENT_TOKEN_FILE", "") or file or _service_credential(environ))
    if not path:
        return Secret(text)
    try:
        with Path(path).open(encoding="utf-8") as opened:
            return Secret(opened.read(_LARGEST_TOKEN).strip())
    except OSError as exc:
        raise ConfigError(f"the token file {path} cannot be read: {exc.strerror}", field="token_file") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the token file {path} is not text", field="token_file") from exc


def _service_credential(environ: Mapping[str, str]) -> str:
    """The token's file among the credentials that systemd hands to its service; empty where there is none."""
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    path = Path(directory, CREDENTIAL_NAME)
    try:
        return str(path) if directory and path.exists() else ""
    except PermissionError:
        return str(path)  # it cannot be read: whoever reads it says so


def _run(arguments: argparse.Namespace, environ: MutableMapping[str, str]) -> int:
    with _terminable():
        return _agent(arguments, environ).run()


def _agent(arguments: argparse.Namespace, environ: MutableMapping[str, str]) -> BaseAgent:
    """The agent that is to run, with the token or, once it has enrolled, without."""
    setup = _prepare(arguments, environ)
    token = setup.token
    if not token:
        if not stored_credential(setup.state_dir, setup.platform_url):
            raise ConfigError(
                f"no token: set AGENT_TOKEN or AGENT_TOKEN_FILE to the token from provisioning ({setup.state_dir} holds no credential)",
                field="agent_token",
            )
        token = Secret(NO_TOKEN)
    return setup.agent(token)


def _service(arguments: argparse.Namespace, environ: MutableMapping[str, str]) -> int:
    """What Windows starts as a service; not for people, so that the help does not list it."""
    from connectors.server import windows_service  # noqa: PLC0415 - for Windows only

    run = _parser().parse_args(["run", "--type", "server"])
    return windows_service.serve(arguments.name, Path(arguments.directory), lambda: _agent(run, environ))


class _Terminated(BaseException):
    """SIGTERM came before the agent listened to signals."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends an agent that is still starting: as a container's first process it would not even be killed by it."""

    def end(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may listen to signals
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check(arguments: argparse.Namespace, environ: MutableMapping[str, str]) -> int:
    from connectors.core import preflight, preflight_checks  # noqa: PLC0415 - a running agent needs none of it

    setup = _prepare(arguments, environ)
    secret = stored_credential(setup.state_dir, setup.platform_url) or setup.token
    agent = setup.agent(secret or Secret(NO_TOKEN))
    target = preflight_checks.Target(
        platform_url=agent.platform_url,
        secret=secret,
        state_dir=setup.state_dir,
        spool_max_bytes=agent.config.spool_max_bytes,
        ca_file=agent.config.ca_file,
        timeout=agent.config.request_timeout,
        environ=environ,
    )
    results = preflight.run_checks([*preflight_checks.common_checks(target), *agent.preflight()])
    print(_json(preflight.as_document(results)) if arguments.json else preflight.as_text(results, unicode=_speaks_unicode()))
    return UNHEALTHY if preflight.failed(results) else OK


def _status(arguments: argparse.Namespace, environ: MutableMapping[str, str]) -> int:
    from connectors.core.status import read_status  # noqa: PLC0415 - as above

    setup = _prepare(arguments, environ)
    try:
        status = read_status(setup.state_dir, time.time)
    except StateError as exc:
        if arguments.json:
            print(_json({"state": "unknown", "reasons": {"status": exc.reason}}))
        else:
            print(f"incident-rca-agent: {exc.reason}", file=sys.stderr)
        return UNHEALTHY
    if arguments.json:
        print(_json(dataclasses.asdict(status)))
    else:
        print("\n".join(describe(status, time.time())))
    return OK if status.state == "healthy" else UNHEALTHY


def describe(status: AgentStatus, now: float) -> list[str]:
    """The lines that tell a person how the agent is; ``now`` is in Unix seconds."""
    spool = status.spool
    rows = [
        ("State", status.state),
        *((f"  {component}", reason) for component, reason in status.reasons.items()),
        ("Agent", f"{status.agent_type}, version {status.version}, process {status.pid}, started {_ago(status.started_at, now)}"),
        ("Platform", f"{status.platform_url}, {'enrolled' if status.enrolled else 'not enrolled yet'}"),
        ("Instance", status.instance_id),
        ("Collected", _ago(status.last_collection_at, now)),
        ("Sent", _ago(status.last_send_at, now)),
        ("Heartbeat", _ago(status.last_heartbeat_at, now)),
        ("Waiting", _items(spool.waiting) + (f" in {spool.size_bytes:,} bytes on disk" if spool.batches else "")),
    ]
    if spool.batches and spool.oldest_at is not None:
        rows.append(("Oldest", f"collected {_ago(spool.oldest_at, now)}"))
    for name, reasons in spool.dropped.items():
        rows.append(("Dropped", f"{name}: " + ", ".join(f"{count:,} ({reason})" for reason, count in reasons.items())))
    if status.clock_skew is not None and abs(status.clock_skew) > _SKEW_WORTH_SAYING:
        rows.append(("Clock", f"{abs(status.clock_skew):.0f} s {'ahead of' if status.clock_skew > 0 else 'behind'} the platform's"))
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {''.join(c if c.isprintable() else ' ' for c in text)}" for name, text in rows]


def _ago(time_then: float | None, now: float) -> str:
    if time_then is None:
        return "never"
    seconds = max(0.0, now - time_then)
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _items(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {signal}" for signal, count in counts.items() if count) or "nothing"


def _version(arguments: argparse.Namespace, _environ: MutableMapping[str, str]) -> int:
    print(_json({"version": __version__}) if arguments.json else f"incident-rca-agent {__version__}")
    return OK


def stored_credential(state_dir: Path, platform_url: str) -> Secret:
    """The credential for this platform that an agent keeps in ``state_dir``, read beside a running one; empty where there is none."""
    try:
        document = json.loads((state_dir / CREDENTIAL_FILE).read_bytes())
        if document["platform_url"] != platform_url.rstrip("/"):
            return Secret("")
        return Secret(str(document.get("current") or document.get("candidate") or ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Secret("")


def _json(document: object) -> str:
    return json.dumps(document, indent=2)


def _speaks_unicode() -> bool:
    try:
        "✓✗→".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
