"""Custom metrics: what an agent takes from commands, Prometheus endpoints and OTLP clients beside what its type collects."""
