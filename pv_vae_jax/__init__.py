"""Predictive video VAEs (PV-VAE, arXiv 2605.02134) and latent video diffusion in JAX.

  model = pv_vae_jax.load("tiny-synthetic")
  latents = model.encode(video)  # (b, 1 + T, H, W, 3) -> (b, g, h, w, z)
  video = model.predict(video, observed=9)

The names here are what another codebase imports, the networks, losses and samplers of a training loop of its own
included. The packages have lists of their own: `pv_vae_jax.data`, `.evaluation`, `.train`, `.report` and so on.
"""

from typing import TYPE_CHECKING

from pv_vae_jax._lazy import lazy_imports

if TYPE_CHECKING:  # imported on first use
    from pv_vae_jax.flow import (
        classifier_free_guidance,
        denormalize_latents,
        euler,
        flow_matching_loss,
        label_dropout,
        normalize_latents,
        sample_timesteps,
    )
    from pv_vae_jax.losses import Objective, kl_divergence, latent_terms, pixel_terms
    from pv_vae_jax.masking import sample_mask
    from pv_vae_jax.model import Diffusion, Model, load, save
    from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
    from pv_vae_jax.models.latte import Latte, LatteConfig
    from pv_vae_jax.models.transformer_vae import TransformerVAE, TransformerVAEConfig
    from pv_vae_jax.models.vae import VAE, Posterior, VAEConfig
    from pv_vae_jax.pixels import to_float, to_uint8
    from pv_vae_jax.predictive import Prediction, predict_filled, predict_masked, predict_truncated
    from pv_vae_jax.sampling import sample_clips
    from pv_vae_jax.streaming import decode_chunks, decode_step, encode_chunks, encode_step, foretell_step

__all__ = [
    "Diffusion", "Discriminator", "DiscriminatorConfig", "Latte", "LatteConfig", "Model", "Objective", "Posterior",
    "Prediction", "TransformerVAE", "TransformerVAEConfig", "VAE", "VAEConfig", "classifier_free_guidance",
    "decode_chunks", "decode_step", "denormalize_latents", "encode_chunks", "encode_step", "euler",
    "flow_matching_loss", "foretell_step", "kl_divergence", "label_dropout", "latent_terms", "load",
    "normalize_latents", "pixel_terms", "predict_filled", "predict_masked", "predict_truncated", "sample_clips",
    "sample_mask", "sample_timesteps", "save", "to_float", "to_uint8",
]  # fmt: skip

_import, __dir__ = lazy_imports(__name__)


def __getattr__(name: str):
    if name == "__version__":
        from pv_vae_jax.versions import installed_version

        return installed_version("pv_vae_jax")
    return _import(name)
