"""The series index: which series there are, which match, and in which column of which schema they stand.

Held compactly in memory (a series costs 4 bytes a label forward, 4 backward, and no object of its own) and durably in ``index.db``.
A series is the sorted list of its label pairs' numbers; that list is its identity in the database too. Registration happens in the
store's writer thread, look-ups in any thread.
"""

from __future__ import annotations

import sqlite3
import threading
from array import array
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import msgspec
import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequestError
from app.telemetry.embedded.files import connect, transaction
from app.telemetry.matching import CompiledMatcher
from app.telemetry.store import NAME, Labels, MetricKind, MetricMetadata, Schema, SeriesKey

Ids = npt.NDArray[np.uint32]
_NOTHING: Ids = np.empty(0, np.uint32)
_NEVER = -1
_NOT_LOADED = ("_path", "_lock", "_connection", "identity")
_TABLES = (
    "CREATE TABLE identity (value TEXT NOT NULL)",
    "CREATE TABLE label_pairs (id INTEGER PRIMARY KEY, name TEXT NOT NULL, value TEXT NOT NULL)",
    "CREATE TABLE series (id INTEGER PRIMARY KEY, pairs BLOB NOT NULL UNIQUE, unit TEXT NOT NULL, kind TEXT NOT NULL)",
    "CREATE TABLE schemas (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, series BLOB NOT NULL)",
)


def digest_of(series: Sequence[SeriesKey]) -> bytes:
    """What a schema is recognised by: 16 bytes that depend on every series and their order."""
    return blake2b(msgspec.msgpack.encode(series), digest_size=16).digest()


class SeriesIndex:
    """The index over one ``index.db``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self.identity = ""
        self._clear()

    def _clear(self) -> None:
        self._names: dict[str, dict[str, int]] = {}
        self._pair_names: list[str] = []
        self._pair_values: list[str] = []
        self._postings: list[array[int]] = []
        self._starts = array("Q", [0])
        self._forward = array("I")
        self._traits: dict[tuple[str, MetricKind], int] = {}
        self._trait_list: list[tuple[str, MetricKind]] = []
        self._trait_of = array("I")
        self._digests: dict[bytes, Schema] = {}
        self._schemas: list[Ids] = [_NOTHING]  # schema numbers begin at 1
        self._sizes: dict[int, int] = {}
        self._first_schema = array("I")
        self._more_schemas: dict[int, list[int]] = {}
        self._oldest = array("q", [_NEVER])
        self._newest = array("q", [_NEVER])

    # Opening

    def open(self) -> None:
        """Open or make the database and load it.

        Raises:
            sqlite3.Error: it cannot be opened, or is damaged.
        """
        self._connection = connect(self._path)
        if self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            with transaction(self._connection):
                for statement in _TABLES:
                    self._connection.execute(statement)
                self._connection.execute("INSERT INTO identity VALUES (?)", (uuid4().hex,))
        self.identity = str(self._connection.execute("SELECT value FROM identity").fetchone()[0])
        self.load()

    def load(self) -> None:
        """Read everything from the database; also after a registration that could not be committed."""
        fresh = SeriesIndex(self._path)
        fresh._load(self._database())
        with self._lock:
            count = min(len(self._oldest), len(fresh._oldest))
            fresh._oldest[:count], fresh._newest[:count] = self._oldest[:count], self._newest[:count]
            kept = {name: vars(self)[name] for name in _NOT_LOADED}
            vars(self).update(vars(fresh) | kept)

    def _load(self, connection: sqlite3.Connection) -> None:
        for _, name, value in connection.execute("SELECT id, name, value FROM label_pairs ORDER BY id"):
            self._remember_pair(name, value)
        blobs: list[bytes] = []
        for _, pairs, unit, kind in connection.execute("SELECT id, pairs, unit, kind FROM series ORDER BY id"):
            blobs.append(pairs)
            self._trait_of.append(self._trait(unit, kind))
        self._load_postings(blobs)
        self._first_schema = array("I", bytes(4 * len(blobs)))
        for number, digest, series in connection.execute("SELECT id, digest, series FROM schemas ORDER BY id"):
            ids = np.frombuffer(series, np.uint32)
            self._remember_schema(number, ids)
            self._publish(digest, Schema(number, len(ids)))

    def _load_postings(self, blobs: list[bytes]) -> None:
        forward = np.frombuffer(b"".join(blobs), np.uint32)
        sizes = np.fromiter((len(b) // 4 for b in blobs), np.int64, len(blobs))
        self._forward = array("I", forward.tobytes())
        self._starts = array("Q", np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64).tobytes())
        owners = np.repeat(np.arange(len(blobs), dtype=np.uint32), sizes)
        by_pair = owners[np.argsort(forward, kind="stable")]
        ends = np.cumsum(np.bincount(forward, minlength=len(self._postings)))
        start = 0
        for pair, end in enumerate(ends.tolist()):
            self._postings[pair] = array("I", by_pair[start:end].tobytes())
            start = end

    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            raise InvalidRequestError("the metric store is not open")
        return self._connection

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Registration (the writer thread)

    def known(self, digest: bytes) -> Schema | None:
        """The schema of a digest, if it is registered."""
        return self._digests.get(digest)

    def schema_ids(self) -> list[int]:
        """All schemas, in order."""
        return list(self._sizes)

    def size(self, schema_id: int) -> int | None:
        """How many series a schema has; None for an unknown one."""
        return self._sizes.get(schema_id)

    def register(self, requests: Iterable[tuple[bytes, Sequence[SeriesKey]]]) -> list[Schema]:
        """Register schemas in one durable transaction.

        Raises:
            sqlite3.Error: nothing of it is registered.
        """
        connection = self._database()
        found: list[Schema] = []
        made: dict[bytes, Schema] = {}
        try:
            with self._lock, transaction(connection):
                for digest, series in requests:
                    schema = self._digests.get(digest) or made.get(digest)
                    if schema is None:
                        schema = made[digest] = self._register(connection, digest, series)
                    found.append(schema)
        except BaseException:
            self.load()
            raise
        for digest, schema in made.items():  # only now: nobody may write under a number that could yet be another's
            self._publish(digest, schema)
        return found

    def _register(self, connection: sqlite3.Connection, digest: bytes, series: Sequence[SeriesKey]) -> Schema:
        ids = np.array([self._series_id(connection, key) for key in series], np.uint32)
        number = len(self._schemas)
        connection.execute("INSERT INTO schemas VALUES (?, ?, ?)", (number, digest, ids.tobytes()))
        self._remember_schema(number, ids)
        return Schema(number, len(ids))

    def _publish(self, digest: bytes, schema: Schema) -> None:
        self._sizes[schema.id] = schema.size
        self._digests[digest] = schema

    def _series_id(self, connection: sqlite3.Connection, key: SeriesKey) -> int:
        pairs = array("I", sorted(self._pair_id(connection, name, value) for name, value in dict(key.labels).items() if value))
        trait = self._trait(key.unit, key.kind)
        row = connection.execute("SELECT id FROM series WHERE pairs = ?", (pairs.tobytes(),)).fetchone()
        if row is not None:
            number = int(row[0])
            if self._trait_of[number] != trait:
                connection.execute("UPDATE series SET unit = ?, kind = ? WHERE id = ?", (key.unit, key.kind, number))
                self._trait_of[number] = trait
            return number
        number = len(self._trait_of)
        connection.execute("INSERT INTO series VALUES (?, ?, ?, ?)", (number, pairs.tobytes(), key.unit, key.kind))
        self._trait_of.append(trait)
        self._first_schema.append(0)
        self._forward.extend(pairs)
        self._starts.append(len(self._forward))
        for pair in pairs:
            self._postings[pair].append(number)
        return number

    def _pair_id(self, connection: sqlite3.Connection, name: str, value: str) -> int:
        known = self._names.get(name, {}).get(value)
        if known is not None:
            return known
        connection.execute("INSERT INTO label_pairs VALUES (?, ?, ?)", (len(self._pair_names), name, value))
        return self._remember_pair(name, value)

    def _remember_pair(self, name: str, value: str) -> int:
        number = len(self._pair_names)
        values = self._names.setdefault(name, {})
        values[value] = number
        self._pair_names.append(name)
        self._pair_values.append(value)
        self._postings.append(array("I"))
        return number

    def _trait(self, unit: str, kind: MetricKind) -> int:
        number = self._traits.setdefault((unit, kind), len(self._trait_list))
        if number == len(self._trait_list):
            self._trait_list.append((unit, kind))
        return number

    def _remember_schema(self, number: int, ids: Ids) -> None:
        self._schemas.append(ids)
        self._oldest.append(_NEVER)
        self._newest.append(_NEVER)
        for series in ids.tolist():
            if not self._first_schema[series]:
                self._first_schema[series] = number
            elif self._first_schema[series] != number:
                others = self._more_schemas.setdefault(series, [])
                if number not in others:
                    others.append(number)

    # Spans

    def touch(self, schema_id: int, oldest_ms: int, newest_ms: int) -> None:
        """Note that a schema has samples in a stretch of time; unknown schemas (of a file from elsewhere) are passed over."""
        if schema_id not in self._sizes:
            return
        known = self._oldest[schema_id]
        if known == _NEVER or oldest_ms < known:
            self._oldest[schema_id] = oldest_ms
        self._newest[schema_id] = max(newest_ms, self._newest[schema_id])

    def active_schemas(self, start_ms: int, end_ms: int) -> list[int]:
        """The schemas that may have samples with ``start_ms <= time <= end_ms``, in order."""
        with self._lock:  # an array that is being copied cannot grow
            oldest, newest = np.array(self._oldest), np.array(self._newest)
        return [int(n) for n in np.flatnonzero((newest >= start_ms) & (oldest <= end_ms) & (newest != _NEVER))]

    # Look-ups (any thread)

    def match(self, matchers: Sequence[CompiledMatcher]) -> Ids:
        """The series that satisfy every matcher, in ascending order."""
        with self._lock:
            found: Ids | None = None
            refused: list[Ids] = []
            for matcher in matchers:
                values = self._names.get(matcher.name, {})
                if matcher.accepts_missing:
                    refused.append(self._union(pair for value, pair in values.items() if not matcher.accepts(value)))
                    continue
                exact = matcher.exact_value
                hits = (
                    ([values[exact]] if exact in values else [])
                    if exact is not None
                    else [p for v, p in values.items() if matcher.accepts(v)]
                )
                accepted = self._union(hits)
                found = accepted if found is None else np.intersect1d(found, accepted, assume_unique=True)
                if not found.size:
                    return _NOTHING
            if found is None:
                found = np.arange(len(self._trait_of), dtype=np.uint32)
            for ids in refused:
                found = np.setdiff1d(found, ids, assume_unique=True)
            return found

    def _union(self, pairs: Iterable[int]) -> Ids:
        parts = [np.array(self._postings[pair], np.uint32) for pair in pairs]
        if not parts:
            return _NOTHING
        # A series has a name only once, so that the postings of one name's values never overlap.
        return parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))

    def places(self, ids: Ids, start_ms: int | None, end_ms: int) -> list[tuple[int, npt.NDArray[np.intp], Ids]]:
        """Where series stand: ``(schema, columns, their series)`` of the schemas that may have samples in the range, in order.

        Without ``start_ms`` all schemas count: of some only rollups may be left.
        """
        with self._lock:
            if not ids.size:
                return []
            schemas = (
                set(np.unique(np.array(self._first_schema, np.uint32)[ids]).tolist()) if ids.size > 1 else {self._first_schema[int(ids[0])]}
            )
            if self._more_schemas:
                for series in ids.tolist():
                    schemas.update(self._more_schemas.get(series, ()))
            places = []
            for schema in sorted(schemas):
                newest = self._newest[schema]
                absent = start_ms is not None and (newest == _NEVER or newest < start_ms or self._oldest[schema] > end_ms)
                if absent or not schema:
                    continue
                series_of = self._schemas[schema]
                columns = np.flatnonzero(series_of == ids[0] if ids.size == 1 else np.isin(series_of, ids))
                _, first = np.unique(series_of[columns], return_index=True)  # listed twice in a schema: the first column counts
                columns = columns[np.sort(first)]
                places.append((schema, columns, series_of[columns]))
            return places

    def describe(self, series: int) -> tuple[Labels, str, MetricKind]:
        """A series' labels, unit and kind."""
        with self._lock:
            pairs = self._forward[self._starts[series] : self._starts[series + 1]]
            names, values = map(self._pair_names.__getitem__, pairs), map(self._pair_values.__getitem__, pairs)
            labels: Mapping[str, str] = dict(zip(names, values, strict=True))  # a page of a large cluster asks for twenty thousand
            return labels, *self._trait_list[self._trait_of[series]]

    def label_names(self, ids: Ids) -> list[str]:
        """Sorted names of the labels that these series have."""
        with self._lock:
            names = {self._pair_names[pair] for pair in self._pairs_of(ids).tolist()}
        return sorted(names)

    def label_values(self, name: str, ids: Ids) -> list[str]:
        """Sorted values of one label among these series."""
        with self._lock:
            values = {self._pair_values[p] for p in self._pairs_of(ids).tolist() if self._pair_names[p] == name}
        return sorted(values)

    def _pairs_of(self, ids: Ids) -> Ids:
        starts = np.array(self._starts, np.uint64).astype(np.int64)
        sizes = (starts[1:] - starts[:-1])[ids]
        offsets = np.repeat(starts[:-1][ids] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(sizes.sum())
        return np.unique(np.array(self._forward, np.uint32)[offsets])

    def metadata(self) -> list[MetricMetadata]:
        """Unit and kind by metric name, as the latest series of that name has them."""
        with self._lock:
            latest = {name: self._postings[pair][-1] for name, pair in self._names.get(NAME, {}).items() if self._postings[pair]}
            return [MetricMetadata(name, *self._trait_list[self._trait_of[series]]) for name, series in sorted(latest.items())]

    def __len__(self) -> int:
        return len(self._trait_of)
