"""``release``: build the agent's packages, sign them where the key is, and publish them on the platform."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from app.commands.keys import parse_duration
from app.commands.output import CommandError
from app.commands.serve import DataDirOption

if TYPE_CHECKING:
    from app.settings import Settings

PASSPHRASE_VARIABLE: Final = "IRCA_RELEASE_PASSPHRASE"  # noqa: S105 - the name of a variable

release = typer.Typer(help="Build, sign and publish the agent's packages for servers.", no_args_is_help=True)

# What these need (cryptography, settings, archives) is imported by each: --help needs none of it.


@release.command("key")
def key(
    out: Annotated[Path, typer.Option("--out", help="File for the private key; the public half goes beside it, with .pub.")],
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase/--no-passphrase", help="Encrypt it with a passphrase, asked for unless IRCA_RELEASE_PASSPHRASE holds it."
        ),
    ] = True,
) -> None:
    """Make a key that signs releases. It belongs to the releaser and never needs to reach the platform."""
    from app.releases.signing import SigningKey  # noqa: PLC0415 - as above

    secret = _passphrase(confirm=True) if passphrase else ""
    if passphrase and not secret:
        raise CommandError("the passphrase is empty; --no-passphrase makes a key without one")
    with _explained():
        made = SigningKey.generate()
        public = made.write(out, secret)
    typer.echo(f"key {made.key_id}: private half in {out}, public half in {public}")
    typer.echo(f"On the platform: incident-rca release trust {public.name}", err=True)


@release.command("build")
def build(
    out: Annotated[Path, typer.Option("--out", help="Directory for the release; it must be empty.")],
    wheels: Annotated[
        Path | None,
        typer.Option(
            "--wheels", help="Directory of wheels of the agent's dependencies: a bundle for each system they serve.", show_default=False
        ),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Have pip bring the dependencies' wheels for all usual systems.")] = False,
    executable: Annotated[
        bool, typer.Option("--executable/--no-executable", help="Also make the program for this system's kind of host without Python.")
    ] = True,
    include: Annotated[
        list[Path] | None,
        typer.Option(
            "--include", help="A release of this version that another machine built, to take over what is missing.", show_default=False
        ),
    ] = None,
) -> None:
    """Build the packages of the version that runs here, and a manifest of them that is not signed yet."""
    from app.releases import build as building  # noqa: PLC0415 - as above

    with _explained():
        made = building.build(out, say=_say, wheel_directory=wheels, download=download, executable=executable, include=include or ())
    for file in made.files:
        needs = " ".join(word for word in (file.libc, file.libc_minimum, file.python and f"Python {file.python}") if word)
        typer.echo(f"{file.name}  {file.size / 1e6:.1f} MB  {needs}".rstrip())
    _say(f"Next, where the key is: incident-rca release sign {out} --key FILE")


@release.command("sign")
def sign(
    directory: Annotated[Path, typer.Argument(help="Directory that `release build` made.")],
    key_file: Annotated[Path, typer.Option("--key", help="File of the private key.")],
    expires_in: Annotated[str, typer.Option("--expires-in", help="How long the release is to be believed: 365d, 12h.")] = "365d",
) -> None:
    """Sign a release; signing it again renews it. An encrypted key's passphrase is asked for unless IRCA_RELEASE_PASSPHRASE holds it."""
    from app.releases import release as releases  # noqa: PLC0415 - as above
    from app.releases.repository import describe  # noqa: PLC0415 - as above
    from app.releases.signing import SigningKey, is_encrypted  # noqa: PLC0415 - as above

    life = parse_duration(expires_in)
    with _explained():
        private = SigningKey.read(key_file, _passphrase(confirm=False) if is_encrypted(key_file) else "")
        manifest = releases.sign(directory, private, now=time.time(), life=life)
    typer.echo(f"signed: {describe(manifest)}")
    _say(f"Next, on the platform: incident-rca release publish {directory}")


@release.command("trust")
def trust(
    public_key: Annotated[Path, typer.Argument(help="File of the releaser's public key.")],
    data_dir: DataDirOption = None,
) -> None:
    """Have the platform accept releases that this key signs. Several keys may be trusted; removing the file ends the trust."""
    from app.releases import signing  # noqa: PLC0415 - as above
    from connectors.core.package_manifest import key_id  # noqa: PLC0415 - as above

    settings = _settings(data_dir)
    directory = settings.package_keys or settings.data_dir / signing.KEY_DIRECTORY / signing.TRUSTED_DIRECTORY
    with _explained():
        raw = signing.read_public_key(public_key)
        path = signing.trust(directory, raw)
    typer.echo(f"key {key_id(raw)} is trusted: {path}")


@release.command("publish")
def publish(
    directory: Annotated[Path, typer.Argument(help="Directory of the signed release.")],
    allow_downgrade: Annotated[
        bool, typer.Option("--allow-downgrade", help="Give hosts a lower version than before; installed agents still refuse it.")
    ] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Check a signed release and give it to hosts from now on. A running platform needs no restart."""
    from app.releases.repository import PackageRepository, describe  # noqa: PLC0415 - as above

    settings = _settings(data_dir)
    repository = PackageRepository(settings.data_dir, trusted_directory=settings.package_keys, clock=time.time)
    with _explained():
        manifest = repository.publish(directory, allow_downgrade=allow_downgrade)
    typer.echo(f"published: {describe(manifest)}")


def _settings(data_dir: Path | None) -> Settings:
    from app.commands.setup import check_data_dir, load_settings  # noqa: PLC0415 - as above

    settings = load_settings(data_dir=data_dir)
    check_data_dir(settings)
    return settings


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What a release is refused for as the command's one line, further lines as its hint."""
    from app.errors import ReleaseError  # noqa: PLC0415 - as above

    try:
        yield
    except ReleaseError as exc:
        message, _, hint = exc.reason.partition("\n")
        raise CommandError(message, hint=hint) from exc


def _passphrase(*, confirm: bool) -> str:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is not None:
        return given
    try:
        return str(
            typer.prompt("Passphrase of the key", hide_input=True, confirmation_prompt=confirm, default="", show_default=False, err=True)
        )
    except typer.Abort as exc:
        raise CommandError("no passphrase was given", hint=f"Without a terminal, {PASSPHRASE_VARIABLE} holds it.") from exc


def _say(text: str) -> None:
    typer.echo(text, err=True)
