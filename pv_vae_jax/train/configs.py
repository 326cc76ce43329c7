"""The configuration of an experiment: one tree of frozen dataclasses, each of which checks itself.

An experiment file defines `get_config() -> Experiment`. Networks never see this tree: each takes its own part.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pv_vae_jax.data.frame_size import Fit, FrameSize
from pv_vae_jax.data.sources import program_name
from pv_vae_jax.data.synthetic import families_of, state_width
from pv_vae_jax.dropping import DropFrom, DropPattern, DropSchedule
from pv_vae_jax.flow import TimeDistribution
from pv_vae_jax.losses import Objective
from pv_vae_jax.models.discriminator import DiscriminatorConfig
from pv_vae_jax.models.latte import LatteConfig
from pv_vae_jax.models.transformer_vae import TransformerVAEConfig
from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.storage import check_address
from pv_vae_jax.train.checks import check_experiment, check_stage, is_size
from pv_vae_jax.train.ranges import Config, Count, Decay, Fraction, NonNegative, Positive, Range, Seed, Steps
from pv_vae_jax.typing import VAE_STAGES, ConfigError

STAGES = VAE_STAGES + ("latents", "diffusion")
TRAINED = (*VAE_STAGES, "diffusion")  # stages with a training step


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """Clips for training and evaluation.

    Attributes:
      source: `synthetic`, or `synthetic:fall,walk` with the families of motion to draw from, or `plain` likewise (one
        disc on grey); or a folder of video files (sub-folders are classes), of `pv-vae prepare`, or of a data set in
        its official layout.
      clips: number of training clips of the synthetic world; a folder has what it has.
      test_clips: largest number of clips held out for evaluation.
      frames: frames of a clip, `1 + n p_t`.
      size: side of a clip in pixels, or its `(height, width)`; the flag is `--config.data.size=480,848`.
      fit: how videos of another shape are brought to it: `crop`, `pad` (black bars) or `resize` (stretched).
      stride: video frames from one clip frame to the next.
      threads: threads that read and decode, in each process.
      workers: worker processes that read and decode; 0 for none. See `data.stream`.
      cache_bytes: memory for decoded videos, or for rendered clips of the synthetic world.
      fold: official split of UCF101, 1 to 3.
      crop: place of the crop of a training clip; `random` draws a new one each time.
      class_names: names of the classes, for clips that a program passes to `train` (`source=program:NAME`).
      features: numbers that every frame of a clip comes with, for stages with `objective.alignment`: the state of the
        synthetic world (`synthetic.state`), or the `features (t, f)` of a program's clips. 0 for none.
      max_damaged_files: largest share of a folder's files that may be damaged, with others in their place; more end a
        run. Files that are too short for a clip are no damage.
      max_damaged_records: the same for the clips in shards of `pv-vae prepare`. Of cached latents none may be.
    """

    source: str = "synthetic"
    clips: Count = 8_192
    test_clips: Count = 64
    frames: int = 17
    size: int | tuple[int, int] = 32
    fit: Fit = "crop"
    stride: Count = 1
    threads: Count = 2
    workers: Steps = 0
    cache_bytes: Steps = 2 << 30
    crop: Literal["centre", "random"] = "centre"
    fold: Annotated[int, Range(1, 3, "between 1 and 3")] = 1
    class_names: tuple[str, ...] = ()
    features: Steps = 0
    max_damaged_files: Fraction = 0.05
    max_damaged_records: Fraction = 0.0

    @property
    def frame_size(self) -> FrameSize:
        """`size` and `fit`."""
        return FrameSize.of(self.size, self.fit)

    def sized(self, size: int | tuple[int, int]) -> FrameSize:
        """Another size with this `fit`."""
        return FrameSize.of(size, self.fit)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_size(self.size):
            raise ConfigError(f"size must be a side or (height, width) in pixels, at least 1, got {self.size!r}")
        if self.crop == "random" and self.fit != "crop":
            raise ConfigError(f"crop=random needs fit=crop, got fit={self.fit}: change one of them")
        if self.class_names and not program_name(self.source):
            raise ConfigError("class_names applies to source=program:NAME: a folder names its own classes")
        try:
            synthetic = families_of(self.source)
        except ValueError as error:
            raise ConfigError(f"source: {error}") from error
        if synthetic and self.stride != 1:
            raise ConfigError("stride must be 1 with source=synthetic: its motion is drawn at a fixed speed")
        if synthetic and self.fold != 1:
            raise ConfigError("fold applies to UCF101 only: set source to its folder, or leave fold at 1")
        if self.features and not (synthetic or program_name(self.source)):
            raise ConfigError("features are those of source=synthetic or source=program:NAME: set it, or features=0")
        if self.features and synthetic and self.features != (width := state_width(self.source)):
            raise ConfigError(f"features must be 0 or {width} with source={self.source}, the width of its state")
        if self.features and self.crop == "random":
            raise ConfigError("features do not follow a crop: set crop=centre, or features=0")
        if not self.source:
            raise ConfigError("source is empty: set it to a folder, or to 'synthetic'")
        check_address("source", self.source)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Config):
    """AdamW with linear warm-up and cosine decay to a fraction (paper: base rate 5e-5, decay to one tenth).

    Attributes:
      name: `adamw`, or `muon` (ours): orthogonalised momentum for kernels, Nesterov AdamW for everything else.
      learning_rate: peak of the schedule.
      warmup_steps: length of the linear warm-up, capped at half the stage; the paper does not give it.
      final_fraction: fraction of the peak at the last step.
      weight_decay: decoupled weight decay, applied to matrices and kernels only.
      b1, b2: decay rates of AdamW's moments; Muon's momentum is 0.95.
      clip_norm: largest global gradient norm; 0 turns clipping off.
      momentum_dtype: type of the first moment (or Muon's momentum). The second moment stays float32: bfloat16 would
        round its small changes away.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: NonNegative = 5e-5
    warmup_steps: Steps = 1_000
    final_fraction: Fraction = 0.1
    weight_decay: NonNegative = 0.0
    b1: Decay = 0.9
    b2: Decay = 0.99
    clip_norm: NonNegative = 1.0
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class VAEStageConfig(Config):
    """One of the three VAE stages.

    Attributes:
      steps: number of training steps; 0 skips the stage.
      batch_size: clips (or images) of the global batch; with `sizes`, of the largest size.
      sizes: batches of several sizes instead of `data.frames` and `data.size`, each `(frames, size)` or `(frames, size,
        weight)` with a size as `data.size` has it: `weight` of every `sum of weights` steps have that size. One frame
        is an image. Empty for one size.
      batch_multiple: with `sizes`, every batch size is a multiple of this: the largest number of devices to share one.
      images: train on single frames, T = 0 (stage 1).
      drop_ratio: `r`, the largest fraction of later groups withheld. 0 drops nothing; a ratio that never drops a group
        is refused.
      drop_form: `truncated` (one k for the batch, a program for each k, saves encoder work) or `filled` (one program).
      drop_per_example: draw a `k` for each example; needs the filled form.
      drop_pattern: what is withheld. `future` is the paper's. `infill` (groups within the clip) and `block`, `tube` and
        `random` (parts of frames) are ours, see `masking`, and need the filled form.
      drop_from: with patterns other than `future`, either blank `pixels` before encoding, so that nothing sees them, or
        overwrite `latents` only, after the encoder has seen everything.
      drop_schedule: `constant`, or from `drop_ratio_start` to `drop_ratio` on a line (`linear`) or half a `cosine`.
      drop_ratio_start: ratio at the first step of a schedule that is not constant.
      drop_ramp: fraction of the stage's steps after which the schedule has reached `drop_ratio`.
      reverse: probability of playing a clip backwards. The paper's figure 2 shows it, its text does not.
      flip: probability of mirroring a clip.
      frozen: parts of the VAE that are not trained: any of `encoder`, `decoder`, `pad`.
      objective: weights of the loss terms.
      optimizer, discriminator_optimizer: optimisers of the VAE and of the discriminator.
      ema_decay: decay of the moving average of the VAE's weights, which later stages use.
      init_from: start from this instead of the stage before: a shipped model's name, a model folder, a work directory,
        a model on the hub (`hf://OWNER/NAME`), a training state (`.../checkpoints/<step>`) or a stage's folder (its
        newest state).
      init_parts: parts to load from there: any of `encoder`, `decoder`, `pad`; the others are initialised at random.
        Empty loads all.
      init_weights: weights to load from a training state: the moving average `ema`, or the raw `params`.
      grad_accum_steps: split the batch into this many parts and average their gradients, to save memory; the adaptive
        GAN weight is computed for each part. Meant for accelerators: convolutions in a loop are slow on CPU.
    """

    steps: Steps = 0
    batch_size: Count = 8
    images: bool = False
    drop_ratio: Fraction = 0.0
    drop_form: Literal["truncated", "filled"] = "truncated"
    drop_per_example: bool = False
    reverse: Fraction = 0.0
    flip: Fraction = 0.5
    frozen: tuple[str, ...] = ()
    objective: Objective = Objective()
    optimizer: OptimizerConfig = OptimizerConfig()
    discriminator_optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: Decay = 0.999
    init_from: str = ""
    init_parts: tuple[str, ...] = ()
    init_weights: Literal["ema", "params"] = "ema"
    grad_accum_steps: Count = 1
    sizes: tuple[tuple, ...] = ()
    batch_multiple: Count = 1
    drop_pattern: DropPattern = "future"
    drop_from: DropFrom = "pixels"
    drop_schedule: DropSchedule = "constant"
    drop_ratio_start: Fraction = 0.0
    drop_ramp: Fraction = 0.5

    @property
    def drop_ratio_max(self) -> float:
        """The largest ratio at any step of the stage."""
        return self.drop_ratio if self.drop_schedule == "constant" else max(self.drop_ratio_start, self.drop_ratio)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stage(self)


@dataclasses.dataclass(frozen=True)
class LatentsConfig(Config):
    """The cache of posteriors on which the transformer trains.

    Attributes:
      clips: clips encoded from the training split; if it has fewer windows, each is encoded several times, cropped and
        timed differently.
      batch_size: clips encoded at once; with `online`, by all devices of the mesh together.
      flip: probability of mirroring a clip.
      online: encode clips during training instead, each time from other frames; only the `clips` that the statistics
        need are encoded before. Takes no disk space, and the encoder's time at every step.
    """

    clips: Count = 2_048
    batch_size: Count = 16
    flip: Fraction = 0.0
    online: bool = False


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(Config):
    """Training of the latent diffusion transformer (paper: 250 K steps, rate 1e-4, batch 64).

    Attributes:
      steps: number of training steps.
      batch_size: clips of the global batch.
      conditional: condition on the classes of the data where it has several; their number is passed to the transformer.
      label_dropout: fraction of examples trained without a class, for guidance.
      time_distribution: distribution of the flow's time.
      time_shift: above 1, times closer to noise, for latents of many channels; see `flow.shift_time`.
      optimizer: optimiser of the transformer.
      ema_decay: decay of the moving average of the weights, which samples are drawn with.
      grad_accum_steps: split the batch into this many parts and average their gradients, to save memory.
    """

    steps: Steps = 0
    batch_size: Count = 64
    conditional: bool = True
    label_dropout: Fraction = 0.1
    time_distribution: TimeDistribution = "uniform"
    time_shift: Positive = 1.0
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    ema_decay: Decay = 0.9999
    grad_accum_steps: Count = 1


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Config):
    """Generation of clips from the trained transformer.

    Attributes:
      steps: Euler steps (paper: 100).
      guidance: scale of classifier-free guidance; 1 turns it off.
      clips: number of clips.
      batch_size: clips drawn at a time.
    """

    steps: Count = 100
    guidance: NonNegative = 1.0
    clips: Count = 64
    batch_size: Count = 16


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1 and takes all remaining devices. `make_mesh` checks them.

    Attributes:
      data: split the batch, replicate parameters.
      fsdp: split the batch, and the parameters with their optimiser state.
      tensor: split heads and hidden channels with their weights.
      space: split the width of the picture.
      context: split the height of the picture, and the transformers' tokens.
      dcn_data: slices of TPUs that a network joins; each has the devices that the other axes name, and own examples.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    space: int = 1
    context: int = 1
    dcn_data: int = 1


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
    """LPIPS as the perceptual term of the VAE stages, from files you supply; see `objective.perceptual`.

    Attributes:
      backbone: network whose features are compared; training losses in the literature use VGG16.
      weights: path of torchvision's file of it, `.pth` or `.safetensors`.
      heads: path of LPIPS's linear heads, `.pth`, `.npz` or `.safetensors`.
    """

    backbone: Literal["alexnet", "vgg16"] = "vgg16"
    weights: str = ""
    heads: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Config):
    """Evaluation of the moving average while a stage trains; it changes no training number. See docs/watching.md.

    Attributes:
      every: steps between two evaluations; 0 for none.
      sample_every: steps of the diffusion stage between two drawings of clips, with their distance from held-out ones;
        0 for none. Costs `sampling.steps` passes of the transformer.
      clips: held-out clips, and clips drawn.
    """

    every: Steps = 0
    sample_every: Steps = 0
    clips: Count = 16


@dataclasses.dataclass(frozen=True)
class Experiment(Config):
    """Everything one run needs. Stages run in the order image, video, decoder, latents, diffusion.

    Attributes:
      name: name of the experiment in reports.
      seed: seed of every random draw.
      data: clips for training and evaluation.
      vae: `VAEConfig` for the CNN, `TransformerVAEConfig` for the transformer; flags change its fields, not its kind.
      discriminator: architecture of the discriminator, for stages with `objective.gan`.
      image: first VAE stage: single frames.
      video: second VAE stage: clips with withheld frames.
      decoder: third VAE stage: the decoder alone.
      latents: the cache of posteriors on which the transformer trains.
      latte: architecture of the diffusion transformer.
      diffusion: training of the transformer.
      sampling: generation of clips.
      log_every: steps between two log lines.
      checkpoint_every: steps between two checkpoints.
      checkpoints_kept: number of full training states kept for each stage.
      mesh: devices along each mesh axis.
      perceptual: network of the perceptual term.
      evaluation: evaluation while stages train.
      writers: where curves and pictures go beside `metrics.jsonl`: any of `tensorboard` and `wandb`.
    """

    name: str = "experiment"
    seed: Seed = 0
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
    log_every: Count = 10
    checkpoint_every: Count = 1_000
    checkpoints_kept: Count = 2
    mesh: MeshConfig = MeshConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    writers: tuple[str, ...] = ("tensorboard",)

    def validate(self) -> Experiment:
        """Return self if its parts fit each other; each part has checked itself.

        Raises:
          ConfigError: two parts contradict each other; the message says what to change.
          ShapeError: clips do not fit the VAE; the message names the nearest shapes that do.
        """
        check_experiment(self)
        return self
