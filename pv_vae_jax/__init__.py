"""Predictive video VAEs (PV-VAE, arXiv 2605.02134) and latent video diffusion in JAX.

The names here are what another codebase imports; training lives in `pv_vae_jax.train`, commands in `pv_vae_jax.cli`.

  model = VAE(VAEConfig())
  params = model.init(key, video)["params"]
  posterior = model.apply({"params": params}, video, method="encode")
  video = model.apply({"params": params}, posterior.mode, method="decode")
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pv_vae_jax.flow import classifier_free_guidance, euler, flow_matching_loss
    from pv_vae_jax.masking import sample_mask
    from pv_vae_jax.model import Pretrained, load, save
    from pv_vae_jax.models.latte import Latte, LatteConfig
    from pv_vae_jax.models.transformer_vae import TransformerVAE, TransformerVAEConfig
    from pv_vae_jax.models.vae import VAE, Posterior, VAEConfig
    from pv_vae_jax.pixels import to_float, to_uint8
    from pv_vae_jax.predictive import predict_clip, predict_filled, predict_masked, predict_truncated
    from pv_vae_jax.streaming import decode_chunks, decode_step, encode_chunks, encode_step

# Resolved on first use: loader processes import `pv_vae_jax.data` and must not start jax with it.
_HOMES = {
    "flow": ("classifier_free_guidance", "euler", "flow_matching_loss"),
    "masking": ("sample_mask",),
    "models.latte": ("Latte", "LatteConfig"),
    "models.transformer_vae": ("TransformerVAE", "TransformerVAEConfig"),
    "models.vae": ("VAE", "Posterior", "VAEConfig"),
    "pixels": ("to_float", "to_uint8"),
    "predictive": ("predict_clip", "predict_filled", "predict_masked", "predict_truncated"),
    "model": ("Pretrained", "load", "save"),
    "streaming": ("decode_chunks", "decode_step", "encode_chunks", "encode_step"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

# Written out for type checkers, to which a typed package exports what stands here.
__all__ = [
    "Latte",
    "LatteConfig",
    "Posterior",
    "Pretrained",
    "TransformerVAE",
    "TransformerVAEConfig",
    "VAE",
    "VAEConfig",
    "decode_chunks",
    "decode_step",
    "sample_mask",
    "encode_chunks",
    "encode_step",
    "euler",
    "flow_matching_loss",
    "classifier_free_guidance",
    "load",
    "predict_clip",
    "predict_filled",
    "predict_masked",
    "predict_truncated",
    "save",
    "to_float",
    "to_uint8",
]


def __getattr__(name: str):
    if name == "__version__":
        from pv_vae_jax.versions import installed_version

        return installed_version("pv_vae_jax")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__():
    return [*globals(), *__all__]
