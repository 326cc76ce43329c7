"""Frames a second and core that reach training, from files, records and cached latents, against plain decoding.

    python benchmarks/data.py [--seconds 4] [--batches 10000] [--step 0.15] [--videos FOLDER]

One process, one thread; the ways take turns and the median of the turns counts:

* `PyAV`: decode a file from start to end into one array of RGB frames by a plain loop: what reading costs at least;
* `read_video`: the same by our reader; the aim is within a tenth of PyAV's frames a second;
* `decord`: the same by decord, if it is installed;
* `files`, `records`: clips of 17 frames at random places, from files as they are and from what `pv-vae prepare` made of
  them; counted are the frames that are delivered;
* `latents`: records of a latent cache, each standing for a clip of 17 frames.

Then, with records: the share of time for which a loop waits that takes `--step` seconds a batch (the aim: below 2 %),
and the growth of resident memory over the last nine tenths of `--batches` batches (the aim: none, below 1 %).
Without `--videos`, moving textures are made at 256 px and 720p. Results go to `benchmarks/results/data.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a clone, installed or not

import av  # noqa: E402
import numpy as np  # noqa: E402

from pv_vae_jax.data.latents import LatentSource, write_latents  # noqa: E402
from pv_vae_jax.data.listing import Item, Listing, videos_below  # noqa: E402
from pv_vae_jax.data.pipeline import train_batches  # noqa: E402
from pv_vae_jax.data.prepare import ClipSettings, prepare_split  # noqa: E402
from pv_vae_jax.data.records import RecordVideos  # noqa: E402
from pv_vae_jax.data.sources import FolderVideos  # noqa: E402
from pv_vae_jax.data.video_files import read_video, write_video  # noqa: E402

FRAMES = 17
TURNS = 5
AIMS = {"read_video_of_pyav": 0.9, "waiting": 0.02, "growth": 0.01}


def texture(frames: int, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """A large noisy picture that a window moves over: detail at all scales, and motion."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((height + 64, width + 64, 3))
    for scale in (64, 16, 4, 1):
        part = rng.normal(size=(canvas.shape[0] // scale + 1, canvas.shape[1] // scale + 1, 3)) * scale**0.5
        canvas += part.repeat(scale, 0).repeat(scale, 1)[: canvas.shape[0], : canvas.shape[1]]
    canvas = (127 + 12 * canvas).clip(0, 255).astype(np.uint8)
    for t in range(frames):
        y, x = int(32 + 31 * np.sin(0.05 * t)), int(32 + 31 * np.cos(0.07 * t))
        yield canvas[y : y + height, x : x + width]


def plain_pyav(path: Path) -> int:
    """Frames decoded into one RGB array."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "SLICE"
        return len(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))


def decord_reader() -> Callable[[Path], int] | None:
    """The same with decord, on one thread; None if it is not installed."""
    try:
        import decord
    except ImportError:
        return None

    def read(path: Path) -> int:
        reader = decord.VideoReader(str(path), num_threads=1)
        return len(reader.get_batch(range(len(reader))).asnumpy())

    return read


def clips_of(source) -> Callable[[], int]:
    """Read one random clip after the other; each call returns its frames."""
    rng = np.random.default_rng(0)

    def read() -> int:
        return len(source.clip(int(rng.integers(len(source))), rng)["video"])

    return read


def records_of(latents: LatentSource) -> Callable[[], int]:
    """Read one random record after the other; each call returns the frames it stands for."""
    rng = np.random.default_rng(0)

    def read() -> int:
        latents.record(int(rng.integers(len(latents))))
        return FRAMES

    return read


def over(files: list[Path], read: Callable[[Path], int]) -> Callable[[], int]:
    """Read one file after the other, round and round."""
    at = [0]

    def step() -> int:
        at[0] += 1
        return read(files[at[0] % len(files)])

    return step


def rates(ways: dict[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """Frames a second of processor time, the ways in turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, step in ways.items():
            start, frames = time.process_time(), 0
            while time.process_time() - start < seconds / TURNS or not frames:
                frames += step()
            if turn:  # the first fills caches of the system
                found[name].append(frames / (time.process_time() - start))
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def resident() -> int:
    """Resident bytes of this process (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def latents_of(folder: Path, size: int) -> LatentSource:
    """A cache of t4s16c16 latents of clips."""
    rng, side = np.random.default_rng(0), size // 16
    shape = (1 + (FRAMES - 1) // 4, side, side, 16)
    items = ({"mean": rng.normal(size=shape).astype("f4"), "logvar": np.zeros(shape, "f4"), "label": np.int32(0)},)
    write_latents(folder, items * 300, key={}, total=300, class_names=("all",))
    return LatentSource(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="processor time for each way")
    parser.add_argument("--batches", type=int, default=10_000, help="over which memory is watched")
    parser.add_argument("--step", type=float, default=0.15, help="seconds of the synthetic step")
    parser.add_argument("--steps", type=int, default=100, help="synthetic steps")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="side of the clips")
    parser.add_argument("--videos", type=Path, help="folder of videos instead of the textures")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "data.json")
    args = parser.parse_args()
    rows, waiting, growth = {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, height, width in (("256 px", 256, 456), ("720p", 720, 1280)):
            folder = Path(temporary) / name / "train"
            folder.mkdir(parents=True)
            if args.videos:
                name, files = args.videos.name, videos_below(args.videos)
            else:
                files = [folder / f"{i}.mp4" for i in range(4)]
                for i, path in enumerate(files):
                    write_video(path, texture(96, height, width, i), fps=24, crf=20)
            listing = Listing("folder", ("all",), tuple(Item(path, path.name) for path in files))
            prepare_split(listing, Path(temporary) / name / "out" / "train", ClipSettings())
            clip = dict(frames=FRAMES, size=args.size, crop="random")
            records = RecordVideos(Path(temporary) / name / "out", **clip)
            ways = {"PyAV": over(files, plain_pyav), "read_video": over(files, lambda path: len(read_video(path)))}
            if decord := decord_reader():
                ways["decord"] = over(files, decord)
            ways["files"] = clips_of(FolderVideos(folder, listing=listing, cache_bytes=0, **clip))
            ways["records"] = clips_of(records)
            latents = latents_of(Path(temporary) / name / "latents", args.size)
            ways["latents"] = lambda latents=latents: (
                FRAMES * (latents.record(time.perf_counter_ns() % 300) is not None)
            )
            rows[name] = rates(ways, args.seconds)
            print(f"{name}: frames/s and core: " + ", ".join(f"{k} {v:.0f}" for k, v in rows[name].items()), flush=True)

            stream = train_batches(records, batch_size=args.batch_size, seed=0, threads=2, flip=0.5)
            next(stream)
            waited, start = 0.0, time.perf_counter()
            for _ in range(args.steps):
                fetch = time.perf_counter()
                next(stream)
                waited += time.perf_counter() - fetch
                time.sleep(args.step)  # the device works, the processor is free
            waiting[name] = round(waited / (time.perf_counter() - start), 4)
            stream.close()
            print(f"{name}: a loop of {args.step} s a step waits for data {waiting[name]:.1%} of the time", flush=True)
            if args.videos:
                break
        size = 32  # small, so that many batches pass
        small = RecordVideos(Path(temporary) / next(iter(rows)) / "out", frames=5, size=size)
        stream, marks = train_batches(small, batch_size=2, seed=0, threads=2), {}
        for number in range(args.batches):
            next(stream)
            if number + 1 in (args.batches // 10, args.batches):
                marks[number + 1] = resident()
        stream.close()
        first, last = marks.values()
        growth = round(last / first - 1, 4)
        print(f"resident memory from batch {args.batches // 10} to {args.batches}: {first / 2**20:.1f} to "
              f"{last / 2**20:.1f} MiB")  # fmt: skip
    ratio = min(row["read_video"] / row["PyAV"] for row in rows.values())
    met = {
        "read_video_of_pyav": ratio >= AIMS["read_video_of_pyav"],
        "waiting": max(waiting.values()) <= AIMS["waiting"],
        "growth": growth <= AIMS["growth"],
    }
    results = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"av": av.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "out"},
        "frames_per_second_and_core": rows,
        "read_video_of_pyav": round(ratio, 3),
        "share_of_time_waiting": waiting,
        "growth_of_memory": growth,
        "aims": AIMS,
        "met": met,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(partial, args.out)
    print(f"written to {args.out}; aims met: {met}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
