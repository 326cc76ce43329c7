"""Named protocols, and the card that goes with every score: what a number is a number of.

Scores of different protocols are different metrics. The public ones below are those that papers report; the PV-VAE
paper states clips, frames and size, the rest of `paper` is our reading.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import platform
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from pv_vae_jax.data.video_container import decoder_versions
from pv_vae_jax.evaluation.clip_sets import ClipSet, Window
from pv_vae_jax.evaluation.distances import Interval
from pv_vae_jax.evaluation.networks.published import NetworkIdentity
from pv_vae_jax.versions import versions


@dataclasses.dataclass(frozen=True)
class MetricProtocol:
    """How sets of clips are compared.

    Attributes:
      name: name of the protocol.
      frames: frames of a clip; with I3D, 16 and 17 frames are different metrics.
      clips: number of clips of each set.
      stride: source frames from one frame of a real clip to the next.
      start: first frame of real clips, `first` or `random`; generated clips start at their first frame.
      resize: rule for the bilinear resize to I3D's 224 (see `networks.extract.resize`).
      crop: bring the short side to 224 and crop, instead of stretching.
      ddof: delta degrees of freedom of the covariances.
      note: where the protocol comes from.
    """

    name: str
    frames: int = 17
    clips: int = 2048
    stride: int = 1
    start: str = "random"
    resize: str = "half_pixel"
    crop: bool = False
    ddof: int = 1
    note: str = ""

    def real_window(self, seed: int) -> Window:
        """Window of a real clip."""
        return Window(self.frames, self.stride, self.start, seed)

    def fake_window(self) -> Window:
        """Window of a generated clip."""
        return Window(self.frames)

    def changed(self, *, paired: bool = False, **numbers: int | None) -> MetricProtocol:
        """This protocol with other `frames` or `clips`, which makes it another one: its name says what changed.

        A `paired` reconstruction has the frames of its clip: both start at the first, with stride 1.
        """
        new = {key: n for key, n in numbers.items() if n is not None and n != getattr(self, key)}
        fields: dict = dict(new)
        if new:
            fields["name"] = f"{self.name} with {' and '.join(f'{n} {key}' for key, n in new.items())}"
            fields["note"] = f"unchanged it is: {self.note}"
        if paired:
            fields |= {"start": "first", "stride": 1}
        return dataclasses.replace(self, **fields)


PROTOCOLS = {
    p.name: p
    for p in (
        MetricProtocol(
            "paper", note="PV-VAE: 2,048 clips of 17 frames; real start, stride and covariance are our reading"
        ),
        MetricProtocol("stylegan-v", frames=16, ddof=0, note="fvd2048_16f of StyleGAN-V"),
        MetricProtocol(
            "latte", frames=16, stride=3, ddof=0, note="fvd2048_16f as Latte runs it: real clips by stride 3"
        ),
        MetricProtocol("styleganv-copy", crop=True, start="first", note="Open-Sora-Plan, WF-VAE, LeanVAE: all frames"),
        MetricProtocol("videogpt", frames=16, note="VideoGPT, TATS, LVDM"),
    )
}

# Metric -> (its published name, the network that the name stands for, its name with any other network).
NAMES = {
    "frechet": ("FVD", "i3d", "Frechet distance"),
    "kernel": ("KVD", "i3d", "kernel distance"),
    "frechet limit": ("FVD extrapolated", "i3d", "Frechet distance extrapolated"),
    "inception": ("IS", "c3d", "inception score"),
    "lpips-alexnet": ("LPIPS (AlexNet)", "lpips-alexnet", "perceptual distance"),
    "lpips-vgg16": ("LPIPS (VGG)", "lpips-vgg16", "perceptual distance"),
}


def name_of(metric: str, network: NetworkIdentity) -> str:
    """`FVD`, `IS` or `LPIPS` if the published weights of the right network made the number; else features and hash."""
    published, wanted, plain = NAMES[metric]
    if network.name == wanted and network.published:
        return published
    return f"{plain} (features = {network.name}, {network.hash})"


@dataclasses.dataclass(frozen=True)
class Score:
    """A number, its interval, and its card.

    Attributes:
      name: what the number may be called.
      value: the number.
      interval: bootstrap interval, or None where it was not computed.
      card: the protocol as a JSON tree.
    """

    name: str
    value: float
    interval: Interval | None
    card: dict

    def to_json(self) -> dict:
        """A tree of plain values."""
        interval = None if self.interval is None else dataclasses.asdict(self.interval)
        return {"name": self.name, "value": self.value, "interval": interval, "card": self.card}


class Digest:
    """SHA-256 over the pixels of the clips that were scored: two cards with one digest scored the same clips."""

    def __init__(self):
        self._sha, self.count, self.shape = hashlib.sha256(), 0, None

    def watch(self, clips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the clips as they are."""
        for clip in clips:
            self._sha.update(str(clip.shape).encode())
            self._sha.update(np.ascontiguousarray(clip).tobytes())
            self.count, self.shape = self.count + 1, clip.shape
            yield clip

    @property
    def hex(self) -> str:
        """16 digits."""
        return self._sha.hexdigest()[:16]


def set_card(clips: ClipSet, digest: Digest) -> dict:
    """What a card says about the clips of a set that were scored."""
    window = dataclasses.asdict(clips.window)
    if window["start"] == "first":
        window.pop("seed")
    size = list(digest.shape[1:3]) if digest.shape else None
    return clips.describe() | {"scored": digest.count, "size": size, "window": window, "pixels sha256": digest.hex}


def card(protocol: MetricProtocol, network: NetworkIdentity | None, real: dict, fake: dict, seed: int, **more) -> dict:
    """The protocol card of a score."""
    told = dataclasses.asdict(protocol)
    if network is None or network.name != "i3d":  # rules of I3D's own pixels
        del told["resize"], told["crop"]
    tree = {"protocol": told, "real": real, "fake": fake, "seed": seed}
    if network is not None:
        about = {"network": network.name, "hash": network.hash, "published weights": network.published}
        tree["features"] = about | {"pixels": network.pixels} | network.facts
    tree |= more
    tree["library"] = versions() | decoder_versions()
    tree["library"] |= {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    tree["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return tree
