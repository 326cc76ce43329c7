"""The feature network that ships with the library: how it was trained.

  python -m studies.features --config experiments/feature_net.py --out features --videos=big_buck_bunny --credit=...

The videos were 760 windows of 12 frames of *Big Buck Bunny*, (c) copyright 2008 Blender Foundation,
www.bigbuckbunny.org, CC BY 3.0, at a short side of 128 pixels. Takes 6.5 minutes on two cores that others use too.
Expected: weights with the hash `6ab3b0707670d790` on the same clips, versions and processor, and about the same scores
elsewhere.
"""

from studies.features.training import FeatureNetConfig, FeatureTraining


def get_config() -> FeatureTraining:
    """A network of 286,176 parameters."""
    return FeatureTraining(
        network=FeatureNetConfig(widths=(16, 32, 64, 128), features=128, side=32),
        clips=768,
        frames=12,
        sprites=2,
        steps=1_000,
        batch_size=24,
        learning_rate=2e-3,
        weight_decay=0.02,
        real_share=0.4,
        seed=0,
    )
