"""Modules that load at first use, so that a running agent does not carry them."""

import os
import subprocess
import sys
import threading
from types import ModuleType

import pytest

from connectors.core.deferred import RARELY_USED, defer, import_undescribed

FOLDER = "irca_deferred_test"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that counts how often it is executed, and takes a moment for it."""
    (tmp_path / f"{FOLDER}.py").write_text(
        "import sys, time\n"
        "sys.irca_executed = getattr(sys, 'irca_executed', 0) + 1\n"
        "itself = sys.modules[__name__]\n"
        "early = getattr(itself, 'later', None)\n"
        "time.sleep(0.05)\n"
        "later = 42\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield FOLDER
    sys.modules.pop(FOLDER, None)
    vars(sys).pop("irca_executed", None)


def executed() -> int:
    return getattr(sys, "irca_executed", 0)


def test_a_deferred_module_is_executed_when_something_of_it_is_first_asked_for(module):
    defer(module)
    imported = __import__(module)
    assert executed() == 0

    assert imported.later == 42
    assert (imported.later, executed()) == (42, 1)
    assert imported.early is None, "while it is executed a module sees what it has defined so far"
    assert "__getattr__" not in vars(imported)


def test_what_a_deferred_module_does_not_have_is_an_attribute_error(module):
    defer(module)
    with pytest.raises(AttributeError, match="nothing"):
        _ = __import__(module).nothing
    assert executed() == 1


def test_threads_that_ask_at_once_get_the_whole_module_executed_once(module):
    defer(module)
    imported, found = __import__(module), []
    threads = [threading.Thread(target=lambda: found.append(imported.later)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (found, executed()) == ([42] * 8, 1)


def test_a_module_that_is_loaded_already_stays_as_it_is():
    before = dict(vars(threading))
    defer("threading")
    assert vars(threading) == before


def test_a_module_that_does_not_exist_cannot_be_deferred():
    with pytest.raises(ModuleNotFoundError, match="irca_no_such_module"):
        defer("irca_no_such_module")


def test_where_inspect_is_loaded_an_undescribed_import_is_an_import(module):
    assert isinstance(sys.modules.get("inspect"), ModuleType)
    import_undescribed(module)
    assert sys.modules[module].later == 42


def isolated(script: str) -> str:
    """What ``script`` prints in an interpreter of its own, where typing_extensions is absent as it is on a host."""
    start = f"import sys\nsys.path[:0] = {sys.path!r}\nsys.modules['typing_extensions'] = None\n"
    # Measuring coverage would load what is to be seen absent.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-I", "-c", start + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_server_agent_runs_without_the_modules_that_it_rarely_uses():
    said = isolated(
        "import connectors.cli, connectors.core.runtime, connectors.server.collect, connectors.server.changes.assemble\n"
        "from connectors.agent_factory import AgentFactory\n"
        "agent = AgentFactory.create_agent('server', 'https://platform.example.com', 't', {})\n"
        "agent.collect_metrics()\n"
        "agent.close()\n"
        f"print([name for name in {RARELY_USED!r} if '__getattr__' not in vars(sys.modules[name])], 'ast' in sys.modules)\n"
    )
    assert said.strip() == "[] False"


def test_deferred_modules_of_the_standard_library_work_once_they_are_asked():
    said = isolated(
        "import connectors.cli\n"
        "import inspect, ipaddress, locale, traceback, urllib.parse\n"
        "print(inspect.signature(lambda a: a), ipaddress.ip_address('::1'), urllib.parse.urlsplit('https://[::1]:80/').hostname)\n"
        "print(bool(locale.getencoding()))\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    print(traceback.format_exc().splitlines()[-1])\n"
    )
    assert said.splitlines() == ["(a) ::1 ::1", "True", "ZeroDivisionError: division by zero"]


def test_a_class_without_docstring_can_be_described_after_an_undescribed_import():
    said = isolated(
        "import connectors.cli, annotated_types, dataclasses\n"
        "print(repr(annotated_types.Not.__doc__))\n"
        "@dataclasses.dataclass\nclass Plain:\n    size: int\n"
        "print(Plain.__doc__)\n"
    )
    assert said.splitlines() == ["'Not'", "Plain(size: int)"]
