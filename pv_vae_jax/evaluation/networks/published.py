"""Identify published weight files by their hash: the name of a metric depends on it.

A number may be called FVD, inception score or LPIPS only if the published weights made it. Files are known by git's
blob SHA-1 or by SHA-256; where only a prefix of the digest has been published (torchvision puts eight digits into its
file names), the prefix is compared.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from pv_vae_jax.storage import on_disk

# Beginning of a digest -> (what the file is, network it belongs to).
GIT_BLOBS, SHA256 = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8")).values()


@dataclasses.dataclass(frozen=True)
class NetworkIdentity:
    """What a number was made with.

    Attributes:
      name: short name, such as `own`, `i3d`, `c3d` or `lpips-vgg16`.
      hash: 16 hex digits over all parameters.
      published: the published file that the weights came from; None where that is unknown, and then no number made with
        this network may take the name of a published metric.
      pixels: how clips reach the network, in words.
      facts: further lines for a protocol card.
    """

    name: str
    hash: str
    published: str | None
    pixels: str
    facts: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FileIdentity:
    """A weights file by its content.

    Attributes:
      sha256: 64 hex digits.
      known: name of the published file; None for any other.
      network: network it belongs to; None for any other.
    """

    sha256: str
    known: str | None
    network: str | None


def identify(path: str | Path) -> FileIdentity:
    """Hash a file and look it up."""
    path = on_disk(path, "a file of weights")
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            blob.update(block)
    for digest, table in ((blob.hexdigest(), GIT_BLOBS), (sha256.hexdigest(), SHA256)):
        for start, (name, network) in table.items():
            if digest.startswith(start):
                return FileIdentity(sha256.hexdigest(), name, network)
    return FileIdentity(sha256.hexdigest(), None, None)
