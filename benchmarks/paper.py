"""The paper's protocol: speed and memory of VAE inference and of training the transformer, beside its columns.

Batch 4 of 17 x 256 x 256, 50 calls to warm up, 100 timed. ISpeed and IMem are of encoding and decoding with the VAE of
paper size; TSpeed and TMem of a step of Latte-XL with the clips encoded as they come, as the paper's figures include
it. Speeds are calls a second; memory is the device's peak in GiB, and on CPU what the compiled programs ask for. The
paper does not name its GPU, so its columns are for orientation.
"""

import dataclasses
import time

from benchmarks import harness

IN_SET = False  # for an accelerator; `--all` on a CPU would not end


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    batch, frames, side: of the clips.
    warmup, timed: calls.
    vae, latte: presets of `VAEConfig` and `LatteConfig`.
    dtype: compute type of both networks.
    remat: of the transformer, see `layers.remat`.
    """

    batch: int = 4
    frames: int = 17
    side: int = 256
    warmup: int = 50
    timed: int = 100
    vae: str = "paper"
    latte: str = "XL"
    dtype: str = "bfloat16"
    remat: str = "none"


def run(settings: Settings) -> dict:
    """Inference first: the device's peak only ever grows, and training needs more."""
    import jax
    import jax.numpy as jnp

    from benchmarks import latte
    from pv_vae_jax.model import cast_kernels
    from pv_vae_jax.pixels import to_float
    from pv_vae_jax.report import paper_table

    kinds = dict(vae=settings.vae, dtype=settings.dtype, remat=settings.remat, against="none")
    shape = dict(batch=settings.batch, frames=settings.frames, side=settings.side)
    bench = latte.Bench(settings.latte, latte.Settings(parts=("online",), **kinds, **shape))
    vae, video = bench.vae, jax.device_put(bench.video)
    vae_params = jax.device_put(cast_kernels(bench.vae_params, settings.dtype))  # as `load(dtype=...)` holds them

    def reconstruct(params, video):
        latents = vae.apply({"params": params}, to_float(video), method="encode").mean
        return vae.apply({"params": params}, latents, method="decode")

    program = jax.jit(reconstruct).lower(vae_params, video).compile()
    inference = timed(lambda: program(vae_params, video).block_until_ready(), settings)
    inference["GiB"] = peak_gib(program)

    step = bench.our_step(bench.config)

    def online(state, params, video, label):
        posterior = vae.apply({"params": params}, to_float(video), method="encode")
        return step(state, {"mean": posterior.mean, "logvar": posterior.logvar, "label": label})

    state, label = step.create(jax.tree.map(jnp.array, bench.params)), jax.device_put(bench.label)
    program = jax.jit(online, donate_argnums=0).lower(state, vae_params, video, label).compile()
    training = timed(harness.in_turn(program, state, vae_params, video, label), settings)
    training["GiB"] = peak_gib(program)
    parameters = sum(p.size for p in jax.tree.leaves(vae_params))
    results = {
        "protocol": dataclasses.asdict(settings),
        "parameters_M": round(parameters / 1e6),
        "latent": vae.config.name,
        "inference": inference,
        "training": training,
    }
    calls = {"warmup": settings.warmup, "timed": settings.timed}  # memory does not depend on them
    if settings != Settings(**calls):  # another protocol: nothing to hold it against
        return {"results": results, "aims": []}
    row = paper_table()["cost"]["PV-VAE"]
    aims = [
        harness.aim("paper's protocol: IMem, GiB", inference["GiB"], most=row["inference, GiB"]),
        harness.aim("paper's protocol: TMem, GiB", training["GiB"], most=row["training, GiB"]),
    ]
    return {"results": results, "aims": aims}


def timed(call, settings: Settings) -> dict:
    """Calls a second after the warm-up."""
    for _ in range(settings.warmup):
        call()
    start = time.perf_counter()
    for _ in range(settings.timed):
        call()
    return {"per_second": round(settings.timed / (time.perf_counter() - start), 3)}


def peak_gib(program) -> float:
    """Peak of the device so far; where it keeps none (CPU), arguments, results and temporaries of the program."""
    import jax

    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is None:
        m = program.memory_analysis()
        peak = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
    return round(peak / 2**30, 2)


def table(results: dict) -> str:
    """Ours above the paper's rows."""
    from pv_vae_jax.report import paper_table

    p, inference, training = results["protocol"], results["inference"], results["training"]
    own = (f"ours: {p['vae']} VAE, Latte-{p['latte']}, {p['dtype']}", results["latent"], results["parameters_M"])
    rows = [(*own, inference["per_second"], inference["GiB"], training["per_second"], training["GiB"])]
    columns = ("latent", "VAE, M parameters", "inference, it/s", "inference, GiB", "training, it/s", "training, GiB")
    rows += [(f"paper: {name}", *(row[c] for c in columns)) for name, row in paper_table()["cost"].items()]
    protocol = f"Batch {p['batch']} of {p['frames']}x{p['side']}x{p['side']}, {p['warmup']} + {p['timed']} calls."
    head = ("VAE", "latents", "parameters, M", "ISpeed, it/s", "IMem, GiB", "TSpeed, it/s", "TMem, GiB")
    return f"{protocol}\n\n{harness.markdown(head, rows)}"
