"""The diffusion transformer against the same blocks in PyTorch: training step and sampling, cached and online latents.

Sides run in one process and take turns, from the same parameters; their velocities are compared before anything is
timed. A step draws a posterior sample, time and noise, drops labels, and updates with gradient clipping, AdamW and EMA.
`online` first encodes the clips with the VAE of `vae`. Sampling is Euler with guidance, decoder left out. PyTorch runs
eagerly on CPU and compiled on GPUs.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import harness

PARTS = ("train", "online", "sample")
SIZES = ("S", "B", "L", "XL")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    sizes: presets of `LatteConfig`, S to XL; empty is S on CPU and XL elsewhere.
    parts: of train, online, sample.
    against: torch, or none.
    batch: clips; 0 is 2 on CPU and 32 elsewhere.
    frames, side: of the clips; 17 x 256 x 256 are 1280 tokens.
    vae: whose latents they are: a preset of `VAEConfig`; empty is tiny on CPU and paper elsewhere.
    steps, guidance: of sampling.
    remat: what the backward pass keeps, see `layers.remat`.
    dtype: compute type; empty is float32 on CPU and bfloat16 elsewhere.
    rounds, seconds: of the turns, see `harness.take_turns`.
    """

    sizes: tuple[str, ...] = ("default",)
    parts: tuple[str, ...] = PARTS
    against: str = "torch"
    batch: int = 0
    frames: int = 17
    side: int = 256
    vae: str = ""
    steps: int = 10
    guidance: float = 1.5
    remat: str = "none"
    dtype: str = ""
    rounds: int = 9
    seconds: float = 40.0


def run(settings: Settings) -> dict:
    """Time every size and part."""
    import jax

    from pv_vae_jax.train.mfu import peak, utilisation

    on_cpu = jax.default_backend() == "cpu"
    filled = dict(
        batch=settings.batch or (2 if on_cpu else 32),
        vae=settings.vae or ("tiny" if on_cpu else "paper"),
        dtype=settings.dtype or ("float32" if on_cpu else "bfloat16"),
    )
    settings = dataclasses.replace(settings, **filled)
    default = "S" if on_cpu else "XL"
    sizes = (default,) if settings.sizes == ("default",) else harness.names(settings.sizes, SIZES, "size")
    results, aims = {}, []
    for size in sizes:
        bench = Bench(size, settings)
        results[size] = {}
        for part in harness.names(settings.parts, PARTS, "part"):
            found = results[size][part] = bench.time(part)
            most = 0.8 if on_cpu else None
            if part == "train" and found["ratio"] is not None and most:
                aims.append(harness.aim(f"DiT-{size} training step: ours / PyTorch", found["ratio"], most=most))
            device_peak = peak(jax.devices()[0].device_kind)
            if part == "train" and device_peak:
                seconds = found["times"]["ours"]["median_ms"] / 1e3
                found["mfu"] = round(utilisation(found["flops"], seconds, 1, device_peak), 4)
                aims.append(harness.aim(f"DiT-{size} training step: MFU", found["mfu"], least=0.5))
    return {"results": results, "aims": aims}


class Bench:
    """One size: networks of both sides with the same parameters, and a batch."""

    def __init__(self, size: str, settings: Settings):
        import jax
        import jax.numpy as jnp
        import numpy as np

        from pv_vae_jax.model import init_latte
        from pv_vae_jax.models.latte import Latte, LatteConfig
        from pv_vae_jax.models.vae import VAE, VAEConfig

        vae = getattr(VAEConfig, settings.vae)(dtype=settings.dtype, pad="learnable")
        side = settings.side // vae.space_factor
        self.settings, self.shape = settings, (vae.latent_frames(settings.frames), side, side, vae.latent_channels)
        kind = dict(latent_channels=vae.latent_channels, classes=101, dtype=settings.dtype, remat=settings.remat)
        self.config = getattr(LatteConfig, size.lower())(**kind)
        self.model, self.vae = Latte(self.config), VAE(vae)
        self.params = harness.random_like(jax.eval_shape(lambda: init_latte(self.model, self.shape)))
        rng = np.random.default_rng(1)
        draw = lambda: rng.standard_normal((settings.batch, *self.shape), np.float32)  # noqa: E731
        self.mean, self.logvar, self.noise = draw(), 0.1 * draw() - 3, draw()
        self.label = np.arange(settings.batch, dtype=np.int32) % 101
        self.clip_shape = (settings.batch, settings.frames, settings.side, settings.side, 3)
        if "online" in harness.names(settings.parts, PARTS, "part"):
            small = jnp.zeros((1, 1 + vae.time_factor, vae.space_factor, vae.space_factor, 3))
            shapes = jax.eval_shape(self.vae.init, jax.random.key(0), small)["params"]
            self.vae_params = harness.random_like(shapes)
            self.video = rng.integers(0, 256, self.clip_shape, dtype=np.uint8)

    def time(self, part: str) -> dict:
        """Both sides in turns."""
        import jax

        sides: dict[str, Callable] = {}
        sides["ours"], flops = self.ours(part)
        difference = None
        if self.settings.against != "none":
            name, sides_of_torch, difference = self.theirs(part)
            sides[name] = sides_of_torch
        times = harness.take_turns(sides, self.settings.rounds, seconds=self.settings.seconds)
        best = harness.fastest(times, "torch")
        return {
            "parameters": sum(p.size for p in jax.tree.leaves(self.params)),
            "clips": list(self.clip_shape),
            "latents": [self.settings.batch, *self.shape],
            "vae": self.settings.vae,
            "dtype": self.settings.dtype,
            "sampling_steps": self.settings.steps if part == "sample" else None,
            "flops": flops,
            "difference": difference,
            "times": times,
            "ratio": round(times["ours"]["median_ms"] / times[best]["median_ms"], 3) if best else None,
        }

    # Ours

    def ours(self, part: str) -> tuple[Callable[[], Any], float]:
        """The call to time, and the floating-point operations it takes."""
        import jax
        import jax.numpy as jnp

        from pv_vae_jax.flow import classifier_free_guidance, euler
        from pv_vae_jax.pixels import to_float
        from pv_vae_jax.train.mfu import model_flops, without_remat

        if part == "sample":
            s = self.settings

            @jax.jit
            def draw(params, noise, label):
                velocity = lambda x, t, label: self.model.apply({"params": params}, x, t, label)  # noqa: E731
                return euler(classifier_free_guidance(velocity, label, self.config.classes, s.guidance), noise, s.steps)

            given = jax.device_put((self.params, self.noise, self.label))
            return lambda: draw(*given).block_until_ready(), model_flops(draw, *given)

        step = self.our_step(self.config)
        held = [step.create(jax.tree.map(jnp.array, self.params))]
        batch = jax.device_put({"mean": self.mean, "logvar": self.logvar, "label": self.label})
        flops = model_flops(self.our_step(without_remat(self.config)), held[0], batch)
        program = jax.jit(step, donate_argnums=0)
        if part == "online":
            encode = jax.jit(lambda p, x: self.vae.apply({"params": p}, to_float(x), method="encode"))
            given = jax.device_put((self.vae_params, self.video))
            flops += model_flops(encode, *given)

        def once() -> None:
            latents = batch
            if part == "online":
                posterior = encode(*given)
                latents = batch | {"mean": posterior.mean, "logvar": posterior.logvar}
            held[0], logs = program(held[0], latents)
            float(logs["loss"])  # waits for the result, as `loss.item()` does

        return once, flops

    def our_step(self, config):
        """The `DiTStep` of a configuration."""
        import numpy as np

        from pv_vae_jax.models.latte import Latte
        from pv_vae_jax.train.dit_step import DiTStep
        from pv_vae_jax.train.optim import OptimizerConfig, optimizer

        rule = optimizer(OptimizerConfig(learning_rate=1e-4, warmup_steps=0, clip_norm=1.0), steps=1_000_000)
        unit = np.ones(self.shape[-1], np.float32)
        return DiTStep(Latte(config), rule, 0 * unit, unit)

    # PyTorch

    def theirs(self, part: str) -> tuple[str, Callable[[], Any], float]:
        """Name, the call to time, and the largest difference of the velocities."""
        torch = harness.need("torch")
        import jax
        import numpy as np

        from benchmarks.torch_latte import TorchLatte, TorchLatteStep, load_flax, sample
        from benchmarks.vae import close_enough

        device = harness.torch_device()
        bfloat16 = self.settings.dtype == "bfloat16"
        network = TorchLatte(self.config, self.shape)
        load_flax(network, self.params)
        put = partial(torch.tensor, device=device)
        step = TorchLatteStep(network, device, bfloat16, rate=1e-4, ema=0.9999)
        t = np.linspace(0.1, 0.9, self.settings.batch, dtype=np.float32)
        expected = jax.jit(self.model.apply)({"params": self.params}, self.noise, t, self.label)
        with torch.inference_mode(), step.autocast:
            found = network(put(self.noise), put(t), put(self.label)).float().cpu()
        difference = close_enough(expected, found, self.settings.dtype)
        name = "torch"
        if device.type == "cuda":
            network.compile()
            name = "torch, compiled"
        if part == "sample":
            given = put(self.noise), put(self.label), self.settings.steps, self.settings.guidance, step.autocast

            def draw():
                x = sample(network, *given)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                return x

            return name, draw, difference
        given = put(self.mean), put(self.logvar), put(self.label)
        if part == "train":
            return name, partial(step, *given), difference
        from benchmarks.torch_vae import TorchVAE, lay_out
        from benchmarks.torch_vae import load_flax as load_vae

        vae = TorchVAE(self.vae.config)
        load_vae(vae, self.vae_params)
        encoder = vae.encoder.to(device)
        lay_out(encoder, torch.channels_last_3d)
        if device.type == "cuda":
            encoder.compile()
        video = put(self.video)

        def online() -> float:
            with torch.inference_mode(), step.autocast:
                x = video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
                moments = encoder(x.contiguous(memory_format=torch.channels_last_3d)).float()
            mean, logvar = moments.clone().permute(0, 2, 3, 4, 1).chunk(2, dim=-1)
            return step(mean.contiguous(), logvar.contiguous().clamp(-30.0, 20.0), given[2])

        return name, online, difference


def cached_step(size: str, batch: int, dtype: str) -> tuple:
    """`(step, state, batch)` of a training step on cached latents of the paper-size VAE."""
    import jax
    import jax.numpy as jnp

    bench = Bench(size, Settings(parts=("train",), batch=batch, vae="paper", dtype=dtype))
    step = bench.our_step(bench.config)
    latents = jax.device_put({"mean": bench.mean, "logvar": bench.logvar, "label": bench.label})
    return step, step.create(jax.tree.map(jnp.array, bench.params)), latents


def table(results: dict) -> str:
    """A row a size and part."""
    rows = []
    for size, parts in results.items():
        for part, r in parts.items():
            ours = r["times"]["ours"]["median_ms"]
            other = next((n for n in r["times"] if n.startswith("torch")), None)
            what = {"train": "training step, cached", "online": f"training step, online ({r['vae']} VAE)"}.get(part)
            rows.append(
                (
                    f"{size}, {r['parameters'] / 1e6:.3g} M",
                    what or f"sampling, {r['sampling_steps']} steps, guided",
                    "x".join(map(str, r["latents"])),
                    harness.ms(ours),
                    harness.ms(r["times"][other]["median_ms"]) if other else None,
                    r["ratio"],
                    f"{r['flops'] / ours / 1e6:,.0f}",
                    f"{r['mfu']:.1%}" if "mfu" in r else None,
                )
            )
    head = ("network", "part", "latents", "ours", "PyTorch", "ours / PyTorch", "ours, GFLOP/s", "MFU")
    return harness.markdown(head, rows)
