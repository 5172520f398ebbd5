"""Files named by patterns: which there are, which have changed, and what each change was.

Reading directories and files is left undone while their marks (times, size, inode) stand. What is remembered of a text file is its text
without secret-looking values, so that no secret is kept; of files that hold keys, and of binary ones, a hash under a key of this agent.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from connectors.core.telemetry import AttributeValue
from connectors.server.changes.model import Change, Look, Memory, Watcher, before_and_after, mark, read_file

MOST_FILES: Final = 1_000
MOST_DIRECTORIES: Final = 400
LARGEST_TEXT: Final = 65_536
"""Bytes of a file whose text is compared; of a larger one only the hash of its first part, with its size."""
_LARGEST_HASHED: Final = 4 * 1024 * 1024
_DEEPEST: Final = 6
_MAGIC: Final = frozenset("*?[")

KEYS: Final = (
    *("*.key", "*_key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.keytab", "*.gpg", "id_rsa*", "id_ed25519*", "id_ecdsa*", "*.ppk"),
    *("*secret*", "*password*", "*passwd*", "*credential*", "*shadow*", ".netrc", ".pgpass", "*.htpasswd", "*.env", "*.pem", "*.token"),
)
"""Names of files of which nothing but a hash is taken."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a set's files are to be called in events: ``file`` in ``irca.host.file.changed``, and in a sentence."""

    event: str
    noun: str
    text: bool = True
    """Whether what differs in the text is told."""


class FileSet:
    """The files that ``patterns`` name and ``excluded`` do not. A pattern is an absolute path with ``*``, ``?``, ``[…]`` and ``**``.

    ``root`` stands before every path (for tests); paths in events lack it.
    """

    def __init__(self, patterns: Sequence[str], excluded: Sequence[str] = (), root: str = "") -> None:
        self._patterns = tuple(patterns)
        self._excluded = tuple(excluded)
        self._root = root
        self._directories: dict[str, str] = {}
        self._paths: list[str] = []
        self._hidden: set[str] = set()
        self.full = False
        """Whether there are more files than are watched."""

    @property
    def directories(self) -> Iterable[str]:
        """The directories that hold the files, or would."""
        return self._directories.keys()

    @property
    def hidden(self) -> list[str]:
        """Directories whose entries this user may not see."""
        return sorted(path.removeprefix(self._root) for path in self._hidden)

    def marks(self) -> dict[str, str]:
        """The mark of each file that there is. A directory that may not be read stands for the files in it."""
        if not self._directories or any(mark(directory) != known for directory, known in self._directories.items()):
            self._expand()
        found = {}
        for path in self._paths:
            if known := _file_mark(path, hidden=path in self._hidden):
                found[path.removeprefix(self._root)] = known
        return found

    def real(self, path: str) -> str:
        """Where the file of an event's path is."""
        return self._root + path

    def _expand(self) -> None:
        self._directories, self._hidden, self.full = {}, set(), False
        paths: dict[str, None] = {}
        for pattern in self._patterns:
            for path in self._matching(self._root, pattern.strip("/").split("/"), 0):
                if len(paths) >= MOST_FILES:
                    self.full = True
                    break
                if not self._is_excluded(path.removeprefix(self._root)):
                    paths[path] = None
        self._paths = list(paths)

    def _matching(self, base: str, parts: list[str], depth: int) -> Iterator[str]:
        """The paths below ``base`` that the remaining ``parts`` of a pattern match."""
        first, rest = parts[0], parts[1:]
        if first == "**":
            yield from self._below(base, parts, depth)
        elif _MAGIC & set(first):
            names = [name for name in self._entries(base) if fnmatch.fnmatchcase(name, first) and (first[0] == "." or name[0] != ".")]
            if base in self._hidden:
                yield base
            for name in names:
                yield from self._matching(f"{base}/{name}", rest, depth) if rest else (f"{base}/{name}",)
        elif rest:
            yield from self._matching(f"{base}/{first}", rest, depth)
        else:
            self._note_directory(base)
            yield f"{base}/{first}"

    def _below(self, base: str, parts: list[str], depth: int) -> Iterator[str]:
        """What the parts behind ``**`` match in ``base`` and in the directories below it."""
        if parts[1:]:
            yield from self._matching(base, parts[1:], depth)
        for name in self._entries(base) if depth < _DEEPEST else ():
            if os.path.isdir(path := f"{base}/{name}") and not os.path.islink(path):  # noqa: PTH112, PTH114 - a Path costs more
                yield from self._below(path, parts, depth + 1)

    def _entries(self, directory: str) -> list[str]:
        if not self._note_directory(directory):
            return []
        try:
            return sorted(os.listdir(directory))  # noqa: PTH208 - as above
        except PermissionError:
            self._hidden.add(directory)
        except OSError:
            pass
        return []

    def _note_directory(self, directory: str) -> bool:
        if directory not in self._directories:
            if len(self._directories) >= MOST_DIRECTORIES:
                self.full = True
                return False
            self._directories[directory] = mark(directory)
        return True

    def _is_excluded(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self._excluded)


class FileWatcher(Watcher):
    """Tells of files that are added, changed and removed. Subclasses say which, and what they are called."""

    def __init__(self, files: FileSet, kind: Kind) -> None:
        self._files = files
        self._kind = kind

    def directories(self) -> Iterable[str]:
        """As :meth:`Watcher.directories`."""
        return self._files.directories

    def look(self, memory: Memory) -> Look | None:
        """As :meth:`Watcher.look`."""
        marks = self._files.marks()
        self.note = _note(self._files)
        # Not Python's own hash, which is another in each process.
        stamp = hashlib.blake2b(repr(marks).encode(errors="surrogateescape"), digest_size=12).hexdigest()
        if stamp == memory.stamp:
            return None
        before = memory.state()
        after: dict[str, str] = {}
        texts: dict[str, str | None] = {}
        changes: list[Change] = []
        for path in sorted((before or {}).keys() | marks.keys()):
            old = json.loads(before[path]) if before and path in before else None
            if path not in marks:
                if old is not None:
                    texts[path] = None
                    changes.append(_gone(self._kind, path, old))
                continue
            if old is not None and old["mark"] == marks[path]:
                after[path] = before[path] if before else ""
                continue
            seen, text = describe(self._files.real(path), marks[path], memory.key, with_text=self._kind.text)
            after[path] = json.dumps(seen)
            texts[path] = text
            if before is not None and (change := _change(self._kind, path, old, seen, text, memory)):
                changes.append(change)
        return Look(stamp, after, changes, texts)


def describe(path: str, known: str, key: bytes, *, with_text: bool) -> tuple[dict[str, Any], str | None]:
    """What is remembered of a file: mark, mode, owner, size, time, hash under ``key``; and its text, without secrets, if told."""
    seen: dict[str, Any] = {"mark": known}
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            seen["link"] = os.readlink(path)  # noqa: PTH115 - as above
            found = os.stat(path)  # noqa: PTH116 - as above
    except OSError:
        return seen, None
    seen |= {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid, "size": found.st_size}
    seen["mtime"] = found.st_mtime_ns
    if not stat.S_ISREG(found.st_mode):
        return seen, None
    try:
        content = read_file(path, _LARGEST_HASHED)
    except OSError:
        return seen, None
    # Under a key that never leaves this machine, so that the hash of a short secret cannot be looked up.
    seen["hash"] = hashlib.blake2b(content, digest_size=16, key=key, person=b"irca-file").hexdigest()
    name = os.path.basename(path).lower()  # noqa: PTH119 - as above
    secret = any(fnmatch.fnmatchcase(name, pattern) for pattern in KEYS) or (b"PRIVATE KEY-----" in content)
    if secret or not with_text or len(content) > LARGEST_TEXT or b"\0" in content:
        seen["why"] = "key" if secret else "size" if len(content) > LARGEST_TEXT else "binary" if b"\0" in content else ""
        return seen, None
    from connectors.server.changes.text import without_secrets  # noqa: PLC0415 - only a file that has changed needs it

    text = without_secrets(content.decode(errors="replace"))
    # Of what is left without secrets, the plain hash: equal files of different hosts are seen to be equal.
    seen["text_hash"] = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32]
    return seen, text


def _file_mark(path: str, *, hidden: bool) -> str:
    """The mark of a file, of the link that leads to it as well; of a directory only where it stands for hidden files."""
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    if stat.S_ISLNK(found.st_mode):
        return f"l{found.st_ino:x}.{found.st_mtime_ns:x}.{mark(path)}"
    if stat.S_ISDIR(found.st_mode) and not hidden:
        return ""
    return f"{found.st_mtime_ns:x}.{found.st_size:x}.{found.st_ino:x}.{found.st_ctime_ns:x}"


def _note(files: FileSet) -> str:
    notes = []
    if hidden := files.hidden:
        notes.append(f"this user may not list {', '.join(hidden[:5])}; of changes there only the time is seen")
    if files.full:
        notes.append(f"no more than {MOST_FILES} files in {MOST_DIRECTORIES} directories are watched")
    return "; ".join(notes)


def _change(kind: Kind, path: str, old: dict[str, Any] | None, seen: dict[str, Any], text: str | None, memory: Memory) -> Change | None:
    """The change from ``old`` (None: there was no such file) to ``seen``; None where only times differ."""
    if old is not None and _visible(old) == _visible(seen):
        return None
    attributes: dict[str, AttributeValue] = {"file.path": path}
    for name, key in (("file.size", "size"), ("file.mode", "mode"), ("irca.file.uid", "uid"), ("irca.file.link", "link")):
        before, after = (_shown(each, key) for each in (old or {}, seen))
        if after is not None and (old is None or before == after) and name in ("file.size", "file.mode"):
            attributes[name] = after
        elif before != after:
            attributes |= before_and_after(name, before, after)
    hashes = [None if each is None else each.get("text_hash") or each.get("hash") for each in (old, seen)]
    if hashes[0] != hashes[1]:
        attributes |= before_and_after("irca.file.hash", *hashes)
    if old is None:
        return Change(f"{kind.event}.added", path, f"{kind.noun} {path} appeared", attributes, time_unix_nano=int(seen.get("mtime", 0)))
    differing, what = _difference(path, old, seen, text, memory)
    body = f"{kind.noun} {path} was changed{what}"
    return Change(f"{kind.event}.changed", path, body, attributes | differing, time_unix_nano=int(seen.get("mtime", 0)))


def _difference(
    path: str, old: dict[str, Any], seen: dict[str, Any], text: str | None, memory: Memory
) -> tuple[dict[str, AttributeValue], str]:
    """What differs in the text, or why that is not told; and the same in short."""
    if text is None:
        if "hash" not in seen:
            return {"irca.file.diff.reason": "the content is not readable to this user"}, ""
        why = {"key": "it may hold keys", "size": "it is too large", "binary": "it is no text"}.get(seen.get("why", ""))
        return ({"irca.file.diff.reason": why} if why else {}), ""
    from connectors.server.changes.text import difference  # noqa: PLC0415 - only a file that has changed needs it

    lines, added, removed = difference(memory.text(path) or "", text)
    if added or removed:
        counts: dict[str, AttributeValue] = {"irca.file.lines.added": added, "irca.file.lines.removed": removed}
        return counts | {"irca.file.diff": lines}, f" ({added} lines added, {removed} removed)"
    if old.get("hash") != seen.get("hash"):
        return {"irca.file.diff.reason": "only values that look like secrets differ"}, ""
    return {}, ""


def _gone(kind: Kind, path: str, old: dict[str, Any]) -> Change:
    attributes: dict[str, AttributeValue] = {"file.path": path}
    attributes |= before_and_after("irca.file.hash", old.get("text_hash") or old.get("hash"), None)
    return Change(f"{kind.event}.removed", path, f"{kind.noun} {path} was removed", attributes)


def _visible(seen: dict[str, Any]) -> dict[str, Any]:
    """What a change is told of: not times, where the content can be compared."""
    left_out = ("mark", "mtime", "size", "text_hash", "why") if "hash" in seen else ("mtime", "text_hash")
    return {key: value for key, value in seen.items() if key not in left_out}


def _shown(seen: dict[str, Any], key: str) -> AttributeValue | None:
    value = seen.get(key)
    return f"{value:04o}" if key == "mode" and value is not None else value
