"""Truncated against filled dropping: the encoder work that is saved when withheld frames are not encoded.

The filled form encodes all frames and overwrites the latents of the last `k` groups; the truncated form encodes only
what is seen, one program for each `k`. Training draws `k` uniformly from 0 to all later groups (r = 1), so the mean
over `k` is what a step costs. FLOPs say what could be saved, times what is.
"""

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

    case, config, params = chosen(settings)
    sides = programs(case, config, params, settings.ratio)
    times = harness.take_turns({n: s for n, (s, _) in sides.items()}, settings.rounds, seconds=settings.seconds)
    counts = count({name: flops for name, (_, flops) in sides.items()}, case, config, params)
    mean_ms = statistics.mean(t["median_ms"] for name, t in times.items() if name != "filled")
    results = counts | {
        "size": settings.size or ("demo" if jax.default_backend() == "cpu" else "base"),
        "clips": [case.batch, case.frames, case.side, case.side, 3],
        "times": times,
        "time_ratio": round(mean_ms / times["filled"]["median_ms"], 3),
    }
    what = "truncated / filled step: time, over what FLOPs allow"
    return {"results": results, "aims": [harness.aim(what, results["time_ratio"] / results["flops_ratio"], most=1.1)]}


def chosen(settings: Settings) -> tuple:
    """Case, configuration and parameters."""
    import jax

    from benchmarks import vae

    on_cpu = jax.default_backend() == "cpu"
    case = vae.find_case(settings.size or ("demo" if on_cpu else "base"), settings)
    config = vae.network(case, "float32" if on_cpu else "bfloat16")
    return case, config, vae.draw_params(config)


def programs(case, config, params, ratio: float) -> dict:
    """The call to time, and its FLOPs, of the filled form and of every `k` that training draws."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import vae
    from pv_vae_jax.dropping import max_dropped
    from pv_vae_jax.train.mfu import model_flops

    groups = config.latent_frames(case.frames)
    video = jnp.zeros((case.batch, case.frames, case.side, case.side, 3), jnp.uint8)
    batch = {"video": video, "dropped": jnp.asarray(np.arange(case.batch) % groups, jnp.int32)}

    def side(dropped: int | None):
        step, state, options = vae.our_step(config, params, "video", None)
        call = partial(step, **(options | {"dropped": dropped}))
        return harness.in_turn(jax.jit(call, donate_argnums=0), state, batch), model_flops(call, state, batch)

    drawn = range(max_dropped(groups, ratio) + 1)
    return {"filled": side(None)} | {f"k = {k}": side(k) for k in drawn}


def count(flops: dict, case, config, params) -> dict:
    """What the FLOPs of the programs say: the mean over `k` against the filled form, and against the encoder's."""
    import jax
    import jax.numpy as jnp

    from pv_vae_jax.models.vae import VAE
    from pv_vae_jax.train.mfu import model_flops

    video = jnp.zeros((case.batch, case.frames, case.side, case.side, 3))
    moments = lambda params: VAE(config).apply({"params": params}, video, method="encode").mean.sum()  # noqa: E731
    encoder = model_flops(jax.grad(moments), params)
    mean = statistics.mean(f for name, f in flops.items() if name != "filled")
    return {
        "gflop": {name: f / 1e9 for name, f in flops.items()},
        "encoder_gflop": encoder / 1e9,
        "encoder_share_saved": round((flops["filled"] - mean) / encoder, 3),
        "flops_ratio": round(mean / flops["filled"], 3),
    }


def table(results: dict) -> str:
    """A row a program, and the means."""
    filled = results["times"]["filled"]["median_ms"]
    rows = [
        (name, harness.ms(t["median_ms"]), f"{t['median_ms'] / filled:.3f}", f"{results['gflop'][name]:.4g}")
        for name, t in results["times"].items()
    ]
    rows.append(("mean over k", None, results["time_ratio"], f"{results['flops_ratio']} of filled"))
    share, work = results["encoder_share_saved"], results["encoder_gflop"]
    saved = f"The mean saves {share:.0%} of the encoder's {work:.4g} GFLOP."
    clips = "x".join(map(str, results["clips"][:-1]))
    head = (f"{results['size']}, {clips}", "step", "/ filled", "GFLOP")
    return f"{harness.markdown(head, rows)}\n\n{saved}"
