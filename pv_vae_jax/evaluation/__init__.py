"""What a trained model is worth: reconstruction, prediction, samples, latent pictures, the report."""

from typing import TYPE_CHECKING

from pv_vae_jax._lazy import lazy_imports

if TYPE_CHECKING:  # imported on first use
    from pv_vae_jax.evaluation.clip_sets import open_clips
    from pv_vae_jax.evaluation.comparison import compare_pairs, compare_sets
    from pv_vae_jax.evaluation.diffusability import measure_latents
    from pv_vae_jax.evaluation.distances import frechet_distance, kernel_distance
    from pv_vae_jax.evaluation.image_metrics import psnr, score_frames, ssim, summarize_frames
    from pv_vae_jax.evaluation.latent_analysis import principal_colours, temporal_distance
    from pv_vae_jax.evaluation.networks.extract import c3d_network, extract, i3d_network, own_network
    from pv_vae_jax.evaluation.prediction import score_pattern, score_prediction
    from pv_vae_jax.evaluation.reconstruction import score_reconstruction

__all__ = [
    "c3d_network", "compare_pairs", "compare_sets", "extract", "frechet_distance", "i3d_network", "kernel_distance",
    "measure_latents", "open_clips", "own_network", "principal_colours", "psnr", "score_frames", "score_pattern",
    "score_prediction", "score_reconstruction", "ssim", "summarize_frames", "temporal_distance",
]  # fmt: skip

__getattr__, __dir__ = lazy_imports(__name__)
