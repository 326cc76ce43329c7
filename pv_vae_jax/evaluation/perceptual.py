"""LPIPS of clips, with weights from files."""

from pathlib import Path

import jax
import numpy as np

from pv_vae_jax.convert.lpips import read_lpips
from pv_vae_jax.evaluation.image_metrics import PerceptualDistance
from pv_vae_jax.evaluation.networks.published import NetworkIdentity, identify
from pv_vae_jax.models.lpips import LEAST_SIDE, LPIPS
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.pixels import to_float
from pv_vae_jax.typing import ShapeError


def lpips_distance(backbone: str, weights: str | Path, heads: str | Path) -> tuple[PerceptualDistance, NetworkIdentity]:
    """LPIPS as a function of two clips `(t, h, w, 3)` uint8, one distance per frame, and the network's identity.

    Args:
      backbone: one of `models.lpips.BACKBONES`.
      weights: torchvision's file for that backbone.
      heads: LPIPS's linear heads, `.pth` or `.npz`.

    Raises:
      FileNotFoundError: no such file.
      WeightsError: a file contains other weights. The returned function raises ShapeError for small frames.
    """
    params = read_lpips(backbone, weights, heads)
    model = LPIPS(backbone)
    trunk, linear = identify(weights), identify(heads)
    known = trunk.network == backbone and linear.network == f"{backbone} heads"

    @jax.jit
    def distance(params, a, b):
        return model.apply({"params": params}, to_float(a), to_float(b))

    def checked(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if min(a.shape[1:3]) < LEAST_SIDE:
            raise ShapeError(
                f"LPIPS needs frames of at least {LEAST_SIDE} x {LEAST_SIDE}, got {a.shape[1]} x {a.shape[2]}"
            )
        return np.asarray(distance(params, a, b))

    facts = {"weights file sha256": trunk.sha256, "heads file sha256": linear.sha256}
    name = f"{trunk.known}, {linear.known}" if known else None
    return checked, NetworkIdentity(f"lpips-{backbone}", weights_hash(params), name, "as they are, [-1, 1]", facts)
