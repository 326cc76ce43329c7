"""Truncated against filled dropping: the encoder work that is saved when withheld frames are not encoded.

The filled form encodes all frames and overwrites the latents of the last `k` groups; the truncated form encodes only
what is seen, one program for each `k`. Training draws `k` uniformly from 0 to all later groups (r = 1), so the mean
over `k` is what a step costs. FLOPs say what could be saved, times what is.
"""

from __future__ import annotations

import dataclasses
import statistics
from functools import partial

from benchmarks import harness


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    size: a case of the bench `vae`; empty is demo on CPU and base elsewhere.
    batch, frames, side: of the clips; 0 is the size's own.
    ratio: `r`, the largest share of later groups withheld.
    rounds, seconds: of the turns, see `harness.take_turns`.
    """

    size: str = ""
    batch: int = 0
    frames: int = 0
    side: int = 0
    ratio: float = 1.0
    rounds: int = 9
    seconds: float = 60.0


def run(settings: Settings) -> dict:
    """Time the filled program and one for each `k`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import vae
    from pv_vae_jax.models.vae import VAE
    from pv_vae_jax.pixels import to_float
    from pv_vae_jax.predictive import max_dropped
    from pv_vae_jax.train.roofline import model_flops

    on_cpu = jax.default_backend() == "cpu"
    cases = vae.CPU_CASES if on_cpu else vae.GPU_CASES
    (size,) = harness.names((settings.size or ("demo" if on_cpu else "base"),), cases, "size")
    given = {f: getattr(settings, f) for f in ("batch", "frames", "side") if getattr(settings, f)}
    case = dataclasses.replace(cases[size], **given)
    config = vae.network(case, "float32" if on_cpu else "bfloat16")
    params = vae.draw_params(config)
    video = jnp.zeros((case.batch, case.frames, case.side, case.side, 3), jnp.uint8)
    dropped = jnp.asarray(np.arange(case.batch) % config.latent_frames(case.frames), jnp.int32)
    batch = {"video": video, "dropped": dropped}

    def side(options: dict):
        step, state, chosen = vae.our_step(config, params, "video", None)
        call, held = partial(step, **(chosen | options)), [state]
        program = jax.jit(call, donate_argnums=0)

        def once() -> None:
            held[0], logs = program(held[0], batch)
            float(logs["loss"])

        return once, model_flops(call, state, batch)

    most = max_dropped(config.latent_frames(case.frames), settings.ratio)
    sides = {"filled": side({"dropped": None})} | {f"k = {k}": side({"dropped": k}) for k in range(most + 1)}
    flops = {name: f for name, (_, f) in sides.items()}
    times = harness.take_turns({n: s for n, (s, _) in sides.items()}, settings.rounds, seconds=settings.seconds)

    def encoder(params):
        return VAE(config).apply({"params": params}, to_float(video), method="encode").mean.sum()

    encoder_flops = model_flops(jax.grad(encoder), params)
    truncated = [f"k = {k}" for k in range(most + 1)]
    mean_flops = statistics.mean(flops[name] for name in truncated)
    mean_ms = statistics.mean(times[name]["median_ms"] for name in truncated)
    results = {
        "size": size,
        "clips": list(video.shape),
        "times": times,
        "gflop": {name: round(f / 1e9, 3) for name, f in flops.items()},
        "encoder_gflop": round(encoder_flops / 1e9, 3),
        "encoder_share_saved": round((flops["filled"] - mean_flops) / encoder_flops, 3),
        "flops_ratio": round(mean_flops / flops["filled"], 3),
        "time_ratio": round(mean_ms / times["filled"]["median_ms"], 3),
    }
    what = "truncated / filled step: time, over what FLOPs allow"
    return {"results": results, "aims": [harness.aim(what, results["time_ratio"] / results["flops_ratio"], most=1.1)]}


def table(results: dict) -> str:
    """A row a program, and the means."""
    filled = results["times"]["filled"]["median_ms"]
    rows = [
        (name, harness.ms(t["median_ms"]), f"{t['median_ms'] / filled:.3f}", results["gflop"][name])
        for name, t in results["times"].items()
    ]
    rows.append(("mean over k", None, results["time_ratio"], f"{results['flops_ratio']} of filled"))
    saved = f"The mean saves {results['encoder_share_saved']:.0%} of the encoder's {results['encoder_gflop']} GFLOP."
    clips = "x".join(map(str, results["clips"][:-1]))
    head = (f"{results['size']}, {clips}", "step", "/ filled", "GFLOP")
    return f"{harness.markdown(head, rows)}\n\n{saved}"
