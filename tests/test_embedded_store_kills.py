"""A process that is killed while it writes loses nothing that was acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
from opened_store import ALL, T0, opened

from app.telemetry.embedded.files import DAY_MS
from app.telemetry.store import Matcher

WRITER = textwrap.dedent(
    """
    import asyncio, random, sys
    from pathlib import Path
    import numpy as np
    from app.telemetry.embedded import EmbeddedMetricStore
    from app.telemetry.store import Row, SeriesKey

    HOUR = 3_600_000
    T0 = 20_000 * 86_400_000

    async def main(directory, seed):
        store = EmbeddedMetricStore(Path(directory), retention=30 * 86_400, rollup_retention=60 * 86_400, disk_budget=2**30)
        await store.open()
        chance = random.Random(seed)
        async def agent(number):
            labels = [(("__name__", f"m{n}"), ("agent", f"{seed}-{number}")) for n in range(5)]
            schema = await store.register([SeriesKey(one, "1", "gauge") for one in labels])
            sent = 0
            while True:
                times = [T0 + (sent + n) * 90_000 for n in range(chance.randint(1, 60))]
                await store.append([Row(schema.id, t, np.arange(5.0) + t % 977) for t in times])
                sent += len(times)
                print("ack", number, sent, flush=True)
        async def keeper():
            while True:
                await store.maintain(T0 + 20 * 86_400_000)
        await asyncio.gather(keeper(), *(agent(n) for n in range(4)))

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
    """
)


def _write_until_killed(directory: Path, seed: int, chance: random.Random) -> dict[str, int]:
    """What a writer had been told is stored, by agent, when it was killed."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", WRITER, str(directory), str(seed)]
    acknowledged: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}) as process:
        assert process.stdout is not None
        lines = chance.randint(4, 150)
        for line in process.stdout:
            if line.endswith("\n"):
                _, number, sent = line.split()
                acknowledged[number] = int(sent)
            lines -= 1
            if not lines:
                time.sleep(chance.random() * 0.01)
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return acknowledged


async def test_nothing_acknowledged_is_lost_or_doubled_by_twenty_kills(tmp_path: Path) -> None:
    chance = random.Random(7)
    read_back = 0
    for seed in range(20):
        acknowledged = _write_until_killed(tmp_path, seed, chance)
        async with opened(tmp_path, retention=30 * 86_400) as store:
            assert store.health().quarantined_files == 0
            for number, sent in acknowledged.items():
                found = await store.select([Matcher("agent", "=", f"{seed}-{number}")], 0, T0 * 2)
                assert len(found) == 5
                expected = T0 + np.arange(len(found[0].times)) * 90_000
                assert len(expected) >= sent
                for series in found:
                    assert series.times.tolist() == expected.tolist()  # each once, no holes, all columns of a row
                    assert (series.values == expected % 977 + int(series.labels["__name__"][1:])).all()
            await store.maintain(T0 + 20 * DAY_MS)
            assert store.health().unsealed_rows == 0
            if seed % 5 != 4:
                continue
            everything = await store.select(ALL, 0, T0 * 2)
            assert (await store.statistics()).samples == sum(len(s.times) for s in everything)
            read_back += len(everything)
    assert read_back
