"""The batch sizes of a stage: one size, or several that cost the same, and whether a mesh can split them."""

import dataclasses

from jax.sharding import Mesh

from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.mixture import balanced_batch_sizes
from pv_vae_jax.sharding.axes import CONTEXT, DATA, FSDP, SPACE, TENSOR
from pv_vae_jax.train.configs import VAE_STAGES, Experiment, VAEStageConfig
from pv_vae_jax.typing import ConfigError


@dataclasses.dataclass(frozen=True)
class SizedBatch:
    """One kind of batch.

    Attributes:
      batch_size: clips in the global batch.
      frames, size: frames of a clip, and their size.
      weight: number of these batches in every `sum of weights` steps.
      images: whether a clip is a single frame of a longer one.
    """

    batch_size: int
    frames: int
    size: FrameSize
    weight: int = 1
    images: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the videos of a global batch, `(b, t, H, W, 3)`."""
        return (self.batch_size, self.frames, self.size.height, self.size.width, 3)


def sized_batches(experiment: Experiment, name: str) -> tuple[SizedBatch, ...]:
    """The batches of VAE stage `name`, in the order of its `sizes`.

    The size with the most pixels a clip takes `batch_size`; the others take as many clips as come to the same number of
    pixels, rounded down to a multiple of `batch_multiple` (paper: "compute per step is balanced"). Nothing depends on
    the devices, so that a run may go on with another number of them.
    """
    stage: VAEStageConfig = getattr(experiment, name)
    if not stage.sizes:
        frames = 1 if stage.images else experiment.data.frames
        return (SizedBatch(stage.batch_size, frames, experiment.data.frame_size, images=stage.images),)
    sizes = [(frames, experiment.data.sized(size), *weight) for frames, size, *weight in stage.sizes]
    shapes = [(frames, size.height, size.width) for frames, size, *_ in sizes]
    batches = balanced_batch_sizes(shapes, stage.batch_size, multiple=stage.batch_multiple)
    return tuple(
        SizedBatch(batch, frames, size, *weight, images=frames == 1)
        for batch, (frames, size, *weight) in zip(batches, sizes, strict=True)
    )


def size_name(shape: tuple[int, ...]) -> str:
    """Name of a size in the curves: `17x256` for videos `(b, 17, 256, 256, 3)`, `17x256x448` for a rectangle."""
    _, frames, height, width, _ = shape
    return f"{frames}x{height}" if height == width else f"{frames}x{height}x{width}"


def check_mesh(mesh: Mesh, experiment: Experiment, stage: str) -> None:
    """Check that a stage's batch, picture and heads can be split evenly over the mesh.

    Raises:
      ConfigError: they cannot; the message says what to set.
    """
    size, data, config = mesh.shape, experiment.data, getattr(experiment, stage)
    examples, parts = size[DATA] * size[FSDP], config.grad_accum_steps
    single = SizedBatch(config.batch_size, data.frames, data.frame_size)
    for batch in sized_batches(experiment, stage) if stage in VAE_STAGES else (single,):
        if batch.batch_size % (examples * parts):
            times = f", {parts} times over (grad_accum_steps)" if parts > 1 else ""
            found, cure = f"{stage}.batch_size {batch.batch_size}", "change it"
            if batch.batch_size != config.batch_size:
                found = f"{stage}.sizes gives batches of {batch.batch_size} at {size_name(batch.shape)}, which"
                cure = f"set {stage}.batch_multiple={examples * parts} for a new run"
            raise ConfigError(
                f"{found} is not a multiple of the {examples} devices that split it{times}: {cure}, or use fewer "
                "devices with --config.mesh.data=1"
            )
        for axis, what, pixels in ((SPACE, "width", batch.size.width), (CONTEXT, "height", batch.size.height)):
            side = pixels // experiment.vae.space_factor  # the coarsest picture, and the latents
            if side % size[axis]:
                raise ConfigError(
                    f"mesh.{axis} {size[axis]} does not divide the {what} of the latents, {side}: change it"
                )
    if stage == "diffusion" and experiment.latte.heads % size[TENSOR]:
        raise ConfigError(f"mesh.{TENSOR} {size[TENSOR]} does not divide the {experiment.latte.heads} heads: change it")
