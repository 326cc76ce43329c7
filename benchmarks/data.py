"""Frames a second and core that reach training, from files, records and cached latents, against plain decoding.

One process, one thread; the ways take turns and the median of the turns counts:

* `PyAV`: decode a file from start to end into one array of RGB frames by a plain loop: what reading costs at least;
* `read_video`: the same by our reader; the aim is within a tenth of PyAV's frames a second;
* `decord`: the same by decord, if it is installed;
* `files`, `records`: clips of 17 frames at random places, from files as they are and from what `pv-vae prepare` made of
  them; counted are the frames that are delivered;
* `records, PyAV`: windows of the same records at their full size by a plain loop that opens, seeks and decodes; the aim
  is that `records`, which resizes and crops as well, is within a tenth of it;
* `latents`: records of a latent cache, each standing for a clip of 17 frames.

Then, with records: the share of time for which a loop waits that takes `step` seconds a batch (the aim: below 2 %), and
the growth of resident memory over the last nine tenths of `batches` batches (the aim: none, below 1 %). Without
`videos`, moving textures are made at 256 px and 720p.
"""

import dataclasses
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks import harness
from pv_vae_jax.data import FrameSize, examples, open_source, train_batches
from pv_vae_jax.data.clips import ClipSource
from pv_vae_jax.data.latents import LatentSource, write_latents
from pv_vae_jax.data.listing import SplitIndex, VideoEntry, videos_below
from pv_vae_jax.data.prepare import ClipSettings, prepare_split
from pv_vae_jax.data.readers.records import unpack
from pv_vae_jax.data.readers.video_files import VideoFiles
from pv_vae_jax.data.transforms import clip_transforms
from pv_vae_jax.data.video_reading import read_video
from pv_vae_jax.data.video_writing import write_video

FRAMES = 17
TURNS = 5


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
    import av

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


def clips_of(source: ClipSource) -> Callable[[], int]:
    """Read one random clip after the other; each call returns its frames."""
    clips, numbers = examples(source, transforms_of(source), seed=0), itertools.count()
    return lambda: len(clips[next(numbers)]["video"])


def transforms_of(source: ClipSource, **more: float) -> tuple:
    """What training applies to clips of a source."""
    return clip_transforms(source.reader.size, source.frames, crop="random", **more)


def plain_records(records: ClipSource) -> Callable[[], int]:
    """Random windows of the records, decoded from memory to full pictures by a plain loop."""
    import av

    rng = np.random.default_rng(0)
    encoded = [unpack(record)[0] for record in records.reader.shards]

    def read() -> int:
        i = int(rng.integers(len(encoded)))
        start = int(rng.integers(records.reader.lengths[i] - FRAMES + 1))
        with av.open(io.BytesIO(encoded[i])) as container:
            stream = container.streams.video[0]
            stream.thread_type = "SLICE"
            gap = 1 / (stream.average_rate * stream.time_base)
            container.seek(round(start * gap), stream=stream)
            frames = (frame for frame in container.decode(stream) if round(frame.pts / gap) >= start)
            return len(np.stack([frame.to_ndarray(format="rgb24") for frame in itertools.islice(frames, FRAMES)]))

    return read


def records_of(latents: LatentSource) -> Callable[[], int]:
    """Read one random record after the other; each call returns the frames it stands for."""
    rng = np.random.default_rng(0)

    def read() -> int:
        latents[int(rng.integers(len(latents)))]
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


def latents_of(folder: Path, size: int) -> LatentSource:
    """A cache of t4s16c16 latents of clips."""
    rng, side = np.random.default_rng(0), size // 16
    shape = (1 + (FRAMES - 1) // 4, side, side, 16)
    items = ({"mean": rng.normal(size=shape).astype("f4"), "logvar": np.zeros(shape, "f4"), "label": np.int32(0)},)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_latents(folder, items * 300, key={}, total=300, class_names=("all",))
    return LatentSource(folder)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    seconds: of processor time for each way.
    batches: over which memory is watched.
    step, steps: seconds of the loop's step, and their number.
    batch_size, side: of the clips.
    videos: folder of videos instead of the textures.
    """

    seconds: float = 4.0
    batches: int = 10_000
    step: float = 0.15
    steps: int = 100
    batch_size: int = 4
    side: int = 128
    videos: str = ""


def run(settings: Settings) -> dict:
    """Read textures of two sizes, or `videos`."""
    rows, waiting = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        sizes = {"256 px": (256, 456), "720p": (720, 1280)}
        for name, shape in ({Path(settings.videos).name: None} if settings.videos else sizes).items():
            folder = Path(temporary) / name
            files = videos_below(Path(settings.videos)) if settings.videos else write_textures(folder / "train", *shape)
            listing = SplitIndex("folder", ("all",), tuple(VideoEntry(path, path.name) for path in files))
            prepare_split(listing, folder / "out" / "train", ClipSettings())
            clip = dict(frames=FRAMES, crop="random")
            records = open_source(folder / "out", size=settings.side, **clip)
            latents = latents_of(folder / "latents", settings.side)
            ways = {"PyAV": over(files, plain_pyav), "read_video": over(files, lambda path: len(read_video(path)))}
            if decord := decord_reader():
                ways["decord"] = over(files, decord)
            reader = VideoFiles(files[0].parent, "train", listing, size=FrameSize.of(settings.side))
            ways["files"] = clips_of(ClipSource(reader, frames=FRAMES))
            ways["records"] = clips_of(records)
            ways["records, PyAV"] = plain_records(records)
            ways["latents"] = records_of(latents)
            rows[name] = rates(ways, settings.seconds)
            print(f"{name}: frames/s and core: " + ", ".join(f"{k} {v:.0f}" for k, v in rows[name].items()), flush=True)
            waiting[name] = waiting_share(records, settings)
            print(f"{name}: a loop of {settings.step} s a step waits {waiting[name]:.1%} of the time", flush=True)
        # In a process of its own: what was measured before has left memory free that would be taken first.
        growth = harness.in_process(
            "data", "memory_growth", str(Path(temporary) / next(iter(rows)) / "out"), settings.batches
        )
    ratio = min(row["read_video"] / row["PyAV"] for row in rows.values())
    results = {
        "frames_per_second_and_core": rows,
        "share_of_time_waiting": waiting,
        "growth_of_memory": round(growth, 4),
        "step": settings.step,
        "batches": settings.batches,
    }
    aims = [
        harness.aim("frames a second of read_video / of a plain PyAV loop", ratio, least=0.9),
        harness.aim(
            "frames a second of records / of a plain PyAV loop over them",
            min(row["records"] / row["records, PyAV"] for row in rows.values()),
            least=0.9,
        ),
        harness.aim(f"share of time a {settings.step} s step waits for data", max(waiting.values()), most=0.02),
        harness.aim("growth of resident memory while reading", growth, most=0.01),
    ]
    return {"results": results, "aims": aims}


def write_textures(folder: Path, height: int, width: int) -> list[Path]:
    """Four files of moving textures."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i}.mp4" for i in range(4)]
    for i, path in enumerate(files):
        write_video(path, texture(96, height, width, i), fps=24, crf=20)
    return files


def waiting_share(records: ClipSource, settings: Settings) -> float:
    """Of the time of a loop whose device works for `step` seconds a batch and leaves the processor free."""
    stream = train_batches(records, transforms_of(records, flip=0.5), batch_size=settings.batch_size, seed=0)
    next(stream)
    waited, start = 0.0, time.perf_counter()
    for _ in range(settings.steps):
        fetch = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - fetch
        time.sleep(settings.step)
    share = waited / (time.perf_counter() - start)
    stream.close()
    return round(share, 4)


def memory_growth(folder: str, batches: int) -> float:
    """Of resident memory from a tenth of the batches of records to the last; clips are small, so that many pass."""
    records = open_source(folder, frames=5, size=32)
    stream, first = train_batches(records, transforms_of(records), batch_size=2, seed=0, threads=2), 0
    for number in range(batches):
        next(stream)
        if number + 1 == max(1, batches // 10):
            first = harness.resident()
    last = harness.resident()
    stream.close()
    return last / first - 1


def table(results: dict) -> str:
    """Frames a second and core, then waiting and memory."""
    rates = results["frames_per_second_and_core"]
    ways = list(dict.fromkeys(way for row in rates.values() for way in row))
    rows = [(size, *(f"{row[way]:,.0f}" if way in row else None for way in ways)) for size, row in rates.items()]
    waiting = ", ".join(f"{share:.1%} ({size})" for size, share in results["share_of_time_waiting"].items())
    more = f"A loop of {results['step']} s a step waits for records {waiting} of the time. Over {results['batches']:,} "
    more += f"batches resident memory grows by {results['growth_of_memory']:.1%}."
    return harness.markdown(("frames a second and core", *ways), rows) + "\n\n" + more
