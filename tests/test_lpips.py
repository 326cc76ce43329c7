"""LPIPS against values of the reference package, and image metrics against scikit-image's stored values."""

import json
import math
import os
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from pv_vae_jax.convert.lpips import lpips_params, read_arrays, read_lpips
from pv_vae_jax.evaluation.image_metrics import psnr, ssim
from pv_vae_jax.models.lpips import BACKBONES, LPIPS
from pv_vae_jax.typing import WeightsError

PAIRS = (("ref", "p0"), ("ref", "p1"), ("p0", "p1"))
SHORT = {"alexnet": "alex", "vgg16": "vgg"}


@pytest.fixture(scope="module")
def shared():
    root = Path(os.environ.get("PV_VAE_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "reference" / "eval").is_dir() or not (root / "weights").is_dir():
        pytest.skip(
            "no evaluation fixtures here: set PV_VAE_SHARED to a folder that holds reference/eval/ and weights/"
        )
    return root


def convolutions(backbone):
    """torchvision's names and shapes of a backbone, and the widths of its taps."""
    shapes, widths, channels = {}, [], 3
    for layer in BACKBONES[backbone]:
        if layer == "tap":
            widths.append(channels)
        elif len(layer) > 2:
            number, width, kernel, *_ = layer
            shapes[f"features.{number}.weight"] = (width, channels, kernel, kernel)
            shapes[f"features.{number}.bias"] = (width,)
            channels = width
    return shapes, widths


def seeded(backbone):
    """A state dict drawn from its names."""
    tensors = {}
    for name, shape in convolutions(backbone)[0].items():
        g = np.random.Generator(np.random.PCG64(zlib.crc32(f"{backbone}.{name}".encode())))
        scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.05
        tensors[name] = g.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return tensors


def seeded_lpips(folder: Path) -> tuple[str, Path, Path]:
    """Backbone, and files of seeded weights and heads, which make no LPIPS."""
    save_file(seeded("alexnet"), folder / "net.safetensors")
    heads = {f"lin{i}.model.1.weight": np.full((1, w, 1, 1), 0.5) for i, w in enumerate(convolutions("alexnet")[1])}
    np.savez(folder / "heads.npz", **heads)
    return "alexnet", folder / "net.safetensors", folder / "heads.npz"


@pytest.fixture(scope="module")
def alex():
    """AlexNet of seeded weights under heads of ones."""
    heads = {f"lin{i}.model.1.weight": np.ones((1, w, 1, 1)) for i, w in enumerate(convolutions("alexnet")[1])}
    return lpips_params("alexnet", seeded("alexnet"), heads)


@jax.jit
def distance(params, a, b):
    return LPIPS("alexnet").apply({"params": params}, a, b)


PICTURES = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64, 3)).astype(np.float32)


@pytest.mark.parametrize("backbone", ["alexnet", "vgg16"])
def test_lpips_of_the_reference_package(shared, backbone):
    stored = np.load(shared / "reference" / "eval" / "lpips_seeded_parity.npz")
    params = lpips_params(backbone, seeded(backbone), read_arrays(shared / "weights" / "lpips_v0.1_linear_heads.npz"))
    a, b = (np.stack([stored[f"img_{p[i]}"] for p in PAIRS]).astype(np.float32) / 127.5 - 1 for i in (0, 1))
    by_layer = jax.jit(lambda p, a, b: LPIPS(backbone).apply({"params": p}, a, b, method="by_layer"))
    for found, pair in zip(np.asarray(by_layer(params, a, b)), PAIRS, strict=True):
        name = f"{SHORT[backbone]}_{'_'.join(pair)}"
        np.testing.assert_allclose(found, stored[f"{name}_layers"], atol=1e-6)
        assert found.sum() == pytest.approx(float(stored[f"{name}_total"]), abs=1e-6)


def test_image_metrics_of_other_packages(shared):
    stored = np.load(shared / "reference" / "eval" / "lpips_seeded_parity.npz")
    expected = json.loads((shared / "reference" / "eval" / "image_metrics_expected.json").read_text())
    for other in ("p0", "p1"):
        a, b = (stored[f"img_{name}"][None, None] for name in ("ref", other))
        assert psnr(a, b, 255.0) == pytest.approx(expected[f"ref_{other}"]["psnr_uint8"], abs=1e-6)
        assert ssim(a, b, 255.0) == pytest.approx(expected[f"ref_{other}"]["ssim_skimage_gauss1.5_popcov"], abs=1e-6)
    clip = np.load(shared / "reference" / "eval" / "i3d_seeded_parity.npz")["clip64_uint8"][None]
    found = psnr(clip[:, :-1], clip[:, 1:], 255.0)
    assert found == pytest.approx(expected["video_psnr_mean_of_frame_psnr"], abs=1e-6)
    assert ssim(clip[:, :1], clip[:, 1:2], 255.0) == pytest.approx(
        expected["clip_f0_f1"]["ssim_skimage_gauss1.5_popcov"], abs=1e-6
    )


def test_distance_is_symmetric_and_zero_for_equals(alex):
    a, b = PICTURES
    np.testing.assert_allclose(distance(alex, a, b), distance(alex, b, a), rtol=1e-5)
    assert np.all(distance(alex, a, b) > 1e-3) and np.all(distance(alex, a, a) == 0)


def test_gradient_is_finite_even_where_pictures_are_equal_or_dead(alex):
    """As a training loss it meets features that are zero all over."""
    black = np.zeros_like(PICTURES[0])
    dead = jax.tree.map(lambda x: x * 0, alex)
    slope = jax.jit(jax.grad(lambda x, p: distance(p, x, black).sum()))
    for params in (alex, dead):
        assert np.isfinite(slope(black, params)).all()
    assert np.abs(slope(PICTURES[0], alex)).max() > 0


def test_weights_that_do_not_fit_are_named(tmp_path):
    tensors = seeded("alexnet")
    del tensors["features.3.bias"]
    tensors["features.0.weight"] = tensors["features.0.weight"][:, :1]
    with pytest.raises(WeightsError) as error:
        lpips_params("alexnet", tensors, {})
    for fault in (
        "missing features.3.bias (192,)",
        "features.0.weight has shape (64, 1, 11, 11), expected (64, 3, 11, 11)",
        "missing lin4.model.1.weight (256,)",
    ):
        assert fault in str(error.value)
    heads = {f"lin{i}.model.1.weight": np.full(w, 0.5) for i, w in enumerate(convolutions("alexnet")[1])}
    heads["lin1.model.1.weight"][3], heads["lin2.model.1.weight"][3], tensors = np.nan, -1.0, seeded("alexnet")
    tensors["features.6.bias"][0] = np.inf
    with pytest.raises(
        WeightsError, match=r"features.6.bias .*\n  lin1.* is not finite\n  lin2.* must not be negative"
    ):
        lpips_params("alexnet", tensors, heads)
    with pytest.raises(FileNotFoundError):
        read_lpips("alexnet", tmp_path / "none.pth", tmp_path / "none.npz")
