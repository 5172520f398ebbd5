"""``image``: the docker agent's image and its build context, made here and kept where the platform serves them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.commands.serve import DataDirOption

image = typer.Typer(help="Make the docker agent's image, and what the platform serves of it.", no_args_is_help=True)

WheelsOption = Annotated[
    Path | None,
    typer.Option("--wheels", help="Directory of wheels of what the agent depends on; without it pip downloads them.", show_default=False),
]


@image.command("build")
def build(
    base_image: Annotated[
        str, typer.Option("--base-image", help="Image to build on; default: the Dockerfile's, python:3.13-slim.", show_default=False)
    ] = "",
    tag: Annotated[str, typer.Option("--tag", help="Name of the image.")] = "incident-rca/agent:latest",
    save: Annotated[bool, typer.Option("--save/--no-save", help="Keep the image as a file that the platform serves.")] = True,
    wheels: WheelsOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Build the image with the docker command here; keep its context and the image itself for the platform to serve."""
    from app.commands import image_build  # noqa: PLC0415 - settings and archives are heavy, and --help needs none of them

    workshop = image_build.Workshop.of(data_dir)
    workshop.build(tag=tag, base_image=base_image, wheels=wheels, save=save)


@image.command("context")
def context(wheels: WheelsOption = None, data_dir: DataDirOption = None) -> None:
    """Make only the build context, which the platform serves for ``docker build http://PLATFORM/artefacts/docker/context.tar.gz``."""
    from app.commands import image_build  # noqa: PLC0415 - as above

    workshop = image_build.Workshop.of(data_dir)
    workshop.keep_context(workshop.make_context(wheels))
