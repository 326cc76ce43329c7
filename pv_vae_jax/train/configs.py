"""The configuration of an experiment: one tree of frozen dataclasses, loaded from a file and overridden by flags.

An experiment file defines `get_config() -> Experiment`. Networks never see this tree: each takes its own part.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal

from pv_vae_jax.data.synthetic import families_of
from pv_vae_jax.dropping import SPATIAL, DropFrom, DropPattern, DropSchedule, max_dropped, num_droppable
from pv_vae_jax.flow import TimeDistribution
from pv_vae_jax.losses import Objective
from pv_vae_jax.models.discriminator import DiscriminatorConfig
from pv_vae_jax.models.latte import LatteConfig
from pv_vae_jax.models.transformer_vae import TransformerVAEConfig
from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.typing import ConfigError, ShapeError, check_clip_shape


def check_local(name: str, path: str | Path) -> None:
    """Refuse the address of a bucket: as a path it would name a folder `gs:` of this machine, and end with it.

    Args:
      name: of the setting, for the message.
      path: what it was set to; a `Path` has lost one of the slashes.

    Raises:
      ConfigError: it is an address.
    """
    if re.match(r"\w[\w+.-]+:/", str(path)):
        raise ConfigError(
            f"{name} is a folder, got {path}: mount the bucket (gcsfuse, a persistent volume) and name the mounted "
            "folder"
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Clips for training and evaluation.

    Attributes:
      source: `synthetic`, or with families of motion of one's choice `synthetic:fall,walk`; or a folder: of video
        files, whose sub-folders are classes; of `pv-vae prepare`; or of a data set in its official layout.
      clips: training clips of the synthetic world (a folder has what it has).
      test_clips: clips held out for evaluation, at most.
      frames: of a clip, `1 + n p_t`.
      size: side of the square clip in pixels.
      stride: video frames from one clip frame to the next.
      threads: reading and decoding.
      cache_bytes: memory for decoded videos, or rendered clips of the synthetic world.
      fold: official split of UCF101, 1 to 3.
      crop: where the square lies in a training clip; `random` draws its place each time.
    """

    source: str = "synthetic"
    clips: int = 8_192
    test_clips: int = 64
    frames: int = 17
    size: int = 32
    stride: int = 1
    threads: int = 2
    cache_bytes: int = 2 << 30
    crop: Literal["centre", "random"] = "centre"
    fold: int = 1


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to a fraction (paper: base rate 5e-5, decay to one tenth).

    Attributes:
      name: `adamw`, or `muon` (ours): orthogonalised momentum for kernels, Nesterov AdamW for the rest.
      learning_rate: the peak.
      warmup_steps: linear from 0, at most half of the stage; the paper does not give its length.
      final_fraction: of the peak, at the last step.
      weight_decay: decoupled, on matrices and kernels only.
      b1, b2: decays of AdamW's moments; Muon's momentum is 0.95.
      clip_norm: global gradient norm allowed; 0 leaves gradients alone.
      momentum_dtype: type in which the first moment (or Muon's momentum) is kept; the second stays float32, whose small
        steps bfloat16 would round away.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 5e-5
    warmup_steps: int = 1_000
    final_fraction: float = 0.1
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    clip_norm: float = 1.0
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class VAEStageConfig:
    """One of the three VAE stages.

    Attributes:
      steps: length; 0 skips the stage.
      batch_size: clips (or images) of the global batch; with `sizes`, of the largest.
      sizes: batches of several sizes instead of `data.frames` and `data.size`, each `(frames, side)` or `(frames, side,
        share)`: of every `sum of shares` steps, `share` are of that size. One frame is an image. Empty for one size.
      batch_multiple: with `sizes`, every batch size is a multiple of it: the devices that share a batch, or what they
        may become.
      images: train on single frames, T = 0 (stage 1).
      drop_ratio: `r`, the largest share of later groups withheld; 0 drops nothing, and less than one group is refused.
      drop_form: `truncated` (one k for the batch, a program each, saves encoder work) or `filled` (one program).
      drop_per_example: a `k` for each example; needs the filled form.
      drop_pattern: what is withheld. `future` is the paper's; `infill` groups within the clip, `block`, `tube` and
        `random` parts of frames (ours, see `masking`), which need the filled form.
      drop_from: for other patterns than `future`: blank `pixels` before encoding, so that nothing of them is seen, or
        overwrite `latents` only, which have seen them.
      drop_schedule: `constant`, or `drop_ratio_start` to `drop_ratio` along a line (`linear`) or half a `cosine`.
      drop_ratio_start: the ratio at the first step, of schedules that are not constant.
      drop_ramp: share of the stage's steps within which they reach `drop_ratio`, which then stays.
      reverse: probability of playing a clip backwards. The paper's figure 2 shows it, its text does not.
      flip: probability of mirroring a clip.
      frozen: parts of the VAE that do not move, of `encoder`, `decoder`, `pad`.
      objective: loss weights.
      optimizer, discriminator_optimizer: of the two sides.
      ema_decay: of the VAE's moving average, which is what later stages use.
      init_from: what starts this stage instead of the stage before: a shipped model's name, a model folder, a work
        directory, a training state (`.../checkpoints/<step>`) or a stage's folder (its newest state).
      init_parts: parts to take from there, of `encoder`, `decoder`, `pad`; the others are drawn. Empty takes all.
      init_weights: of a training state: `ema`, or `params`, what the optimiser moved.
      grad_accum_steps: parts of a batch computed one after the other, their gradients averaged, to save memory;
        the adaptive GAN weight is then taken for each part. For accelerators: on CPU, convolutions in a loop are slow.
    """

    steps: int = 0
    batch_size: int = 8
    images: bool = False
    drop_ratio: float = 0.0
    drop_form: Literal["truncated", "filled"] = "truncated"
    drop_per_example: bool = False
    reverse: float = 0.0
    flip: float = 0.5
    frozen: tuple[str, ...] = ()
    objective: Objective = Objective()
    optimizer: OptimizerConfig = OptimizerConfig()
    discriminator_optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: float = 0.999
    init_from: str = ""
    init_parts: tuple[str, ...] = ()
    init_weights: Literal["ema", "params"] = "ema"
    grad_accum_steps: int = 1
    sizes: tuple[tuple[int, ...], ...] = ()
    batch_multiple: int = 1
    drop_pattern: DropPattern = "future"
    drop_from: DropFrom = "pixels"
    drop_schedule: DropSchedule = "constant"
    drop_ratio_start: float = 0.0
    drop_ramp: float = 0.5

    @property
    def drop_ratio_max(self) -> float:
        """The largest ratio of the whole stage."""
        return self.drop_ratio if self.drop_schedule == "constant" else max(self.drop_ratio_start, self.drop_ratio)


@dataclasses.dataclass(frozen=True)
class LatentsConfig:
    """The cache of posteriors on which the transformer trains.

    Attributes:
      clips: encoded from the training split; more than it has windows gives each several, at other places.
      batch_size: clips encoded at once, of the whole mesh where it is `online`.
      flip: probability of mirroring a clip.
      online: encode clips as they are trained on instead, each time from other frames; `clips` are then encoded for the
        statistics alone. Takes no disk, and the encoder's time at every step.
    """

    clips: int = 2_048
    batch_size: int = 16
    flip: float = 0.0
    online: bool = False


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """Training of the latent diffusion transformer (paper: 250 K steps, rate 1e-4, batch 64).

    Attributes:
      steps, batch_size: length, and clips of the global batch.
      conditional: on the classes of the data, if there is more than one; their number goes to the transformer.
      label_dropout: share of examples trained without class, for guidance.
      time_distribution: of the flow's time.
      optimizer: of the transformer.
      ema_decay: of the moving average that is sampled from.
      grad_accum_steps: parts of a batch computed one after the other, their gradients averaged, to save memory.
    """

    steps: int = 0
    batch_size: int = 64
    conditional: bool = True
    label_dropout: float = 0.1
    time_distribution: TimeDistribution = "uniform"
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    ema_decay: float = 0.9999
    grad_accum_steps: int = 1


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Generation: Euler steps (paper: 100), guidance scale (1 is none), clips and clips a batch."""

    steps: int = 100
    guidance: float = 1.0
    clips: int = 64
    batch_size: int = 16


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices a mesh axis; one of them may be -1, "all that are left".

    Attributes:
      data: split the batch, replicate parameters.
      fsdp: split the batch and the parameters with their optimiser state.
      tensor: split heads and hidden channels with their weights.
      space: split the width of the picture.
      context: split the height of the picture, and the transformers' tokens.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    space: int = 1
    context: int = 1


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
    """LPIPS as the perceptual term of the VAE stages, from files of yours; see `objective.perceptual`.

    Attributes:
      backbone: the network whose features are compared; training losses in the literature take VGG16.
      weights: torchvision's file of it, `.pth` or `.safetensors`.
      heads: LPIPS's linear heads, `.pth`, `.npz` or `.safetensors`.
    """

    backbone: Literal["alexnet", "vgg16"] = "vgg16"
    weights: str = ""
    heads: str = ""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything one run needs. Stages run in the order image, video, decoder, latents, diffusion.

    Attributes:
      name: for people and reports.
      seed: of every random draw.
      vae: `VAEConfig` for the CNN, `TransformerVAEConfig` for the transformer; flags change its fields, not its kind.
      log_every, checkpoint_every: steps.
      checkpoints_kept: newest full training states kept a stage.
      mesh: devices a mesh axis.
      perceptual: the network of the perceptual term.
    """

    name: str = "experiment"
    seed: int = 0
    data: DataConfig = DataConfig()
    vae: VAEConfig | TransformerVAEConfig = VAEConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    image: VAEStageConfig = VAEStageConfig(images=True)
    video: VAEStageConfig = VAEStageConfig(drop_ratio=1.0)
    decoder: VAEStageConfig = VAEStageConfig(frozen=("encoder", "pad"))
    latents: LatentsConfig = LatentsConfig()
    latte: LatteConfig = LatteConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()
    log_every: int = 10
    checkpoint_every: int = 1_000
    checkpoints_kept: int = 2
    mesh: MeshConfig = MeshConfig()
    perceptual: PerceptualConfig = PerceptualConfig()

    def validate(self) -> Experiment:
        """Return self, or raise `ConfigError` / `ShapeError` naming the first thing that cannot work."""
        data = self.data
        check_clip_shape(data.frames, data.size, data.size, self.vae.time_factor, self.vae.space_factor)
        check_limits(self)
        try:
            synthetic = families_of(data.source)
        except ValueError as error:
            raise ConfigError(f"config.data.source: {error}") from error
        if synthetic and data.stride != 1:
            raise ConfigError("config.data.stride is for videos: the synthetic world is drawn at the speed it has")
        if data.source.partition(":")[0] == "synthetic" and data.fold != 1:
            raise ConfigError("config.data.fold is of UCF101: name its folder in config.data.source")
        if not data.source:
            raise ConfigError("config.data.source is empty: name a folder, or 'synthetic'")
        check_local("config.data.source", data.source)
        if self.latte.latent_channels != self.vae.latent_channels:
            raise ConfigError(
                f"latte.latent_channels is {self.latte.latent_channels}, vae.latent_channels "
                f"{self.vae.latent_channels}: set them equal"
            )
        side = data.size // self.vae.space_factor
        if side % self.latte.patch:
            raise ConfigError(f"latte.patch is {self.latte.patch}, which does not divide the latents' side {side}")
        if self.latte.classes:
            raise ConfigError("latte.classes comes from the data: leave it 0, and use diffusion.conditional")
        for name in VAE_STAGES:
            stage: VAEStageConfig = getattr(self, name)
            if stage.drop_per_example and stage.drop_form != "filled":
                raise ConfigError(f"{name}.drop_per_example needs {name}.drop_form=filled")
            if stage.objective.gan and stage.objective.gan_start >= stage.steps > 0:
                raise ConfigError(
                    f"{name}.objective.gan_start is {stage.objective.gan_start}, but {name} ends at step {stage.steps} "
                    "and would never have a GAN: lower it, or set gan=0"
                )
            if stage.objective.gan and "decoder" in stage.frozen:
                raise ConfigError(f"{name}.objective.gan moves the decoder, which {name}.frozen holds: change one")
            if stage.images and stage.drop_ratio_max:
                raise ConfigError(f"{name} trains on images, which have nothing to drop: set {name}.drop_ratio=0")
            for field in ("frozen", "init_parts"):
                if unknown := set(getattr(stage, field)) - {"encoder", "decoder", "pad"}:
                    raise ConfigError(f"{name}.{field} names no part of the VAE: {sorted(unknown)}")
            if stage.init_parts and not stage.init_from:
                raise ConfigError(f"{name}.init_parts says what to take from {name}.init_from: set that too")
            self._check_sizes(name)
            self._check_dropping(name)
            halved = 2**self.discriminator.levels
            for side in sorted({entry[1] for entry in stage.sizes} or {data.size}):
                if stage.objective.gan and (side < halved or ("3d" in self.discriminator.kinds and side % halved)):
                    raise ConfigError(
                        f"discriminator.levels {self.discriminator.levels} halves pictures to a {halved}th, which "
                        f"{name} cannot do to {side} pixels: use fewer levels, or sides that are multiples of {halved}"
                    )
        return self

    def _check_sizes(self, name: str) -> None:
        stage: VAEStageConfig = getattr(self, name)
        key, seen = f"config.{name}.sizes", set()
        for entry in stage.sizes:
            whole = isinstance(entry, tuple) and len(entry) in (2, 3)
            if not whole or any(type(number) is not int or number < 1 for number in entry):
                example = "(frames, side) or (frames, side, share), such as ((1, 128), (17, 128), (17, 64, 2))"
                raise ConfigError(f"{key} holds {entry!r}; an entry is {example}")
            frames, side, *_ = entry
            try:
                check_clip_shape(frames, side, side, self.vae.time_factor, self.vae.space_factor)
            except ShapeError as error:
                raise ShapeError(f"{key}, {entry}: {error}") from error
            if stage.images and frames > 1:
                raise ConfigError(
                    f"{key} holds {entry}, and {name} trains on images: write (1, {side}), or set images=False"
                )
            if (frames, side) in seen:
                raise ConfigError(f"{key} holds {(frames, side)} twice: give it a share, ({frames}, {side}, 2)")
            seen.add((frames, side))
        if stage.sizes and stage.drop_ratio_max and all(entry[0] == 1 for entry in stage.sizes):
            raise ConfigError(f"{key} holds images only, which have nothing to drop: set {name}.drop_ratio=0")
        if stage.batch_multiple > 1 and not stage.sizes:
            raise ConfigError(f"{name}.batch_multiple is for {name}.sizes, of which there are none")
        if stage.batch_size % stage.batch_multiple:
            multiple = stage.batch_multiple
            near = " or ".join(
                str(n * multiple) for n in (stage.batch_size // multiple, stage.batch_size // multiple + 1) if n
            )
            raise ConfigError(
                f"{name}.batch_size {stage.batch_size} is no multiple of batch_multiple {multiple}: use {near}"
            )

    def _check_dropping(self, name: str) -> None:
        """What lies beyond the paper."""
        stage: VAEStageConfig = getattr(self, name)
        frames = max((entry[0] for entry in stage.sizes), default=self.data.frames)
        groups = self.vae.latent_frames(frames)
        side = min((entry[1] for entry in stage.sizes), default=self.data.size) // self.vae.space_factor
        if stage.drop_pattern != "future" and stage.drop_form != "filled":
            raise ConfigError(
                f"{name}.drop_pattern={stage.drop_pattern} needs {name}.drop_form=filled: truncating leaves out the end"
            )
        if stage.drop_pattern == "future" and stage.drop_from != "pixels":
            raise ConfigError(
                f"{name}.drop_from=latents is for other patterns than future, whose observed latents have seen nothing "
                f"of it: set {name}.drop_pattern, or leave {name}.drop_from"
            )
        if stage.drop_ratio_max and stage.drop_pattern in SPATIAL and side < 2:
            raise ConfigError(
                f"{name}.drop_pattern={stage.drop_pattern} withholds parts of frames, which are one latent position: "
                f"set data.size={2 * self.vae.space_factor} or more"
            )
        if stage.drop_ratio_max and stage.drop_pattern == "infill" and groups < 3:
            raise ConfigError(
                f"{name}.drop_pattern=infill keeps the first and the last group; {frames} frames have "
                f"none between: set data.frames={self.vae.frames(3)} or more"
            )
        most, highest = num_droppable(groups, stage.drop_pattern), stage.drop_ratio_max
        if highest and most and not max_dropped(groups, highest, stage.drop_pattern):
            least = math.ceil(1e4 / most) / 1e4  # rounded up, so that it does drop one
            raise ConfigError(
                f"{name} drops no group at the ratio {highest:g}: {frames} frames have {most} that may be dropped with "
                f"drop_pattern={stage.drop_pattern}. Set {name}.drop_ratio={least:g} or more, or 0"
            )
        default = VAEStageConfig()
        if stage.drop_schedule == "constant":
            for field in ("drop_ratio_start", "drop_ramp"):
                if getattr(stage, field) != getattr(default, field):
                    raise ConfigError(
                        f"{name}.{field} is for schedules: set {name}.drop_schedule to linear or cosine, or leave it"
                    )
        if stage.objective.local_correlation and (side < 2 or self.vae.latent_channels < 2):
            raise ConfigError(
                f"{name}.objective.local_correlation compares the channels of neighbouring latents: set data.size="
                f"{2 * self.vae.space_factor} and vae.latent_channels=2 or more"
            )


VAE_STAGES = ("image", "video", "decoder")

STAGES = VAE_STAGES + ("latents", "diffusion")

TRAINED = VAE_STAGES + ("diffusion",)

# The smallest and the largest value of a setting, both allowed; networks and objectives check themselves.
COUNT, AMOUNT, SHARE = (1, 2**31 - 1), (0, math.inf), (0, 1)

# Below 1: an average that never forgets never learns.
DECAY = (0, math.nextafter(1, 0))

LIMITS: dict[type, dict[str, tuple[float, float]]] = {
    Experiment: {"seed": (0, 2**31 - 1), "log_every": COUNT, "checkpoint_every": COUNT, "checkpoints_kept": COUNT},
    DataConfig: {
        **dict.fromkeys(("clips", "test_clips", "stride", "threads"), COUNT),
        "cache_bytes": AMOUNT,
        "fold": (1, 3),
    },
    OptimizerConfig: {
        **dict.fromkeys(("learning_rate", "warmup_steps", "weight_decay", "clip_norm"), AMOUNT),
        **{"final_fraction": SHARE, "b1": DECAY, "b2": DECAY},
    },
    VAEStageConfig: {
        **{
            "steps": AMOUNT,
            "batch_size": COUNT,
            "grad_accum_steps": COUNT,
            "batch_multiple": COUNT,
            "ema_decay": DECAY,
        },
        **dict.fromkeys(("drop_ratio", "reverse", "flip", "drop_ratio_start", "drop_ramp"), SHARE),
    },
    LatentsConfig: {"clips": COUNT, "batch_size": COUNT, "flip": SHARE},
    DiffusionConfig: {
        **{"steps": AMOUNT, "batch_size": COUNT, "grad_accum_steps": COUNT, "label_dropout": SHARE, "ema_decay": DECAY},
    },
    SamplingConfig: {"steps": COUNT, "guidance": AMOUNT, "clips": COUNT, "batch_size": COUNT},
}


def check_limits(config: Any, prefix: str = "config") -> None:
    """Raise `ConfigError` at the first number of the tree `config` that is not finite or outside its `LIMITS`."""
    for field in dataclasses.fields(config):
        key, value = f"{prefix}.{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_limits(value, key)
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} is a finite number, got {value}")
        low, high = LIMITS.get(type(config), {}).get(field.name, (-math.inf, math.inf))
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise ConfigError(f"{key} {_interval(low, high)}, got {value}")


def _interval(low: float, high: float) -> str:
    if high == math.inf:
        return f"is at least {low}"
    if high > 1:
        return f"lies between {low} and {high}"
    return f"lies in [{low}, 1{']' if high == 1 else ')'}"
