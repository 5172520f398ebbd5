"""Generate ``connectors/core/opamp_pb2.py`` (and its type stub) from ``opamp.proto``; ``--check`` only compares."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc
from opentelemetry.proto.common.v1 import common_pb2

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "connectors/core/opamp.proto"


def generate(into: Path) -> None:
    """Write the generated modules below ``into``; OTLP's common types come from their installed descriptor."""
    descriptors = FileDescriptorSet()
    common_pb2.DESCRIPTOR.CopyToProto(descriptors.file.add())
    with tempfile.NamedTemporaryFile(suffix=".binpb") as file:
        file.write(descriptors.SerializeToString())
        file.flush()
        arguments = [f"--descriptor_set_in={file.name}", f"--proto_path={ROOT}", f"--python_out={into}", f"--pyi_out={into}", SOURCE]
        if protoc.main(["protoc", *arguments]):
            raise SystemExit("protoc failed")


def main() -> int:
    """Generate in place, or with ``--check`` say whether what stands is fresh."""
    if "--check" not in sys.argv[1:]:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [
            name
            for name in ("connectors/core/opamp_pb2.py", "connectors/core/opamp_pb2.pyi")
            if (Path(folder) / name).read_bytes() != (ROOT / name).read_bytes()
        ]
    if stale:
        print(f"stale: {', '.join(stale)}; run `make proto`", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    raise SystemExit(main())
