"""What the platform serves of the docker agent type: names and paths, which the printed commands and the platform share."""

from __future__ import annotations

ARTEFACT_PATH = "/artefacts/docker"
"""Path below the platform's URL where it serves the files; ``<data directory>/artefacts/docker`` is where it keeps them."""
CONTEXT_FILE = "context.tar.gz"
"""The image's build context."""
IMAGE_FILE = "image.tar.gz"
"""The built image, for ``docker load``."""
CHECKSUM_SUFFIX = ".sha256"
"""Each file's checksum lies beside it, as a line for ``sha256sum -c``."""
BUILD_COMMAND = "incident-rca image build"
CONTEXT_COMMAND = "incident-rca image context"
