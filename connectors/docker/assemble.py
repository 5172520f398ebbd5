"""What the Dockerfile runs once the agent is installed: removes what only the installation needed, compiles, and writes the SBOM.

Run by the virtual environment that becomes the image's; outside of a build it has no use.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib.metadata
import json
import os
import pkgutil
import py_compile
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from connectors._version import __version__
from connectors.docker.sbom import bill_of_materials

_INSTALLERS = ("pip", "setuptools", "wheel")
_ONLY_FOR_BUILDING = ("assemble.py", "image.py", "sbom.py")
_NOT_RUN = frozenset({".pyi", ".pyx", ".pxd", ".c", ".h", ".proto"})
_KEPT_COMMANDS = ("python", "incident-rca-agent")


def strip(prefix: Path, packages: Path) -> None:
    """Remove from the environment at ``prefix``, whose packages lie in ``packages``, whatever the agent does not run."""
    for distribution in [d for d in importlib.metadata.distributions(path=[str(packages)]) if d.name.lower() in _INSTALLERS]:
        for file in distribution.files or ():
            Path(str(distribution.locate_file(file))).unlink(missing_ok=True)
    for name in _INSTALLERS:
        shutil.rmtree(packages / name, ignore_errors=True)
    for command in (prefix / "bin").iterdir():
        if not command.name.startswith(_KEPT_COMMANDS):
            command.unlink()
    for name in _ONLY_FOR_BUILDING:
        (packages / "connectors" / "docker" / name).unlink(missing_ok=True)
    for path in list(_unused(packages)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for directory, _, _ in os.walk(packages, topdown=False):
        if not any(Path(directory).iterdir()):
            Path(directory).rmdir()


def _unused(packages: Path) -> Iterator[Path]:
    for directory, inner, files in os.walk(packages):
        for name in [n for n in inner if n in ("tests", "test", "__pycache__")]:
            inner.remove(name)
            yield Path(directory, name)
        yield from (Path(directory, name) for name in files if Path(name).suffix in _NOT_RUN)


def add_user(etc: Path, name: str, number: int) -> None:
    """Make the user and group ``name`` of that ``number`` known in ``etc``, unless something of that number is.

    By hand, because the programs that do it differ from base to base, and some bases have none.
    """
    for file, line in (("group", f"{name}:x:{number}:"), ("passwd", f"{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin")):
        path = etc / file
        known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if not any(entry.split(":")[2:3] == [str(number)] for entry in known):
            path.write_text("\n".join([*known, line]) + "\n", encoding="utf-8")


def library_modules() -> list[Path]:
    """Source files of the standard library's modules that the agent loads, found by loading all of the agent that loads here."""
    for found in pkgutil.walk_packages([str(Path(__file__).parents[1])], "connectors."):
        with contextlib.suppress(ImportError):  # other agent types need packages that this image does not have
            importlib.import_module(found.name)
    library, foreign = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    files = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    return sorted(f for f in files if f.suffix == ".py" and f.is_relative_to(library) and not f.is_relative_to(foreign))


def compile_into(bytecode: Path, packages: Path, library: Sequence[Path]) -> bool:
    """Compile everything below ``packages``, and ``library``, into the tree that ``PYTHONPYCACHEPREFIX`` will name; False if that fails.

    The standard library too: the usual base images come without its bytecode, and an agent that may not write would compile it at each
    start and each health check. By hash, not by time: nothing is looked up when the agent starts, and equal sources make equal files.
    """
    before, sys.pycache_prefix = sys.pycache_prefix, str(bytecode)
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    try:
        for file in library:
            py_compile.compile(str(file), doraise=True, invalidation_mode=mode)
        return bool(compileall.compile_dir(packages, quiet=1, invalidation_mode=mode))
    except py_compile.PyCompileError:
        return False
    finally:
        sys.pycache_prefix = before


def main(argv: Sequence[str] | None = None) -> int:
    """Do all of it; 0, or 1 when something does not compile."""
    parser = argparse.ArgumentParser(prog="assemble")
    parser.add_argument("--user", required=True, metavar="NAME:NUMBER")
    parser.add_argument("--sbom", required=True, type=Path, metavar="FILE")
    parser.add_argument("--bytecode", required=True, type=Path, metavar="DIRECTORY")
    parser.add_argument("--etc", default=Path("/etc"), type=Path)
    parser.add_argument("--prefix", default=Path(sys.prefix), type=Path)
    parser.add_argument("--packages", default=Path(sysconfig.get_path("purelib")), type=Path)
    arguments = parser.parse_args(argv)
    name, _, number = arguments.user.partition(":")
    library = library_modules()
    strip(arguments.prefix, arguments.packages)
    add_user(arguments.etc, name, int(number))
    bill = bill_of_materials(importlib.metadata.distributions(path=[str(arguments.packages)]), __version__)
    arguments.sbom.parent.mkdir(parents=True, exist_ok=True)
    arguments.sbom.write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    return 0 if compile_into(arguments.bytecode, arguments.packages, library) else 1


if __name__ == "__main__":
    sys.exit(main())
