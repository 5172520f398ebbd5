"""The process' memory: what is there for as long as the platform runs need not be looked through again and again."""

from __future__ import annotations

import gc

_YOUNG, _OLDER, _OLD = 20_000, 20, 20


def spare_the_long_lived() -> None:
    """Tell Python's collector that everything that is there now stays, and to look for cyclic garbage less often.

    Called once in a process that runs a platform, when it has started: a fleet of ten thousand is some millions of objects, and to look
    through them in the middle of a page takes longer than the page.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _OLDER, _OLD)
