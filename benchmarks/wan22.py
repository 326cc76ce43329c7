"""Encode and decode a clip with the full-width Wan2.2 VAE: ours against diffusers' AutoencoderKLWan, same weights.

Random weights are written once in the diffusers layout (2.8 GB, to a temporary folder); ours reads them through
`pv_vae_jax.convert`. Each side is a process of its own, so that its peak memory is its own; they take turns on the same
cores, and the one that waits sleeps. Ours is compiled before it is timed; the seconds of that, and those of loading,
are kept apart. diffusers first runs a small clip to warm up, or with `compiled` the clip itself. Peak memory is that of
the rounds, weights included, and not of loading; on GPUs it is the device's. Outputs are compared.
"""

import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import harness

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.3}  # of outputs in [-1, 1]; 7e-6 was measured on a small clip at full width
WIDTHS = {"full": {}, "test": dict(encoder_widths=(8, 16, 16, 16), decoder_widths=(8, 16, 16, 16))}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    frames, side, batch: of the clips.
    rounds: timed encodings and decodings of each side.
    dtype: compute type; empty is float32 on CPU and bfloat16 elsewhere.
    compiled: time `torch.compile`d diffusers, instead of eager, as the other side.
    against: diffusers, or none.
    widths: full, or test.
    """

    frames: int = 17
    side: int = 256
    batch: int = 1
    rounds: int = 1
    dtype: str = ""
    compiled: bool = False
    against: str = "diffusers"
    widths: str = "full"


def network(widths: str):
    """The `VAEConfig` of Wan2.2, or of a narrow one."""
    from pv_vae_jax.models.vae import VAEConfig

    return VAEConfig.wan22(**WIDTHS[widths])


def write_weights(path: Path, widths: str) -> None:
    """Random weights of the network, scaled so that activations stay of order one."""
    import numpy as np

    from pv_vae_jax.convert.files import write_tensors
    from pv_vae_jax.convert.wan import published_shapes

    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in published_shapes(network(widths), "diffusers").items():
        draw = rng.standard_normal(shape, np.float32)
        scale = 0.1 if len(shape) == 1 or name.endswith("gamma") else float(np.prod(shape[1:])) ** -0.5
        tensors[name] = scale * draw + (1 if name.endswith("gamma") else 0)
    write_tensors(path, tensors)


class Ours:
    """Encode and decode, each compiled for the shape of the clip."""

    def __init__(self, weights: Path, clip, dtype: str, settings: Settings):
        import jax

        from pv_vae_jax.convert.files import read_tensors
        from pv_vae_jax.convert.wan import from_wan
        from pv_vae_jax.models.vae import VAE

        start = time.perf_counter()
        model = VAE(dataclasses.replace(network(settings.widths), dtype=dtype))
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
        self.place = jax.device_put
        if jax.default_backend() != "cpu":  # where the first call is slow out of proportion
            self.decode(self.encode(clip))

    def encode(self, clip):
        return self.encoder(self.params, clip).block_until_ready()

    def decode(self, latents):
        return self.decoder(self.params, latents).block_until_ready()

    def device_peak(self) -> int | None:
        import jax

        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class Diffusers:
    """`AutoencoderKLWan` as its users run it: without gradients, chunk by chunk."""

    def __init__(self, weights: Path, clip, dtype: str, settings: Settings):
        torch = harness.need("torch")
        diffusers = harness.need("diffusers")
        from safetensors.torch import load_file

        start = time.perf_counter()
        config = network(settings.widths)
        self.torch, self.device = torch, harness.torch_device()
        self.dtype = getattr(torch, dtype)
        self.model = diffusers.AutoencoderKLWan(
            base_dim=config.encoder_widths[0],
            decoder_base_dim=config.decoder_widths[0],
            dim_mult=[w // config.encoder_widths[0] for w in config.encoder_widths],
            z_dim=48,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        ).eval()
        self.model.load_state_dict(load_file(weights), strict=True, assign=True)
        self.model.to(self.device, self.dtype)
        if settings.compiled:
            self.model.encoder.compile()
            self.model.decoder.compile()
        self.facts = {"load_s": round(time.perf_counter() - start, 1)}
        start = time.perf_counter()
        small = clip if settings.compiled or self.device.type == "cuda" else clip[:, :5, :32, :32]
        self.decode(self.encode(self.place(small)))
        self.facts["warm_up_s"] = round(time.perf_counter() - start, 1)

    def place(self, clip):
        """Channels first and on the device: both sides are timed without the copy."""
        return self.torch.tensor(clip).permute(0, 4, 1, 2, 3).contiguous().to(self.device, self.dtype)

    def encode(self, clip):
        with self.torch.no_grad():
            return self._finish(self.model.encode(clip).latent_dist.mean)

    def decode(self, latents):
        with self.torch.no_grad():
            return self._finish(self.model.decode(latents).sample)

    def device_peak(self) -> int | None:
        return self.torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def _finish(self, x):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        return x


def last_axis(x):
    """To NumPy float32 `(b, t, h, w, c)`."""
    import numpy as np

    if hasattr(x, "permute"):  # of PyTorch
        x = x.float().permute(0, 2, 3, 4, 1).cpu().numpy()
    return np.asarray(x, np.float32)


def work(side: str, weights: str, dtype: str, settings: dict) -> None:
    """Body of a side's process: a line in asks for a round, a line of JSON out answers; outputs go to a file."""
    import numpy as np

    chosen = Settings(**settings)
    shape = (chosen.batch, chosen.frames, chosen.side, chosen.side, 3)
    clip = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    network = {"ours": Ours, "diffusers": Diffusers}[side](Path(weights), clip, dtype, chosen)
    placed = network.place(clip)
    gc.collect()
    harness.forget_peak()  # of loading
    print(json.dumps(network.facts), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        latents = network.encode(placed)
        middle = time.perf_counter()
        video = network.decode(latents)
        end = time.perf_counter()
        peak = network.device_peak() or harness.resident("VmHWM")
        np.savez(Path(weights).with_name(f"{side}.npz"), latents=last_axis(latents), video=last_axis(video))
        answer = {"encode_s": middle - start, "decode_s": end - middle, "peak_gib": peak / 2**30}
        print(json.dumps(answer), flush=True)


class Side:
    """A process that runs one side's rounds."""

    def __init__(self, side: str, weights: Path, dtype: str, settings: Settings):
        self.name, self.rounds = side, []
        command = harness.child_command("wan22", "work", side, str(weights), dtype, dataclasses.asdict(settings))
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, cwd=harness.HERE.parent, **pipes)
        self.facts = self._answer()
        print(f"{side}: {self.facts}", flush=True)

    def run(self) -> None:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer())
        last = self.rounds[-1]
        print(f"{self.name}: encode {last['encode_s']:.2f} s, decode {last['decode_s']:.2f} s", flush=True)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def result(self) -> dict:
        total = statistics.median(r["encode_s"] + r["decode_s"] for r in self.rounds)
        seconds = {k: statistics.median(r[k] for r in self.rounds) for k in ("encode_s", "decode_s")}
        rounded = {k: round(v, 3) for k, v in {**seconds, "total_s": total}.items()}
        return self.facts | rounded | {"peak_gib": round(self.rounds[-1]["peak_gib"], 2)}

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended: its message is above")
        return json.loads(line)


def compare(folder: Path, tolerance: float) -> dict[str, float]:
    """Largest differences of latents and pixels between the sides.

    Raises:
      RuntimeError: they are not the same network.
    """
    import numpy as np

    ours, theirs = (np.load(folder / f"{side}.npz") for side in ("ours", "diffusers"))
    differences = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ("latents", "video")}
    if not max(differences.values()) <= tolerance:
        raise RuntimeError(f"the sides disagree, so their times mean nothing: {differences}")
    return differences


def run(settings: Settings) -> dict:
    """Turns of the two processes."""
    platform = harness.in_process("harness", "device")["platform"]
    dtype = settings.dtype or ("float32" if platform == "cpu" else "bfloat16")
    chosen = ("ours", *harness.names((settings.against,), ("diffusers", "none"), "side"))
    if "diffusers" in chosen:
        harness.need("diffusers")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        write_weights(weights, settings.widths)
        sides = []
        try:
            for name in chosen:
                if name != "none":
                    sides.append(Side(name, weights, dtype, settings))
            for _ in range(settings.rounds):
                for side in sides:
                    side.run()
        finally:
            for side in sides:
                side.close()
        found = {side.name: side.result() for side in sides}
        difference = compare(Path(folder), TOLERANCE[dtype]) if len(sides) > 1 else None
    results = {
        "clip": [settings.batch, settings.frames, settings.side, settings.side, 3],
        "dtype": dtype,
        "compiled": settings.compiled,
        "rounds": settings.rounds,
        "largest_difference": difference,
        **found,
    }
    if len(sides) == 1:
        return {"results": results, "aims": []}
    ours, theirs = found["ours"], found["diffusers"]
    results["ratio"] = {k: round(ours[k] / theirs[k], 3) for k in ("encode_s", "decode_s", "total_s")}
    # The device's aim is in the other direction, 1.5 times as fast.
    most = 0.8 if platform == "cpu" else 1 / 1.5
    what = "Wan2.2 encode + decode: ours / diffusers" + (", compiled" if settings.compiled else "")
    aims = [harness.aim(what, results["ratio"]["total_s"], most=most)]
    if platform == "cpu":
        aims.append(
            harness.aim("Wan2.2, peak memory: ours / diffusers", ours["peak_gib"] / theirs["peak_gib"], most=1.2)
        )
    return {"results": results, "aims": aims}


def table(results: dict) -> str:
    """A row a side."""
    rows = []
    for side in ("ours", "diffusers"):
        if r := results.get(side):
            once = r.get("compile_s", r.get("warm_up_s"))
            rows.append((side, r["encode_s"], r["decode_s"], r["total_s"], r["peak_gib"], once))
    if ratio := results.get("ratio"):
        rows.append(("ours / diffusers", ratio["encode_s"], ratio["decode_s"], ratio["total_s"], None, None))
    head = ("", "encode, s", "decode, s", "together, s", "peak GiB", "compile or warm-up, s")
    kind = f"{'x'.join(map(str, results['clip'][:-1]))}, {results['dtype']}"
    kind += ", diffusers compiled" if results["compiled"] else ""
    return f"{kind}.\n\n{harness.markdown(head, rows)}"
