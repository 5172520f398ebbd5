"""Named, supervised background work of the platform."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """Work that repeats every ``interval`` seconds. ``failure`` is why its last run failed, empty when it did not.

    Times are seconds since the epoch; ``last_run`` is the end of the last run, ``last_failure`` that of the last one that failed.
    """

    name: str
    interval: float
    run: Callable[[], Awaitable[object]]
    failure: str = ""
    runs: int = 0
    started: float = 0.0
    last_run: float | None = None
    last_failure: float | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Jobs:
    """Runs jobs side by side. One that fails is logged, keeps its turn, and shows in readiness; the others go on."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._jobs: list[Job] = []
        self._clock = clock

    def add(self, name: str, interval: float, run: Callable[[], Awaitable[object]]) -> None:
        """Start a job; its first run comes after one interval."""
        job = Job(name, interval, run, started=self._clock())
        job.task = asyncio.create_task(self._repeat(job), name=f"irca-{name}")
        self._jobs.append(job)

    def all(self) -> list[Job]:
        """Every job, in the order in which they were added."""
        return list(self._jobs)

    def failures(self) -> dict[str, str]:
        """Jobs whose last run failed, with the reason."""
        return {job.name: job.failure for job in self._jobs if job.failure}

    async def stop(self) -> None:
        """Cancel all jobs and wait for them."""
        tasks = [job.task for job in self._jobs if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, job: Job) -> None:
        while True:
            await asyncio.sleep(job.interval)
            try:
                await job.run()
            except Exception as exc:  # noqa: BLE001 - the job has its turn again; readiness tells of the failure meanwhile
                if not job.failure:
                    _log.exception("background job %s failed", job.name, extra={"action": "job_failed", "job": job.name})
                job.failure = f"{type(exc).__name__}: {exc}"
                job.last_failure = self._clock()
            else:
                if job.failure:
                    _log.warning("background job %s recovered", job.name, extra={"action": "job_recovered", "job": job.name})
                job.failure = ""
            job.runs += 1
            job.last_run = self._clock()
