"""Queries over a metric store: catalogue, fetching on the event loop, evaluation in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from app.errors import QueryTooLargeError
from app.telemetry.promql.catalogue import Catalogue, Selection
from app.telemetry.promql.errors import QuerySyntaxError, QueryTimeoutError
from app.telemetry.promql.evaluate import Evaluation, Fetch, fetches
from app.telemetry.promql.model import Allowance, Grid, LabelSet, Limits, Series, Value
from app.telemetry.promql.names import prometheus_label
from app.telemetry.promql.parse import parse, value_type
from app.telemetry.store import NAME, Matcher, MetricMetadata, MetricStore

MAX_POINTS = 11_000
"""Most steps of a range query."""
EARLIEST_MS, LATEST_MS = 0, 4_102_444_800_000
"""The range that stands for all of time: 1970 to 2100."""

_CATALOGUE_LIFE = 10.0
_CATALOGUE_REST = 1.0
_TYPE_NAMES = {"scalar": "scalar", "string": "string", "vector": "instant vector", "matrix": "range vector"}

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Result:
    """A query's answer: its value over ``grid``; an instant query's grid has one step."""

    value: Value
    grid: Grid


class QueryEngine:
    """Evaluates PromQL over one store. Names are resolved against a catalogue that is kept for a few seconds."""

    def __init__(self, store: MetricStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self._clock = clock
        self._catalogue: Catalogue | None = None
        self._catalogue_time = 0.0

    async def instant(self, query: str, time_ms: int, allowance: Allowance, then: Callable[[Result], Answer]) -> Answer:
        """``query`` at one time; ``then`` turns the result into the answer, still in the thread.

        Raises:
            QuerySyntaxError: the query is not valid.
            UnsupportedQueryError: it uses something that is not supported.
            QueryExecutionError: its series cannot be combined as asked.
            QueryTooLargeError: it needs more than the allowance.
        """
        return await self._run(query, Grid.of(time_ms, time_ms, 1), allowance, then)

    async def range(
        self,
        query: str,
        start_ms: int,
        end_ms: int,
        step_ms: int,
        allowance: Allowance,
        then: Callable[[Result], Answer],
    ) -> Answer:
        """``query`` at steps from ``start_ms`` to ``end_ms``; otherwise as :meth:`instant`.

        Raises:
            QuerySyntaxError: also when there are too many steps or none, or the query gives a range vector or a string.
        """
        if step_ms <= 0:
            raise QuerySyntaxError("zero or negative query resolution step widths are not accepted. Try a positive integer")
        if end_ms < start_ms:
            raise QuerySyntaxError("end timestamp must not be before start time")
        if (end_ms - start_ms) // step_ms >= MAX_POINTS:
            raise QuerySyntaxError(
                f"exceeded maximum resolution of {MAX_POINTS:,} points per timeseries. Try decreasing the query resolution (?step=XX)"
            )
        kind = value_type(parse(query))
        if kind not in ("scalar", "vector"):
            raise QuerySyntaxError(f'invalid expression type "{_TYPE_NAMES[kind]}" for range query, must be Scalar or instant Vector')
        return await self._run(query, Grid.of(start_ms, end_ms, step_ms), allowance, then)

    async def series(self, selectors: Sequence[Sequence[Matcher]], start_ms: int, end_ms: int) -> list[LabelSet]:
        """Label sets of the series that meet any of ``selectors``, sorted."""
        found: set[LabelSet] = set()
        for selection in await self._selections(selectors):
            labels = (selection.labels(stored) for stored in await self.store.series(selection.matchers, start_ms, end_ms))
            found.update(label_set for label_set in labels if selection.accepts(label_set))
        return sorted(found)

    async def label_names(self, selectors: Sequence[Sequence[Matcher]], start_ms: int, end_ms: int) -> list[str]:
        """Label names of the series that meet any of ``selectors`` (of all series without one), sorted."""
        names: set[str] = set()
        for selection in await self._selections(selectors or [()]):
            if selection.conditions:
                names.update(name for labels in await self.series(selectors, start_ms, end_ms) for name, _ in labels)
                continue
            stored = await self.store.label_names(selection.matchers, start_ms, end_ms)
            names.update(name if selection.stored_view or name == NAME else prometheus_label(name) for name in stored)
        return sorted(names)

    async def label_values(self, name: str, selectors: Sequence[Sequence[Matcher]], start_ms: int, end_ms: int) -> list[str]:
        """Values of the label ``name`` among the series that meet any of ``selectors`` (among all without one), sorted."""
        catalogue = await self._current()
        values: set[str] = set()
        for selection in await self._selections(selectors or [()]):
            stored = [NAME] if name == NAME else catalogue.stored_labels(name, stored_view=selection.stored_view)
            if name == NAME or len(stored) > 1 or selection.conditions:
                if name == NAME and not selection.matchers and (start_ms, end_ms) == (EARLIEST_MS, LATEST_MS):
                    values.update(catalogue.translated_names())
                    continue
                series = (selection.labels(one) for one in await self.store.series(selection.matchers, start_ms, end_ms))
                values.update(value for one in series if selection.accepts(one) for key, value in one if key == name)
            elif stored:
                values.update(await self.store.label_values(stored[0], selection.matchers, start_ms, end_ms))
        return sorted(value for value in values if value)

    async def metadata(self) -> list[tuple[str, MetricMetadata]]:
        """What is known of each metric, with its name in the Prometheus view first, sorted by that."""
        catalogue = await self._current()
        return sorted(((catalogue.translate(one), one) for one in catalogue.metadata), key=lambda pair: (pair[0], pair[1].name))

    async def _run(self, query: str, grid: Grid, allowance: Allowance, then: Callable[[Result], Answer]) -> Answer:
        node = parse(query)
        limits = Limits(allowance)
        data: dict[Fetch, list[Series]] = {}
        try:
            async with asyncio.timeout(allowance.timeout):
                for fetch in fetches(node, grid):
                    if fetch not in data:
                        data[fetch] = await self._fetch(fetch, limits)
        except TimeoutError:
            raise QueryTimeoutError(f"query timed out: the samples were not there within {allowance.timeout:g} s") from None

        def compute() -> Answer:
            return then(Result(Evaluation(data, limits).run(node, grid), grid))

        return await asyncio.to_thread(compute)

    async def _fetch(self, fetch: Fetch, limits: Limits) -> list[Series]:
        selection = await self._resolve(fetch.matchers)
        if selection is None:
            return []
        left = limits.max_samples - limits.fetched
        if left <= 0:
            raise QueryTooLargeError(f"query processing would load too many samples into memory; {limits.max_samples} are allowed")
        selected = await self.store.select(selection.matchers, fetch.start_ms, fetch.end_ms, max_samples=left)
        limits.fetched += sum(len(one.times) for one in selected)
        return selection.series(selected)

    async def _selections(self, selectors: Sequence[Sequence[Matcher]]) -> list[Selection]:
        resolved = [await self._resolve(matchers) for matchers in selectors]
        return [selection for selection in resolved if selection is not None]

    async def _resolve(self, matchers: Sequence[Matcher]) -> Selection | None:
        catalogue = await self._current()
        if not catalogue.knows(matchers) and self._clock() - self._catalogue_time > _CATALOGUE_REST:
            catalogue = await self._refreshed()
        return catalogue.resolve(matchers)

    async def _current(self) -> Catalogue:
        if self._catalogue is None or self._clock() - self._catalogue_time > _CATALOGUE_LIFE:
            return await self._refreshed()
        return self._catalogue

    async def _refreshed(self) -> Catalogue:
        asked = self._clock()
        metadata = await self.store.metadata()
        labels = await self.store.label_names((), EARLIEST_MS, LATEST_MS)
        self._catalogue, self._catalogue_time = Catalogue(metadata, labels), asked
        return self._catalogue
