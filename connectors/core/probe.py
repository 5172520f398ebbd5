"""``python -m connectors.core.probe live|ready``: what an orchestrator asks over and over whether the agent beside it is alive, or ready.

*Live* means that its process runs and writes its status: an agent that is degraded, or whose platform is away, is none that a restart
would help. *Ready* means that it has enrolled as well. It loads next to nothing, for it runs many times a minute. Exit codes: 0 yes, 1 no
(with the reason on standard output, where Kubernetes shows it), 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from connectors.core.errors import StateError
from connectors.core.status import AgentStatus, read_status

DEFAULT_STATE_DIR = "/var/lib/incident-rca"
QUESTIONS = ("live", "ready")


def refusal(status: AgentStatus, question: str) -> str:
    """Why the answer to ``question`` is no; empty where it is yes."""
    if status.state in ("dead", "stale", "stopped"):
        return status.reasons.get("process", f"the agent is {status.state}")
    if question == "ready" and not status.enrolled:
        return "; ".join(["not enrolled yet", *status.reasons.values()])
    return ""


def main(argv: Sequence[str], environ: Mapping[str, str], clock: Callable[[], float] = time.time) -> int:
    """Answer the question in ``argv`` by the status file in ``STATE_DIR``; the exit code."""
    if len(argv) != 1 or argv[0] not in QUESTIONS:
        sys.stderr.write(f"usage: python -m connectors.core.probe {'|'.join(QUESTIONS)}\n")
        return 2
    try:
        why = refusal(read_status(Path(environ.get("STATE_DIR") or DEFAULT_STATE_DIR), clock), argv[0])
    except StateError as exc:
        why = exc.reason
    if why:
        sys.stdout.write(f"{why}\n")
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
