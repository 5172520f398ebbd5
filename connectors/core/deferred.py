"""Modules of the standard library that others import but a running agent hardly ever uses: loaded at first use, not at start.

What is loaded is resident for as long as the agent lives. ``dataclasses`` imports ``inspect`` (and by it ``ast``, ``dis`` and
``tokenize``) only to describe classes without docstrings; ``urllib.parse`` imports ``ipaddress`` for addresses in brackets, and
``subprocess`` imports ``locale`` for texts in the locale's encoding. Together that is over 1.5 MB.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

RARELY_USED = ("inspect", "ipaddress", "locale", "traceback")


def defer(*names: str) -> None:
    """Let each module load when something of it is first asked for; one that is loaded already stays as it is.

    To be called before anything imports the modules, and by programs only: it is not for a library to decide how its host's modules
    load. (``importlib.util.LazyLoader`` does not do here: it loads as soon as another module imports the name.)

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    for name in names:
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"there is no module {name}", name=name)
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__getattr__"] = _Loading(module)
        sys.modules[name] = module


def import_undescribed(name: str) -> None:
    """Import a module so that its dataclasses without docstrings get no description: making one would load ``inspect`` after all.

    Does nothing more than an import where ``inspect`` is loaded already.
    """
    waiting = sys.modules.get("inspect")
    if waiting is None or not isinstance(waiting.__dict__.get("__getattr__"), _Loading):
        importlib.import_module(name)
        return

    def signature(subject: object, **options: Any) -> Any:
        if isinstance(subject, type):
            return ""  # dataclasses asks for nothing else
        del waiting.__dict__["signature"]
        return waiting.signature(subject, **options)

    waiting.__dict__["signature"] = signature
    try:
        importlib.import_module(name)
    finally:
        if waiting.__dict__.get("signature") is signature:
            del waiting.__dict__["signature"]


class _Loading:
    """What a module that waits has as its ``__getattr__`` (PEP 562): executes the module, once, whichever thread asks first."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._lock = threading.RLock()
        self._begun = False

    def __call__(self, attribute: str) -> Any:
        module = self._module
        with self._lock:
            if not self._begun:
                self._begun = True
                loader = module.__spec__.loader if module.__spec__ else None
                if loader is not None:
                    loader.exec_module(module)
                if module.__dict__.get("__getattr__") is self:
                    del module.__dict__["__getattr__"]
            elif module.__dict__.get("__getattr__") is self:  # the module asks itself while it is executed
                raise AttributeError(f"module {module.__name__!r} has no attribute {attribute!r}", name=attribute, obj=module)
        return getattr(module, attribute)
