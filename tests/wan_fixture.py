"""Small Wan VAEs with random weights, and what diffusers computes with them: makes `tests/data/wan2*.safetensors`.

    python -m tests.wan_fixture

needs PyTorch and diffusers; the tests that read the files need neither. Weights, gammas and biases come from NumPy and
are multiples of what float16 holds, so half the bytes store them exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pv_vae_jax.convert.wan import published_shapes
from pv_vae_jax.models.vae import VAEConfig

FOLDER = Path(__file__).parent / "data"
# Encoder and decoder widths differ where the network allows it, so that they cannot be mixed up.
CONFIGS = {
    "wan22": VAEConfig.wan22(latent_channels=4, encoder_widths=(2, 4, 8, 8), decoder_widths=(3, 6, 12, 12)),
    "wan21": VAEConfig.wan21(latent_channels=4, encoder_widths=(2, 4, 8, 8), decoder_widths=(3, 6, 12, 12)),
}
SIZE = {"wan22": (16, 32), "wan21": (16, 16)}  # pixels, height and width
FRAMES = 9  # three latent frames: both regimes of the published chunked code


def random_weights(config: VAEConfig, layout: str = "diffusers", seed: int = 7) -> dict[str, np.ndarray]:
    """Published tensors of a small network: nothing at a special value, activations of order one.

    Biases are large enough to keep most activations off zero, where a norm over two channels magnifies rounding.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for key, shape in published_shapes(config, layout).items():
        fan_in = int(np.prod(shape[1:]))
        draw = rng.standard_normal(shape)
        value = 1 + 0.3 * draw if key.endswith("gamma") else 0.5 * draw if len(shape) == 1 else draw / fan_in**0.5
        tensors[key] = value.astype(np.float16)
    return tensors


def random_clip(name: str, seed: int = 8) -> np.ndarray:
    """`(1, 9, H, W, 3)` in [-1, 1], on the grid of uint8."""
    shape = (1, FRAMES, *SIZE[name], 3)
    return (np.random.default_rng(seed).integers(0, 256, shape) / 127.5 - 1).astype(np.float32)


def diffusers_model(name: str, tensors: dict[str, np.ndarray] | None):
    """`AutoencoderKLWan` of `CONFIGS[name]` that holds `tensors`; None leaves its own initial weights."""
    import torch
    from diffusers import AutoencoderKLWan

    config = CONFIGS[name]
    model = AutoencoderKLWan(
        base_dim=config.encoder_widths[0],
        decoder_base_dim=config.decoder_widths[0],
        z_dim=config.latent_channels,
        dim_mult=[w // config.encoder_widths[0] for w in config.encoder_widths],
        num_res_blocks=config.encoder_blocks,
        temperal_downsample=[t == 2 for t in config.time_factors],
        is_residual=config.shortcuts,
        in_channels=3 * config.patch**2,
        out_channels=3 * config.patch**2,
        patch_size=config.patch if config.patch > 1 else None,
        scale_factor_spatial=config.space_factor,
    ).eval()
    if tensors is not None:
        model.load_state_dict({k: torch.from_numpy(v.astype(np.float32)) for k, v in tensors.items()}, strict=True)
    return model


def run_diffusers(model, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and log variance `(1, g, h, w, z)` of a clip, and the reconstruction from the mean, clamped to [-1, 1]."""
    import torch

    with torch.no_grad():
        posterior = model.encode(torch.from_numpy(clip).permute(0, 4, 1, 2, 3)).latent_dist
        video = model.decode(posterior.mean).sample
    return tuple(x.permute(0, 2, 3, 4, 1).numpy() for x in (posterior.mean, posterior.logvar, video))


def make(name: str) -> dict[str, np.ndarray]:
    """Everything that the file of `name` holds; names of weights begin with `weights.`."""
    tensors = random_weights(CONFIGS[name])
    clip = random_clip(name)
    mean, logvar, video = run_diffusers(diffusers_model(name, tensors), clip)
    arrays = {"clip": ((clip + 1) * 127.5).round().astype(np.uint8), "mean": mean, "logvar": logvar, "video": video}
    return {f"weights.{k}": v for k, v in tensors.items()} | {k: np.ascontiguousarray(v) for k, v in arrays.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in CONFIGS:
        save_file(make(name), FOLDER / f"{name}.safetensors")
        print(FOLDER / f"{name}.safetensors", (FOLDER / f"{name}.safetensors").stat().st_size)
