"""Ingest with a durable answer: CPU-seconds of the server per million samples, beside VictoriaMetrics' remote write.

One client process, pre-encoded bodies, eight keep-alive connections; both servers see the same series and values in the same run.
Ours takes OTLP protobuf with gzip, as our agents send it; VictoriaMetrics takes remote write with snappy, its own best path.
"""

from __future__ import annotations

import gzip
import json
import random
import socket
import struct
import tempfile
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cramjam
from processes import PYTHON, Measured, answers, free_port, peer, running, wait_for

from connectors.core import opamp_pb2 as opamp
from connectors.core.telemetry import Collection, Kind, Metric, Point, ResourceMetrics, encode_metrics

KEY = "benchmark-admin-key-of-some-length"
PROTOBUF = "application/x-protobuf"


def values(series: int, rounds: int) -> list[list[float]]:
    """Values by round: percents in steps of 0.1, bytes, counters, constants."""
    chance = random.Random(42)
    state = [chance.choice([50.0, 4e9, 1e6, 1.0]) for _ in range(series)]
    made = []
    for _ in range(rounds):
        for i in range(series):
            kind = i % 10
            if kind < 3:
                state[i] = round(min(100.0, max(0.0, state[i] % 100 + chance.choice([-0.1, 0, 0.1]))), 1)
            elif kind < 5:
                state[i] = float(int(4e9 + chance.randrange(-4096, 4096) * 4096))
            elif kind < 8:
                state[i] += chance.randrange(1000)
        made.append(list(state))
    return made


def otlp_bodies(agent: int, batch: int, made: list[list[float]], start: int) -> list[bytes]:
    """One agent's gzipped OTLP bodies, one a round."""
    resource = {"host.name": f"host-{agent}", "host.id": f"id-{agent}", "service.name": "incident-rca-agent"}
    bodies = []
    for number, row in enumerate(made):
        metrics = [
            Metric(f"bench.metric.{m}", "1", Kind.GAUGE, [Point(row[m * 10 + i], {"cpu.mode": f"mode-{i}"}) for i in range(10)])
            for m in range(batch // 10)
        ]
        collection = Collection((start + number * 10) * 1_000_000_000, [ResourceMetrics(resource, metrics)])
        bodies.append(gzip.compress(encode_metrics(collection), 6))
    return bodies


def remote_write_bodies(agent: int, batch: int, made: list[list[float]], start: int) -> list[bytes]:
    """The same samples as remote-write bodies with snappy."""
    labels = []
    for i in range(batch):
        pairs = {
            "__name__": f"bench_metric_{i // 10}",
            "cpu_mode": f"mode-{i % 10}",
            "host_id": f"id-{agent}",
            "host_name": f"host-{agent}",
        }
        labels.append(b"".join(_field(1, _field(1, k.encode()) + _field(2, v.encode())) for k, v in sorted(pairs.items())))
    bodies = []
    for number, row in enumerate(made):
        stamp = _varint((start + number * 10) * 1000)
        series = (_field(1, labels[i] + _field(2, b"\x09" + struct.pack("<d", row[i]) + b"\x10" + stamp)) for i in range(batch))
        bodies.append(bytes(cramjam.snappy.compress_raw(b"".join(series))))
    return bodies


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class Connection:
    """A keep-alive HTTP/1.1 connection that sends a request as one packet, as our agents do."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """The answer's body; SystemExit when it is not a success."""
        lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
        self._socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        status = int(self._file.readline().split()[1])
        length = 0
        while (line := self._file.readline().lower()) not in (b"\r\n", b""):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        answer = self._file.read(length)
        if status not in (200, 204):
            raise SystemExit(f"benchmark: {path} answered {status}: {answer[:300]!r}")
        return answer

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()


def send(port: int, path: str, work: list[tuple[list[bytes], dict[str, str]]], connections: int = 8) -> None:
    """Post every agent's bodies in order, agents side by side over this many connections."""

    def share(number: int) -> None:
        connection = Connection(port)
        for rounds in zip(*(bodies for bodies, _ in work[number::connections]), strict=True):
            for body, (_, head) in zip(rounds, work[number::connections], strict=True):
                connection.post(path, body, head)
        connection.close()

    with ThreadPoolExecutor(connections) as pool:
        for done in [pool.submit(share, number) for number in range(connections)]:
            done.result()


def provision(port: int, name: str, scheme: str = "http", context: object = None, agent_type: str = "server") -> str:
    """A new agent's token."""
    body = json.dumps({"agent_type": agent_type, "environment_name": name}).encode()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    request = urllib.request.Request(f"{scheme}://localhost:{port}/api/v1/agent/provision", body, headers)
    with urllib.request.urlopen(request, timeout=30, context=context) as response:
        return str(json.load(response)["agent_token"])


def enrol(port: int, name: str) -> tuple[bytes, str]:
    """A new instance by OpAMP: its instance_uid and its credential, proven."""
    uid, head = uuid.uuid4().bytes, {"authorization": f"Bearer {provision(port, name)}", "content-type": PROTOBUF}
    message = opamp.AgentToServer(instance_uid=uid, sequence_num=1, capabilities=1 | 4 | 256 | 2048 | 8192)
    message.agent_description.identifying_attributes.add(key="irca.machine.fingerprint").value.string_value = uid.hex()
    message.health.healthy = True
    connection = Connection(port)
    answer = opamp.ServerToAgent.FromString(connection.post("/v1/opamp", message.SerializeToString(), head))
    credential = answer.connection_settings.opamp.headers.headers[0].value.removeprefix("Bearer ")
    connection.post("/v1/opamp", heartbeat(uid, 2), {**head, "authorization": f"Bearer {credential}"})
    connection.close()
    return uid, credential


def heartbeat(uid: bytes, number: int) -> bytes:
    """A compressed heartbeat: nothing has changed."""
    return opamp.AgentToServer(instance_uid=uid, sequence_num=number, capabilities=1 | 4 | 256 | 2048 | 8192).SerializeToString()


def platform(port: int, folder: Path, **env: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a platform to measure."""
    settings = {"IRCA_PORT": str(port), "IRCA_DATA_DIR": str(folder / "data"), "IRCA_ADMIN_API_KEY": KEY, "IRCA_LOG_LEVEL": "warning"}
    return [PYTHON, "-m", "app.cli", "serve"], {**settings, "PYTHONPATH": str(Path(__file__).parent.parent), **env}


def ours(agents: int, batch: int, rounds: int) -> float:
    """Our CPU-seconds per million samples."""
    folder, port = Path(tempfile.mkdtemp(prefix="irca-bench-")), free_port()
    argv, env = platform(port, folder)
    with running(argv, env, folder) as server:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "start of the platform")
        made, start = values(batch, rounds + 1), int(time.time()) - (rounds + 1) * 10
        heads = [
            {"authorization": f"Bearer {enrol(port, f'env-{a}')[1]}", "content-type": PROTOBUF, "content-encoding": "gzip"}
            for a in range(agents)
        ]
        work = [(otlp_bodies(a, batch, made, start), heads[a]) for a in range(agents)]
        return _measure(server, port, "/v1/metrics", work, agents * batch * rounds)


def victoria_metrics(agents: int, batch: int, rounds: int) -> float | None:
    """VictoriaMetrics' CPU-seconds per million samples; None where it is not installed."""
    program = peer("victoria-metrics")
    if program is None:
        return None
    folder, port = Path(tempfile.mkdtemp(prefix="irca-bench-")), free_port()
    with running([program, f"-httpListenAddr=127.0.0.1:{port}", f"-storageDataPath={folder / 'vm'}"], folder=folder) as server:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), "start of VictoriaMetrics")
        made, start = values(batch, rounds + 1), int(time.time()) - (rounds + 1) * 10
        head = {"content-type": PROTOBUF, "content-encoding": "snappy"}
        work = [(remote_write_bodies(a, batch, made, start), head) for a in range(agents)]
        return _measure(server, port, "/api/v1/write", work, agents * batch * rounds)


def _measure(server: Measured, port: int, path: str, work: list[tuple[list[bytes], dict[str, str]]], samples: int) -> float:
    send(
        port, path, [(bodies[:1], head) for bodies, head in work]
    )  # first sight of every series: paid once in an agent's life, not measured
    before = server.cpu_seconds()
    send(port, path, [(bodies[1:], head) for bodies, head in work])
    time.sleep(3)  # what is put off to the background belongs to the price
    return (server.cpu_seconds() - before) / samples * 1e6


def main() -> None:
    """Print both at 1,000 and at 100 samples a batch."""
    for agents, batch, rounds in ((24, 1000, 30), (64, 100, 60)):
        mine, theirs = ours(agents, batch, rounds), victoria_metrics(agents, batch, rounds)
        beside = f"VictoriaMetrics {theirs:.2f}, ratio {mine / theirs:.2f}" if theirs else "VictoriaMetrics is not installed"
        print(f"ingest, {batch} a batch: {mine:.2f} CPU-s per million samples ({beside})")


if __name__ == "__main__":
    main()
