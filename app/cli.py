"""``incident-rca``: the platform's command. Commands live in ``app.commands``; what is heavy is imported by the one that needs it.

Exit codes: 0 all is well; 1 the command failed; 2 wrong usage or settings; 3 the platform cannot start (port in use, directory not
writable).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

try:
    import typer
except ImportError:  # an agent's installation has this command too, for it is one distribution
    sys.exit("incident-rca: the platform is not installed here: pip install 'incident-rca[platform]'")

from app.commands import (
    apply,
    audit,
    bulk,
    config,
    events,
    fleet,
    groups,
    image,
    instances,
    keys,
    maintenance,
    query,
    release,
    serve,
    sign_in,
    tokens,
    webhooks,
)
from app.commands.output import CommandError, report
from connectors._version import __version__

app = typer.Typer(
    name="incident-rca",
    help="Connect environments to incident root-cause analysis, and look after the agents that do it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Commands that ask the platform find it at --url or IRCA_URL and sign in with IRCA_API_KEY.",
)
app.command("up")(serve.up)
app.command("serve")(serve.serve)
app.command("provision")(fleet.provision)
app.command("types")(fleet.types)
app.command("apply")(apply.apply)
app.command("export")(apply.export)
fleet.agents.command("bulk")(bulk.act_on_many)
app.add_typer(fleet.agents, name="agents")
app.add_typer(instances.instances, name="instances")
app.add_typer(events.events, name="events")
app.command("query")(query.query)
app.add_typer(keys.api_keys, name="api-keys")
app.command("sign-in-link")(sign_in.sign_in_link)
app.add_typer(tokens.tokens, name="tokens")
app.add_typer(image.image, name="image")
app.add_typer(groups.groups, name="groups")
app.add_typer(config.config, name="config")
app.add_typer(webhooks.webhooks, name="webhooks")
app.add_typer(maintenance.maintenance, name="maintenance")
app.add_typer(audit.audit, name="audit")
app.add_typer(release.release, name="release")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"incident-rca {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code; every failure that is understood is one line on standard error, without a traceback."""
    try:
        app(args=list(argv) if argv is not None else None)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(bool(exc.code))
    except CommandError as exc:
        report(exc)
        return exc.exit_code
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it flushes at exit
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
