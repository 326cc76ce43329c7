"""The VAE against the same network in PyTorch: encode, decode, and the training step of every stage.

Sides run in one process and take turns, from the same parameters; their outputs are compared before anything is timed.
A step is the predictive pass (filled form, a `k` for each example), pixel, motion and KL terms, backward pass, gradient
clipping, AdamW and EMA; with the GAN also the discriminator's update. PyTorch runs eagerly in both of its memory
layouts (on GPUs in channels-last, and compiled), and counts with the faster. Ratios are of medians, ours over
PyTorch's. Wan2.2 with diffusers beside it is the bench `wan22`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import harness

PARTS = ("encode", "decode", "image", "video", "decoder", "video+gan")
TOLERANCE = 2e-4  # of pixels in [-1, 1], in float32


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and its batch: `batch` clips of `frames` frames of `side` pixels; what to time by default."""

    model: dict | str
    batch: int
    frames: int
    side: int
    parts: tuple[str, ...] = PARTS


DEMO = dict(
    patch=4,
    latent_channels=64,
    time_factors=(2, 2),
    space_factors=(2, 1),
    encoder_widths=(48, 48, 48),
    decoder_widths=(48, 48, 64),
    encoder_blocks=1,
    decoder_blocks=1,
)
# No patches, one level more: convolutions at full resolution.
LARGER = dict(
    patch=1,
    latent_channels=16,
    time_factors=(2, 2, 1),
    space_factors=(2, 2, 2),
    encoder_widths=(32, 64, 128, 128),
    decoder_widths=(32, 64, 128, 128),
    encoder_blocks=1,
    decoder_blocks=1,
)
CPU_CASES = {
    "demo": Case(DEMO, 8, 17, 32),  # the network and batch of `make demo`
    "larger": Case(LARGER, 1, 17, 64, ("encode", "decode", "video")),
    "tiny": Case("tiny", 1, 17, 64, ("encode", "decode", "video")),
    "base": Case("base", 1, 17, 64, ("encode", "decode")),
    "paper": Case("paper", 1, 17, 64, ("encode", "decode")),
}
GPU_CASES = {
    "demo": Case(DEMO, 64, 17, 32),
    "tiny": Case("tiny", 16, 17, 128),
    "base": Case("base", 4, 17, 256),
    "paper": Case("paper", 4, 17, 256),
    "wan22": Case("wan22", 4, 17, 256),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    sizes: networks, of demo, larger (CPU), tiny, base, paper, wan22 (GPU); the default is all, on CPU without paper.
    parts: of encode, decode, image, video, decoder, video+gan; empty is what each size has by default.
    against: torch, or none.
    batch, frames, side: of the clips; 0 is the size's own.
    dtype: compute type; empty is float32 on CPU and bfloat16 elsewhere.
    direct: on CPU, also time our training step with direct 3-D convolutions.
    rounds, seconds: of the turns, see `harness.take_turns`.
    """

    sizes: tuple[str, ...] = ("default",)
    parts: tuple[str, ...] = ()
    against: str = "torch"
    batch: int = 0
    frames: int = 0
    side: int = 0
    dtype: str = ""
    direct: bool = True
    rounds: int = 9
    seconds: float = 20.0


def run(settings: Settings) -> dict:
    """Time every case."""
    import jax

    on_cpu = jax.default_backend() == "cpu"
    cases = known_cases()
    default = [size for size in cases if not (on_cpu and size == "paper")]  # which takes minutes there
    sizes = default if settings.sizes == ("default",) else harness.names(settings.sizes, cases, "size")
    results = {}
    for size in sizes:
        case = find_case(size, settings)
        parts = harness.names(settings.parts, PARTS, "part") if settings.parts else case.parts
        results[size] = {part: time_part(case, part, settings) for part in parts}
    return {"results": results, "aims": aims(results)}


def known_cases() -> dict[str, Case]:
    """The cases of the platform."""
    import jax

    return CPU_CASES if jax.default_backend() == "cpu" else GPU_CASES


def find_case(size: str, settings: Any = None) -> Case:
    """The case of this name; `batch`, `frames` and `side` of `settings` that are not 0 replace its own.

    Raises:
      ConfigError: no case has this name.
    """
    cases = known_cases()
    (size,) = harness.names((size,), cases, "size")
    given = {name: getattr(settings, name, 0) for name in ("batch", "frames", "side")}
    return dataclasses.replace(cases[size], **{name: value for name, value in given.items() if value})


def aims(results: dict) -> list[dict]:
    """What training and using a VAE takes, against PyTorch's faster layout."""
    wanted = {"encode": ("encode", 0.8), "decode": ("decode", 0.8), "video": ("training step", 0.5)}
    wanted |= {"video+gan": ("training step with GAN", 0.5)}
    return [
        harness.aim(f"VAE {wanted[part][0]}, {size}: ours / PyTorch", time["ratio"], most=wanted[part][1])
        for size, parts in results.items()
        for part, time in parts.items()
        if part in wanted and time["ratio"] is not None
    ]


def network(case: Case, dtype: str):
    """The `VAEConfig` of a case."""
    from pv_vae_jax.models.vae import VAEConfig

    config = getattr(VAEConfig, case.model)() if isinstance(case.model, str) else VAEConfig(**case.model)
    return dataclasses.replace(config, dtype=dtype, pad="learnable")


def draw_params(config) -> Any:
    """Parameters of the VAE on the host."""
    import jax
    import jax.numpy as jnp

    from pv_vae_jax.models.vae import VAE

    frames, side = 1 + config.time_factor, config.space_factor
    clip = jnp.zeros((1, frames, side, side, 3))
    return harness.random_like(jax.eval_shape(VAE(config).init, jax.random.key(0), clip)["params"])


def draw_video(case: Case) -> Any:
    """Clips of noise, `(batch, frames, side, side, 3)` uint8."""
    import numpy as np

    shape = case.batch, case.frames, case.side, case.side, 3
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def time_part(case: Case, part: str, settings: Settings) -> dict:
    """One case and part: all sides in turns."""
    import jax

    on_cpu = jax.default_backend() == "cpu"
    dtype = settings.dtype or ("float32" if on_cpu else "bfloat16")
    config = network(case, dtype)
    params = draw_params(config)
    video = draw_video(dataclasses.replace(case, frames=1) if part == "image" else case)
    build = forward_sides if part in ("encode", "decode") else step_sides
    sides, difference = build(config, params, video, part, settings)
    times = harness.take_turns(sides, settings.rounds, seconds=settings.seconds)
    best = harness.fastest(times, "torch")
    ratio = round(times["ours"]["median_ms"] / times[best]["median_ms"], 3) if best else None
    report = ", ".join(f"{name} {harness.ms(t['median_ms'])}" for name, t in times.items())
    print(f"{config.name} {part} {list(video.shape)}: {report}" + (f"; ratio {ratio}" if best else ""), flush=True)
    return {
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "clips": list(video.shape),
        "dtype": dtype,
        "difference": difference,
        "times": times,
        "fastest": best,
        "ratio": ratio,
    }


def layouts(device: Any) -> dict[str, Any]:
    """Memory layouts that PyTorch is timed in. Every guide takes channels-last on GPUs."""
    torch = harness.need("torch")
    found = {"torch, channels last": torch.channels_last_3d}
    return found if device.type == "cuda" else {"torch, contiguous": torch.contiguous_format} | found


def close_enough(ours: Any, theirs: Any, dtype: str) -> float:
    """The largest difference of two outputs.

    Raises:
      RuntimeError: they are not of the same network, so their times would mean nothing.
    """
    import numpy as np

    difference = float(np.abs(np.asarray(ours, np.float32) - np.asarray(theirs, np.float32)).max())
    scale = max(1.0, float(np.abs(np.asarray(ours, np.float32)).max()))
    if not difference <= scale * (TOLERANCE if dtype == "float32" else 0.2):
        raise RuntimeError(f"outputs of the two sides differ by {difference:.1e}: their times would mean nothing")
    return difference


def forward_sides(config, params, video, part: str, settings: Settings) -> tuple[dict[str, Callable], float | None]:
    """`encode` (posterior mean) or `decode`, by side, and the largest difference of the outputs."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pv_vae_jax.models.vae import VAE
    from pv_vae_jax.pixels import to_float

    model = VAE(config)
    held = jax.device_put(params)
    if part == "encode":
        given = jax.device_put(to_float(jnp.asarray(video)))
        apply = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode").mean)
    else:
        side = video.shape[2] // config.space_factor
        shape = (len(video), config.latent_frames(video.shape[1]), side, side, config.latent_channels)
        given = jax.device_put(np.random.default_rng(1).standard_normal(shape, np.float32))
        apply = jax.jit(lambda p, z: model.apply({"params": p}, z, method="decode"))
    sides: dict[str, Callable] = {"ours": lambda: apply(held, given).block_until_ready()}
    if settings.against == "none":
        return sides, None

    torch = harness.need("torch")
    from benchmarks.torch_vae import TorchVAE, lay_out, load_flax

    device, expected, difference = harness.torch_device(), apply(held, given), 0.0

    def forward(network, x):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            y = network.encoder(x).chunk(2, dim=1)[0] if part == "encode" else network.decoder(x)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return y

    for name, layout in layouts(device).items():
        network = TorchVAE(config)
        load_flax(network, params)
        network.to(device)
        lay_out(network, layout)
        x = torch.tensor(np.asarray(given)).permute(0, 4, 1, 2, 3).to(device).contiguous(memory_format=layout)
        found = forward(network, x).float().permute(0, 2, 3, 4, 1).cpu().numpy()
        difference = max(difference, close_enough(expected, found, config.dtype))
        sides[name] = partial(forward, network, x)
        if device.type == "cuda":
            for half in (network.encoder, network.decoder):
                half.compile()
            sides[f"{name}, compiled"] = sides.pop(name)
    return sides, difference


def our_step(config, params, part: str, discriminator: tuple | None):
    """`(step, state, options)` of a training step, see `VAEStep`."""
    import jax
    import jax.numpy as jnp

    from pv_vae_jax.losses import Objective
    from pv_vae_jax.models.discriminator import Discriminator
    from pv_vae_jax.models.vae import VAE
    from pv_vae_jax.train.optim import OptimizerConfig, optimizer
    from pv_vae_jax.train.vae_step import VAEStep

    gan = discriminator is not None
    transform = optimizer(OptimizerConfig(learning_rate=RATE, warmup_steps=0, clip_norm=1.0), steps=1_000_000)
    step = VAEStep(
        VAE(config),
        Objective(kl=KL, gan=GAN if gan else 0.0),
        transform,
        Discriminator(discriminator[0]) if gan else None,
        transform if gan else None,
        frozen=FROZEN if part == "decoder" else (),
        ema_decay=EMA,
    )
    copy = lambda tree: jax.tree.map(jnp.array, tree)  # noqa: E731  the step writes over its state
    state = step.create(copy(params), copy(discriminator[1]) if gan else None)
    return step, state, {"dropped": None if part.startswith("video") else 0, "gan": gan}


def clip_step(case: Case, dtype: str, **changed: Any) -> tuple:
    """`(step, state, batch)` of the training step on clips; `changed` are fields of the network."""
    import jax
    import numpy as np

    config = network(case, dtype)
    step, state, options = our_step(dataclasses.replace(config, **changed), draw_params(config), "video", None)
    batch = {"video": draw_video(case), "dropped": np.zeros(case.batch, np.int32)}
    return partial(step, **options), state, jax.device_put(batch)


RATE, KL, EMA, GAN, FROZEN = 1e-4, 1e-5, 0.999, 0.1, ("encoder", "pad")


def draw_discriminator(video) -> tuple:
    """Configuration and parameters of a discriminator for clips like `video`."""
    import jax
    import numpy as np

    from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig

    config = DiscriminatorConfig(width=16, levels=2) if video.shape[2] <= 64 else DiscriminatorConfig()
    shapes = jax.eval_shape(Discriminator(config).init, jax.random.key(0), np.zeros(video.shape, np.float32))["params"]
    return config, harness.random_like(shapes, seed=1)


def step_sides(config, params, video, part: str, settings: Settings) -> tuple[dict[str, Callable], float | None]:
    """The training step of a stage, by side, and the largest difference of the clips that both decode."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pv_vae_jax.models.vae import VAE
    from pv_vae_jax.pixels import to_float
    from pv_vae_jax.predictive import predict_filled

    groups = config.latent_frames(video.shape[1])
    dropped = np.arange(len(video), dtype=np.int32) % groups if part.startswith("video") else np.zeros(len(video), "i4")
    discriminator = draw_discriminator(video) if part.endswith("+gan") else None
    batch = {"video": jnp.asarray(video), "dropped": jnp.asarray(dropped)}

    def ours(config) -> Callable[[], None]:
        step, state, options = our_step(config, params, part, discriminator)
        return harness.in_turn(jax.jit(partial(step, **options), donate_argnums=0), state, batch)

    sides: dict[str, Callable] = {"ours": ours(config)}
    if settings.direct and part == "video" and jax.default_backend() == "cpu":
        sides["ours, direct conv3d"] = ours(dataclasses.replace(config, lowering="direct"))
    if settings.against == "none":
        return sides, None

    @jax.jit
    def decoded(params):
        model = VAE(config)
        prediction = predict_filled(model, params, to_float(batch["video"]), batch["dropped"], None)
        return model.apply({"params": params}, prediction.latents, method="decode")

    torch = harness.need("torch")
    from benchmarks.torch_vae import TorchStep

    device, expected, difference = harness.torch_device(), decoded(params), 0.0
    given = torch.tensor(video, device=device), torch.tensor(dropped, device=device)
    for name, layout in layouts(device).items():
        step = TorchStep(
            params,
            config,
            layout,
            device,
            RATE,
            KL,
            EMA,
            frozen=FROZEN if part == "decoder" else (),
            gan=GAN if discriminator else 0.0,
            discriminator=discriminator,
            bfloat16=config.dtype == "bfloat16",
        )
        with torch.no_grad(), step.autocast:
            found = step.model(step.to_float(given[0]), given[1], sample=False)[0]
        difference = max(difference, close_enough(expected, found.float().permute(0, 2, 3, 4, 1).cpu(), config.dtype))
        if device.type == "cuda":
            step.model.encoder.compile()
            step.model.decoder.compile()
            name = f"{name}, compiled"
        sides[name] = partial(step, *given)
    return sides, difference


def table(results: dict) -> str:
    """A row a case and part."""
    rows = []
    for size, parts in results.items():
        for part, r in parts.items():
            times = r["times"]
            others = [n for n in times if n.startswith("torch")]
            direct = times.get("ours, direct conv3d")
            rows.append(
                (
                    f"{size}, {r['parameters'] / 1e6:.3g} M",
                    part,
                    "x".join(map(str, r["clips"][:-1])),
                    harness.ms(times["ours"]["median_ms"]),
                    harness.ms(direct["median_ms"]) if direct else None,
                    "<br>".join(f"{n.removeprefix('torch, ')}: {harness.ms(times[n]['median_ms'])}" for n in others),
                    r["ratio"],
                )
            )
    head = ("network", "part", "clips", "ours", "ours, direct conv3d", "PyTorch", "ours / faster PyTorch")
    return harness.markdown(head, rows)
