"""Peak memory of encoding and decoding a clip, whole and chunk by chunk, as the clip gets longer.

    python benchmarks/streaming_memory.py [--frames 17 65 257] [--size 64] [--chunk 2]

Two measures for each length and way, taken in a process of its own:

* temporary memory that the compiled programs ask for, `memory_analysis()`: without what goes in and what comes out;
* resident memory of the process (Linux): before the programs run, once they are compiled, and its peak while they run.
  It holds the clip and the result, and what the compiler left behind.

The aim: from the shortest to the longest clip the temporary memory of chunks grows by a tenth at most. Chunks of two
latent frames cut 17 frames twice, so that the loop runs at every length; XLA resolves a loop of one turn, which then
needs a little less. What both ways return is compared first.
Results go to `benchmarks/results/streaming_memory.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a clone, installed or not

AIM = 1.1
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
    # Drawn by hand: the zero-initialised convolutions of a fresh network would hide differences.
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.standard_normal(p.shape, np.float32) / max(1, np.prod(p.shape[:-1])) ** 0.5), shapes
    )
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
    before = forget_peak()
    start = time.perf_counter()
    decoded = decoder(params, encoder(params, video)).block_until_ready()
    seconds = time.perf_counter() - start
    peak = resident("VmHWM")
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


def forget_peak() -> int:
    """Let the kernel forget the highest resident size of this process; return the present one in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(mark: str) -> int:
    """Resident bytes of this process: `VmRSS` now, `VmHWM` the highest since `forget_peak`."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(mark))
    return 1024 * int(line.split()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 65, 257])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=2, help="latent frames")
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process and print JSON")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "streaming_memory.json")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.frames[0], args.size, args.chunk)))
        return 0

    print(f"{'frames':>6}  {'way':<7} {'temporary MiB, encode':>22} {'decode':>8} {'resident MiB':>15} {'seconds':>8}")
    rows = []
    for frames in sorted(args.frames):
        checksums = []
        for way in WAYS:
            call = [sys.executable, __file__, "--way", way, "--frames", frames, "--size", args.size]
            call += ["--chunk", args.chunk]
            done = subprocess.run(list(map(str, call)), stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            checksums.append(row.pop("checksum"))
            temporary, held = row["temporary_mib"], row["resident_mib"]
            print(
                f"{frames:>6}  {way:<7} {temporary['encode']:>22.1f} {temporary['decode']:>8.1f} "
                f"{held['before']:>7.0f} to {held['peak']:>4.0f} {row['seconds']:>8.2f}",
                flush=True,
            )
            rows.append({"frames": frames, "way": way} | row)
        difference = max(abs(a - b) for a, b in zip(*checksums, strict=True))
        assert difference < 1e-5, f"the two ways differ by {difference:.1e} at {frames} frames"

    def growth(way: str, part: str) -> float:
        sizes = [row["temporary_mib"][part] for row in rows if row["way"] == way]
        return round(sizes[-1] / sizes[0], 3)

    import jax

    grown = {way: {part: growth(way, part) for part in ("encode", "decode")} for way in WAYS}
    met = max(grown["chunks"].values()) <= AIM
    results = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
        "model": MODEL,
        "size": args.size,
        "chunk": args.chunk,
        "rows": rows,
        "growth_of_temporary_memory": grown,
        "meets_aim": met,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(partial, args.out)
    print(f"temporary memory, {rows[-1]['frames']} against {rows[0]['frames']} frames: {grown}")
    print(f"written to {args.out}; aim of {AIM} {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
