"""Peak memory of encoding and decoding a clip, whole and chunk by chunk, as the clip gets longer.

Two measures for each length and way, taken in a process of its own:

* temporary memory that the compiled programs ask for, `memory_analysis()`: without what goes in and what comes out;
* resident memory of the process (Linux): before the programs run, once they are compiled, and its peak while they run.
  It holds the clip and the result, and what the compiler left behind.

Chunks of two latent frames cut 17 frames twice, so that the loop runs at every length; XLA resolves a loop of one turn,
which then needs a little less. What both ways return is compared first.
"""

import dataclasses
import time

from benchmarks import harness

WAYS = ("whole", "chunks")
# The model of the README: t4s16c16.
MODEL = dict(latent_channels=16, encoder_widths=(16, 16, 32, 32, 32), decoder_widths=(16, 16, 32, 32, 32))
MIB = 2**20


def measure(way: str, frames: int, size: int, chunk: int) -> dict:
    """Compile and run one way in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pv_vae_jax import VAE, VAEConfig, decode_chunks, encode_chunks

    model = VAE(VAEConfig(**MODEL))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, size, size, 3)))["params"]
    params = jax.device_put(harness.random_like(shapes))
    video = jnp.asarray(rng.uniform(-1, 1, (1, frames, size, size, 3)), jnp.float32)

    def encode(params, video):
        if way == "chunks":
            return encode_chunks(model, params, video, chunk).mean
        return model.apply({"params": params}, video, method="encode").mean

    def decode(params, latents):
        if way == "chunks":
            return decode_chunks(model, params, latents, chunk)
        return model.apply({"params": params}, latents, method="decode")

    encoder = jax.jit(encode).lower(params, video).compile()
    decoder = jax.jit(decode).lower(params, jax.eval_shape(encode, params, video)).compile()
    before = harness.forget_peak()
    start = time.perf_counter()
    decoded = decoder(params, encoder(params, video)).block_until_ready()
    seconds = time.perf_counter() - start
    peak = harness.resident("VmHWM")
    return {
        "temporary_mib": {
            "encode": round(encoder.memory_analysis().temp_size_in_bytes / MIB, 2),
            "decode": round(decoder.memory_analysis().temp_size_in_bytes / MIB, 2),
        },
        "clip_mib": round(video.nbytes / MIB, 2),
        "resident_mib": {"before": round(before / MIB, 1), "peak": round(peak / MIB, 1)},
        "seconds": round(seconds, 2),
        "checksum": np.abs(np.asarray(decoded, np.float64)).mean(axis=(0, 2, 3, 4)).tolist(),
    }


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    frames: lengths of the clip.
    side: of the picture.
    chunk: latent frames at a time.
    """

    frames: tuple[int, ...] = (17, 65, 257)
    side: int = 64
    chunk: int = 2


def run(settings: Settings) -> dict:
    """Measure every length and way; from the shortest to the longest clip, chunks may grow by a tenth."""
    rows = []
    for frames in sorted(settings.frames):
        checksums = []
        for way in WAYS:
            row = harness.in_process("streaming", "measure", way, frames, settings.side, settings.chunk)
            checksums.append(row.pop("checksum"))
            rows.append({"frames": frames, "way": way} | row)
            print(rows[-1], flush=True)
        difference = max(abs(a - b) for a, b in zip(*checksums, strict=True))
        if not difference < 1e-5:
            raise RuntimeError(f"the two ways differ by {difference:.1e} at {frames} frames")

    def growth(way: str, part: str) -> float:
        sizes = [row["temporary_mib"][part] for row in rows if row["way"] == way]
        return round(sizes[-1] / sizes[0], 3)

    grown = {way: {part: growth(way, part) for part in ("encode", "decode")} for way in WAYS}
    aim = harness.aim("temporary memory of chunks, longest / shortest clip", max(grown["chunks"].values()), most=1.1)
    return {"results": {"rows": rows, "growth_of_temporary_memory": grown}, "aims": [aim]}


def table(results: dict) -> str:
    """A row a length and way."""
    head = ("frames", "way", "temporary MiB: encode", "decode", "resident MiB: before", "peak", "seconds")
    rows = [
        (r["frames"], r["way"], *r["temporary_mib"].values(), *r["resident_mib"].values(), r["seconds"])
        for r in results["rows"]
    ]
    return harness.markdown(head, rows)
