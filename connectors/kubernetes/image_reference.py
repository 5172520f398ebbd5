"""Names of images: which one the agent's pods run, and whether the kubelet may pull it."""

from __future__ import annotations

from dataclasses import dataclass

from connectors.kubernetes.artefacts import IMAGE_REPOSITORY, image_tag


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image by repository and tag, or digest; empty where the name does not say."""

    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, name: str) -> ImageReference:
        """``registry:5000/path/name:tag@digest`` in its parts; an empty name is the image that ``incident-rca image build`` makes."""
        rest, _, digest = name.partition("@")
        path, slash, last = rest.rpartition("/")
        last, _, tag = last.partition(":")
        return cls(f"{path}{slash}{last}" or IMAGE_REPOSITORY, tag, digest)


def resolved(name: str, version: str) -> str:
    """The whole name of the image ``name`` (an option's value) for an agent of ``version``."""
    parts = ImageReference.parse(name)
    return f"{parts.repository}@{parts.digest}" if parts.digest else f"{parts.repository}:{parts.tag or image_tag(version)}"


def pull_policy(name: str) -> str:
    """Never for the default repository, under which a stranger could publish; IfNotPresent for any other."""
    return "Never" if ImageReference.parse(name).repository == IMAGE_REPOSITORY else "IfNotPresent"
