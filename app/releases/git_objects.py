"""Git's objects as bytes: what a repository that is served as plain files consists of.

Equal contents make equal objects, for an object's name is the SHA-1 of what it holds.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

AUTHOR = "incident-rca <agent@incident-rca.invalid>"


@dataclass(frozen=True, slots=True)
class GitObject:
    """An object: its ``name`` (40 hexadecimal digits) and its loose file's content."""

    name: str
    content: bytes

    @property
    def path(self) -> str:
        """Where the loose file lies in a repository."""
        return f"objects/{self.name[:2]}/{self.name[2:]}"


def blob(content: bytes) -> GitObject:
    """A file."""
    return _made("blob", content)


def trees(files: Mapping[str, bytes]) -> list[GitObject]:
    """What holds these files (contents by path): their blobs, the trees of the directories, and the tree of them all last."""
    objects: dict[str, GitObject] = {}
    entries: list[tuple[bytes, bytes]] = []  # what sorts an entry, the entry
    inner: dict[str, dict[str, bytes]] = {}
    for path, content in files.items():
        directory, separator, rest = path.partition("/")
        if separator:
            inner.setdefault(directory, {})[rest] = content
            continue
        made = blob(content)
        objects[made.name] = made
        entries.append((path.encode(), _entry("100644", path, made)))
    for directory, held in inner.items():
        below = trees(held)
        objects |= {one.name: one for one in below}
        entries.append((f"{directory}/".encode(), _entry("40000", directory, below[-1])))
    tree = _made("tree", b"".join(entry for _, entry in sorted(entries)))
    return [*objects.values(), tree]


def commit(tree: str, parent: str, *, time: int, message: str) -> GitObject:
    """A commit of the tree of that name; ``parent`` is empty for the first, ``time`` in Unix seconds."""
    lines = [
        f"tree {tree}",
        *([f"parent {parent}"] if parent else []),
        *(f"{role} {AUTHOR} {time} +0000" for role in ("author", "committer")),
    ]
    return _made("commit", "\n".join([*lines, "", message, ""]).encode())


def tree_of(loose: bytes) -> str:
    """The name of the tree of a commit, given its loose file's content.

    Raises:
        ValueError: that is no commit.
    """
    try:
        head, _, body = zlib.decompress(loose).partition(b"\0")
    except zlib.error as exc:
        raise ValueError(f"it cannot be unpacked: {exc}") from exc
    if not head.startswith(b"commit ") or not body.startswith(b"tree "):
        raise ValueError("it is no commit")
    return body[5:45].decode("ascii", errors="replace")


def _made(kind: str, body: bytes) -> GitObject:
    content = f"{kind} {len(body)}\0".encode() + body
    return GitObject(hashlib.sha1(content, usedforsecurity=False).hexdigest(), zlib.compress(content, 9))


def _entry(mode: str, name: str, made: GitObject) -> bytes:
    return f"{mode} {name}\0".encode() + bytes.fromhex(made.name)
