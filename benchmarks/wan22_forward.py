"""Encode and decode a clip with the full-width Wan2.2 VAE on CPU: ours against diffusers, with the same weights.

    python benchmarks/wan22_forward.py [--frames 17] [--size 256] [--rounds 1] [--threads 2]

needs Linux, PyTorch and diffusers. Random weights are written once in the diffusers layout (2.8 GB, to a temporary
folder); ours reads them through `pv_vae_jax.convert`. Each side is a process of its own, so that its peak memory is its
own; the two take turns (ours, diffusers, ours, ...) on the same cores, and the one that waits sleeps. Ours is compiled
before it is timed; the seconds of that, and those of loading, are printed apart. diffusers first runs a small clip to
warm up. Peak memory is that of the rounds, weights included, and not of loading. Outputs are compared. The aim is at
most 0.6 of diffusers' time for encode and decode together. Results go to `benchmarks/results/wan22_forward_cpu.json`.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # runs from a clone, installed or not

AIM = 0.6
TOLERANCE = 1e-4  # of outputs in [-1, 1]; 7e-6 was measured on a small clip at full width


def write_weights(path: Path) -> None:
    """Random weights of the full network, scaled so that activations stay of order one."""
    import numpy as np

    from pv_vae_jax.convert.files import write_tensors
    from pv_vae_jax.convert.wan import published_shapes
    from pv_vae_jax.models.sizes import SIZES

    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in published_shapes(SIZES["wan22"], "diffusers").items():
        draw = rng.standard_normal(shape, np.float32)
        scale = 0.1 if len(shape) == 1 or name.endswith("gamma") else float(np.prod(shape[1:])) ** -0.5
        tensors[name] = scale * draw + (1 if name.endswith("gamma") else 0)
    write_tensors(path, tensors)


class Ours:
    """Encode and decode, each compiled for the shape of the clip."""

    def __init__(self, weights: Path, clip):
        import jax

        from pv_vae_jax.convert.files import read_tensors
        from pv_vae_jax.convert.wan import from_wan
        from pv_vae_jax.models.sizes import SIZES
        from pv_vae_jax.models.vae import VAE

        start = time.perf_counter()
        model = VAE(SIZES["wan22"])
        self.params = jax.device_put(from_wan(read_tensors(weights), model.config))
        self.facts = {"load_s": round(time.perf_counter() - start, 1)}
        start = time.perf_counter()
        mean = lambda params, x: model.apply({"params": params}, x, method="encode").mean  # noqa: E731
        pixels = lambda params, z: model.apply({"params": params}, z, method="decode").clip(-1, 1)  # noqa: E731
        latents = jax.eval_shape(mean, self.params, clip)
        self.encoder = jax.jit(mean).lower(self.params, clip).compile()
        self.decoder = jax.jit(pixels).lower(self.params, latents).compile()
        self.facts["compile_s"] = round(time.perf_counter() - start, 1)
        for name, program in (("encode", self.encoder), ("decode", self.decoder)):
            self.facts[f"{name}_temporaries_gib"] = round(program.memory_analysis().temp_size_in_bytes / 2**30, 2)

    def encode(self, clip):
        return self.encoder(self.params, clip).block_until_ready()

    def decode(self, latents):
        return self.decoder(self.params, latents).block_until_ready()


class Diffusers:
    """`AutoencoderKLWan` as its users run it: without gradients, chunk by chunk."""

    def __init__(self, weights: Path, clip):
        import torch
        from diffusers import AutoencoderKLWan
        from safetensors.torch import load_file

        start = time.perf_counter()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.torch = torch
        self.model = AutoencoderKLWan(
            base_dim=160,
            decoder_base_dim=256,
            z_dim=48,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        ).eval()
        self.model.load_state_dict(load_file(weights), strict=True, assign=True)
        self.facts = {"load_s": round(time.perf_counter() - start, 1)}
        self.decode(self.encode(clip[:, :5, :32, :32]))

    def encode(self, clip):
        with self.torch.no_grad():
            x = self.torch.from_numpy(clip).permute(0, 4, 1, 2, 3).contiguous()
            return self.model.encode(x).latent_dist.mean.permute(0, 2, 3, 4, 1).numpy()

    def decode(self, latents):
        with self.torch.no_grad():
            z = self.torch.from_numpy(latents).permute(0, 4, 1, 2, 3).contiguous()
            return self.model.decode(z).sample.permute(0, 2, 3, 4, 1).numpy()


def make_clip(frames: int, size: int):
    """`(1, frames, size, size, 3)` in [-1, 1]."""
    import numpy as np

    return np.random.default_rng(1).uniform(-1, 1, (1, frames, size, size, 3)).astype(np.float32)


def work(side: str, weights: Path, frames: int, size: int) -> None:
    """Body of a side's process: a line in asks for a round, a line of JSON out answers; outputs go to a file."""
    import numpy as np

    clip = make_clip(frames, size)
    network = {"ours": Ours, "diffusers": Diffusers}[side](weights, clip)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    print(json.dumps(network.facts), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        latents = network.encode(clip)
        middle = time.perf_counter()
        video = network.decode(latents)
        end = time.perf_counter()
        np.savez(weights.with_name(f"{side}.npz"), latents=latents, video=video)
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
        print(json.dumps({"encode_s": middle - start, "decode_s": end - middle, "peak_gib": peak}), flush=True)


class Side:
    """A process that runs one side's rounds."""

    def __init__(self, side: str, weights: Path, args: argparse.Namespace):
        command = [sys.executable, __file__, "--side", side, "--weights", str(weights)]
        command += ["--frames", str(args.frames), "--size", str(args.size)]
        self.name, self.rounds = side, []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()
        print(f"{side}: {self.facts}", flush=True)

    def run(self) -> None:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer())
        last = self.rounds[-1]
        print(f"{self.name}: encode {last['encode_s']:.1f} s, decode {last['decode_s']:.1f} s", flush=True)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def result(self) -> dict:
        seconds = {k: statistics.median(r[k] for r in self.rounds) for k in ("encode_s", "decode_s")}
        total = statistics.median(r["encode_s"] + r["decode_s"] for r in self.rounds)
        rounded = {k: round(v, 3) for k, v in {**seconds, "total_s": total}.items()}
        return self.facts | rounded | {"peak_gib": round(self.rounds[-1]["peak_gib"], 2)}

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self.name} ended: its message is above")
        return json.loads(line)


def compare(folder: Path) -> dict[str, float]:
    """Largest differences of latents and pixels between the sides; exits where they are not the same network."""
    import numpy as np

    ours, theirs = (np.load(folder / f"{side}.npz") for side in ("ours", "diffusers"))
    differences = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ("latents", "video")}
    if max(differences.values()) > TOLERANCE:
        sys.exit(f"the sides disagree, so their times mean nothing: {differences}")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "wan22_forward_cpu.json")
    parser.add_argument("--side", choices=("ours", "diffusers"), help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        work(args.side, args.weights, args.frames, args.size)
        return 0

    from vae_step import pin

    pin(args.threads)  # the processes started below inherit the cores
    load = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        write_weights(weights)
        sides = [Side(name, weights, args) for name in ("ours", "diffusers")]
        try:
            for _ in range(args.rounds):
                for side in sides:
                    side.run()
        finally:
            for side in sides:
                side.close()
        differences = compare(Path(folder))

    import diffusers
    import jax
    import torch

    ours, theirs = (side.result() for side in sides)
    ratio = {k: round(ours[k] / theirs[k], 3) for k in ("encode_s", "decode_s", "total_s")}
    results = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {m.__name__: m.__version__ for m in (jax, torch, diffusers)}
        | {"python": platform.python_version()},
        "threads": args.threads,
        "load_before": load,
        "clip": [1, args.frames, args.size, args.size, 3],
        "rounds": args.rounds,
        "ours": ours,
        "diffusers": theirs,
        "ratio": ratio,
        "largest_difference": differences,
        "meets_aim": ratio["total_s"] <= AIM,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(partial, args.out)
    for name, side in (("ours", ours), ("diffusers", theirs)):
        times = f"encode {side['encode_s']:.1f} s, decode {side['decode_s']:.1f} s, together {side['total_s']:.1f} s"
        print(f"{name:<10} {times}, peak memory {side['peak_gib']:.1f} GiB")
    difference = max(differences.values())
    print(f"{ratio['total_s']:.2f} x diffusers (aim {AIM}); largest difference {difference:.1e}; written to {args.out}")
    return 0 if results["meets_aim"] else 1


if __name__ == "__main__":
    sys.exit(main())
