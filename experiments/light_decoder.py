"""A light decoder for the latents of a VAE that stays as it is, shown with the shipped `tiny-synthetic` as teacher.

  pv-vae train --config experiments/light_decoder.py --workdir runs/light
  python docs/decoders.py tiny-synthetic runs/light

Takes two and a half minutes on two cores. Expected, on 64 held-out clips: 27.2 dB where the teacher has 28.7, in a
third of its time, with a fifth of its operations; docs/recipes.md has it frame by frame.

The encoder and the pad token are the teacher's and frozen, so latents, and any diffusion model trained on them, stay
valid; only the decoder is drawn and trained. What it is shown are clips, not what the teacher decodes: the target is
then free of the teacher's faults. Streaming needs nothing more, for the network is of the same kind.

For a teacher of yours, put its configuration into `vae`, with narrower `decoder_widths` and fewer `decoder_blocks`, and
its folder into `init_from`; a stage refuses a configuration whose encoder is not the teacher's.
`wan22_light_decoder.py` is the same for Wan2.2.
"""

from pv_vae_jax.train import DataConfig, Experiment, LatteConfig, OptimizerConfig, VAEConfig, VAEStageConfig

# Compiled for these without a TPU (`pv-vae inspect --topology`, `make test-slow`): topology and the mesh it takes.
TOPOLOGIES = {"v5e:2x2": ("mesh.data=4",)}


def get_config() -> Experiment:
    """Stage `decoder` alone."""
    return Experiment(
        name="light-decoder",
        data=DataConfig(clips=8_192, test_clips=64, frames=17, size=32),
        # The teacher's, but for the decoder, which has widths of (48, 48, 64) there.
        vae=VAEConfig(
            patch=4,
            latent_channels=64,
            time_factors=(2, 2),
            space_factors=(2, 1),
            encoder_widths=(48, 48, 48),
            decoder_widths=(16, 16, 32),
            encoder_blocks=1,
            decoder_blocks=1,
        ),
        decoder=VAEStageConfig(
            steps=1_000,
            batch_size=8,
            init_from="tiny-synthetic",
            init_parts=("encoder", "pad"),
            frozen=("encoder", "pad"),
            optimizer=OptimizerConfig(name="muon", learning_rate=1e-2, warmup_steps=50, final_fraction=0.03),
            ema_decay=0.99,
        ),
        latte=LatteConfig(latent_channels=64),
        log_every=20,
        checkpoint_every=200,
    )
