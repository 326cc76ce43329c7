"""The paper's experiments once through: full-size networks, every stage for two steps, on small pictures, on a CPU.

  python -m benchmarks.rehearsal --workdir runs/rehearsal      # make rehearse

So that what a pod would run has run, from data to samples. One process a stage, one after the other; its time, its
peak memory and the disk that the folder takes are printed, and more memory than `LIMIT` is a failure. A training state
is removed once its stage is finished. Stopped, the same command goes on. Further flags, `--config.KEY=VALUE`, go to
every stage: with small networks it is a test.
"""

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LIMIT = 20e9  # bytes of memory
VAE_STAGES = ("image", "video", "decoder")
EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
# A CPU computes in float32; the networks are the papers' otherwise, and so are losses, optimisers and forms.
SETTINGS = {
    "data.source": "synthetic",
    "data.size": "32",
    "data.clips": "4",
    "data.test_clips": "2",
    "data.threads": "1",
    "vae.dtype": "float32",
    "latte.dtype": "float32",
    "mesh.fsdp": "1",  # and `data` is 1 in both
    "log_every": "1",
    "checkpoints_kept": "1",
}
SHORT = {"steps": "2", "batch_size": "1"}


@dataclasses.dataclass(frozen=True)
class Part:
    """A command of the rehearsal, and the folder with the training states that it leaves."""

    name: str
    command: tuple[str, ...]
    states: Path


def parts(workdir: Path, flags: Sequence[str] = ()) -> list[Part]:
    """The stages of both experiments in their order, and samples of what they trained."""
    vae = {f"{stage}.{key}": value for stage in VAE_STAGES for key, value in SHORT.items()}
    vae["video.objective.gan_start"] = "1"  # the first step is without a GAN, as in the long run
    latte = {"decoder.init_from": str(workdir / "paper_vae"), "decoder.batch_size": "1", "latents.clips": "2"}
    latte |= {"latents.batch_size": "1"} | {f"diffusion.{key}": value for key, value in SHORT.items()}
    found = []
    for experiment, stages, own in (
        ("paper_vae", VAE_STAGES, vae),
        ("paper_latte", ("decoder", "latents", "diffusion"), latte),
    ):
        settings = [f"--config.{key}={value}" for key, value in (SETTINGS | own).items()]
        folder, config = workdir / experiment, EXPERIMENTS / f"{experiment}.py"
        for stage in stages:
            train = ("train", f"--config={config}", f"--workdir={folder}", f"--stage={stage}", *settings, *flags)
            found.append(Part(f"{experiment} {stage}", train, folder / stage / "checkpoints"))
    draw = ("sample", f"--model={workdir / 'paper_latte'}", "--clips=1", "--steps=2", f"--out={workdir / 'samples'}")
    return [*found, Part("samples", draw, workdir / "samples" / "checkpoints")]


def measured(command: Sequence[str]) -> tuple[int, float, int]:
    """Run a command: its exit status, seconds, and peak memory in bytes (at least this process's, which is small)."""
    began, process = time.monotonic(), subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return process.returncode, time.monotonic() - began, usage.ru_maxrss * unit


def rehearse(planned: Sequence[Part], workdir: Path, program: Sequence[str]) -> int:
    """Run all parts; the exit status of the first that fails, 1 if one took more memory than `LIMIT`."""
    memory, disk = 0, 0
    for part in planned:
        status, seconds, peak = measured([*program, *part.command])
        if status:
            print(f"{part.name}: failed with exit status {status}", file=sys.stderr)
            return status
        held = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
        memory, disk = max(memory, peak), max(disk, held)
        shutil.rmtree(part.states, ignore_errors=True)
        print(f"{part.name}: {seconds:.0f} s, memory {peak / 1e9:.1f} GB, disk {held / 1e9:.1f} GB", flush=True)
    print(f"rehearsed: memory {memory / 1e9:.1f} GB of at most {LIMIT / 1e9:.0f}, disk {disk / 1e9:.1f} GB")
    return int(memory > LIMIT)


def main(argv: Sequence[str]) -> int:
    """Parse the flags and rehearse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/rehearsal"))
    arguments, flags = parser.parse_known_args(argv)
    if wrong := [flag for flag in flags if not flag.startswith("--config.")]:
        parser.error(f"expected --workdir and --config.KEY=VALUE, got {wrong[0]}")
    workdir = arguments.workdir.resolve()
    return rehearse(parts(workdir, flags), workdir, [sys.executable, "-m", "pv_vae_jax"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
