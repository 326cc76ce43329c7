"""Networks. Each takes its own frozen config; none knows a mesh, an experiment or a training stage."""

from typing import TYPE_CHECKING

from pv_vae_jax._lazy import lazy_imports

if TYPE_CHECKING:  # imported on first use
    from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
    from pv_vae_jax.models.inflate import inflate_image_params
    from pv_vae_jax.models.latte import Latte, LatteConfig
    from pv_vae_jax.models.lpips import LPIPS
    from pv_vae_jax.models.registry import build_vae
    from pv_vae_jax.models.transformer_vae import TransformerVAE, TransformerVAEConfig
    from pv_vae_jax.models.vae import VAE, Posterior, VAEConfig

__all__ = [
    "Discriminator", "DiscriminatorConfig", "LPIPS", "Latte", "LatteConfig", "Posterior", "TransformerVAE",
    "TransformerVAEConfig", "VAE", "VAEConfig", "build_vae", "inflate_image_params",
]  # fmt: skip

__getattr__, __dir__ = lazy_imports(__name__)
