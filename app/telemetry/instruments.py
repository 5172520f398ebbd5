"""What the platform counts of its ingest, for its own ``/metrics``.

The counters belong to the process and to no registry: whoever answers ``/metrics`` takes them from :func:`collect`.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Counter
from prometheus_client.core import Metric

OTLP_REQUESTS = Counter("irca_otlp_requests", "OTLP requests answered, by signal and HTTP status.", ("signal", "status"), registry=None)
OTLP_BYTES = Counter("irca_otlp_body_bytes", "Bytes of OTLP request bodies after decompression.", ("signal",), registry=None)
OTLP_ACCEPTED = Counter("irca_otlp_items_accepted", "Data points and log records accepted.", ("signal",), registry=None)
OTLP_REJECTED = Counter("irca_otlp_items_rejected", "Data points and log records rejected one by one.", ("signal",), registry=None)
OTLP_LAYOUTS = Counter("irca_otlp_layouts", "Metrics requests recognised by layout, or decoded in full.", ("decoded",), registry=None)


def collect() -> Iterator[Metric]:
    """The families of all counters."""
    for counter in (OTLP_REQUESTS, OTLP_BYTES, OTLP_ACCEPTED, OTLP_REJECTED, OTLP_LAYOUTS):
        yield from counter.collect()
