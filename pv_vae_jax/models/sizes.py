"""Named sizes of the CNN VAE: ours, and the published Wan networks as configs of the same class.

    model = VAE(SIZES["paper"])
    t4s16c32 = dataclasses.replace(SIZES["base"], latent_channels=32)

| name | compression | parameters | |
|---|---|---|---|
| `tiny` | t4s16c16 | 0.7 M | tests, a first look on CPU |
| `small` | t4s16c64 | 59 M | one small accelerator |
| `base` | t4s16c64 | 233 M | the defaults of `VAEConfig` |
| `paper` | t4s16c64 | 658 M | PV-VAE: 661 M in table 1; the widths are ours, the paper has none |
| `t4s8c16` | t4s8c16 | 232 M | the compression of most networks in table 1 |
| `wan22` | t4s16c48 | 704,688,668 | Wan2.2 VAE |
| `wan21` | t4s8c16 | 126,892,531 | Wan2.1 VAE |

All but the Wan networks shrink time first, as the paper does, and have a learnable pad. Wan was not trained to predict:
its configs pad with N(0, I), which has no parameter, so their counts are the published ones. To train one predictively,
`dataclasses.replace(SIZES["wan22"], pad="learnable")`.
"""

from __future__ import annotations

from pv_vae_jax.models.vae import VAEConfig

SIZES: dict[str, VAEConfig] = {
    "tiny": VAEConfig(
        latent_channels=16,
        encoder_widths=(16, 16, 32, 32, 32),
        decoder_widths=(16, 16, 32, 32, 32),
        encoder_blocks=1,
        decoder_blocks=1,
    ),
    "small": VAEConfig(encoder_widths=(32, 64, 128, 256, 256), decoder_widths=(32, 64, 128, 256, 256)),
    "base": VAEConfig(),
    # Multiples of 128 at every resolution: narrower channels leave lanes of a matrix unit idle, and cost most of all at
    # full resolution.
    "paper": VAEConfig(encoder_widths=(128, 128, 512, 512, 512), decoder_widths=(128, 128, 512, 1024, 1024)),
    "t4s8c16": VAEConfig(
        latent_channels=16,
        time_factors=(2, 2, 1),
        space_factors=(2, 2, 2),
        encoder_widths=(128, 256, 512, 512),
        decoder_widths=(128, 256, 512, 512),
    ),
    "wan22": VAEConfig(
        patch=2,
        latent_channels=48,
        time_factors=(1, 2, 2),
        space_factors=(2, 2, 2),
        encoder_widths=(160, 320, 640, 640),
        decoder_widths=(256, 512, 1024, 1024),
        shortcut_pad="zero",
        shortcut_time="interleave",
        pad="gaussian",
    ),
    "wan21": VAEConfig(
        latent_channels=16,
        time_factors=(1, 2, 2),
        space_factors=(2, 2, 2),
        encoder_widths=(96, 192, 384, 384),
        decoder_widths=(96, 192, 384, 384),
        shortcuts=False,
        upsample_halves_channels=True,
        pad="gaussian",
    ),
}
