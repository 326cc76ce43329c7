"""From any data set to ArrayRecord shards of short clips (`records`), in parallel, to be taken up again at any moment.

The files of a split are dealt to shards in an order drawn from their names, so that every shard holds all kinds. A
shard is a task of its own: it depends on its files and the settings alone, and is done when its JSON is there and its
records have the size that the JSON tells. So tasks may run in processes of one machine (`prepare_split`), or on many
(`beam`), with the same bytes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np

from pv_vae_jax.data import images, tfds_videos
from pv_vae_jax.data.listing import NoVideosError, SplitIndex, VideoEntry, summarize
from pv_vae_jax.data.records import FORMAT, pack, read_manifest
from pv_vae_jax.data.shards import file_hash, remove_partial_shards, write_shard
from pv_vae_jax.data.tfds_videos import TFDS
from pv_vae_jax.data.video_files import BrokenVideoError, encode_video, iterate_at_rate, probe, resize
from pv_vae_jax.storage import locked, write_json


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """How videos become clips.

    Attributes:
      short_side: of the picture, even; smaller videos keep their size.
      fps: pictures per second; 0 keeps every frame of the source.
      frames: of a clip at most; a longer video is cut into several. 0 leaves it in one.
      min_frames: what is left at the end of a video is dropped if it is shorter.
      gop: frames from one key frame to the next: what reading from the middle costs.
      crf: quality of H.264, 0 lossless to 51.
    """

    short_side: int = 256
    fps: float = 0.0
    frames: int = 128
    min_frames: int = 17
    gop: int = 8
    crf: int = 18

    def __post_init__(self):
        if self.short_side < 2 or self.short_side % 2:
            raise ValueError(f"short_side is an even number of pixels, got {self.short_side}")
        if not 0 <= self.fps < math.inf:  # nan is not, either
            raise ValueError(f"fps is a finite number, at least 0 (which keeps every frame), got {self.fps}")
        if self.min_frames < 1 or self.gop < 1 or not 0 <= self.crf <= 51:
            raise ValueError(f"min_frames and gop are at least 1, crf within 0 to 51, got {self}")
        if self.frames and self.frames < self.min_frames:
            raise ValueError(f"clips of {self.frames} frames would all be shorter than min_frames, {self.min_frames}")


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard: `items` become `<folder>/<index>.array_record` and `.json`."""

    folder: Path
    index: int
    items: tuple[VideoEntry, ...]
    settings: ClipSettings
    reader: Literal["video", "image", "tfds"] = "video"  # what the items are

    @property
    def path(self) -> Path:
        """The ArrayRecord file."""
        return self.folder / f"{self.index:05d}.array_record"

    @property
    def done(self) -> bool:
        """Whether the shard is there, with the size that was written."""
        try:
            size = json.loads(self.path.with_suffix(".json").read_text()).get("bytes")
            found = self.path.stat().st_size
        except (OSError, ValueError, AttributeError):
            return False
        return size is None or size == found


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep the folder of a split, made if it is missing, to this process.

    Raises:
      BlockingIOError: another process prepares it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock"))
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{folder} is in use by another process that prepares it: wait for it, stop it, or take another --out"
            ) from error
        yield


def plan(listing: SplitIndex, folder: Path, settings: ClipSettings, *, files: int = 64) -> list[Task]:
    """Deal a split to shards of about `files` source files, and write `key.json`: what the folder is made of.

    Raises:
      NoVideosError: there is no file, or the folder holds shards of others or with other settings, which are named, or
        something else; or the other split beside it is of another data set or settings.
    """
    if not listing.items:
        raise NoVideosError(f"{listing.dataset}: there is no file to prepare")
    if settings.fps and listing.dataset.startswith(TFDS):
        raise NoVideosError(f"{listing.dataset} holds frames without times: leave fps 0, which takes all of them")
    items = sorted(listing.items, key=lambda item: hashlib.sha256(os.fsencode(item.name)).digest())
    sizes = "\n".join(
        f"{item.name}\t{item.label}\t{item.start}\t{item.stop}\t"
        f"{None if item.path.is_dir() else item.path.stat().st_size}"
        for item in items  # not where they lie: a data set may move
    )
    key = {
        "format": FORMAT,
        "dataset": listing.dataset,
        "class_names": list(listing.class_names),
        "files": len(items),
        "files_hash": hashlib.sha256(os.fsencode(sizes)).hexdigest()[:16],  # names, parts, labels, sizes
        "files_per_shard": files,
        "settings": dataclasses.asdict(settings),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "key.json").is_file():
        _check_key(folder / "key.json", key)
    else:
        _check_new(folder, key)
    write_json(folder / "key.json", key)
    reader = "image" if listing.dataset == "ImageNet" else "tfds" if listing.dataset.startswith(TFDS) else "video"
    shards = math.ceil(len(items) / files)
    return [Task(folder, i, tuple(items[i::shards]), settings, reader) for i in range(shards)]


def unfinished(tasks: Sequence[Task]) -> list[Task]:
    """Tasks to run. What tells that they were done before, and of what bytes, is removed: their shards were lost."""
    left = [task for task in tasks if not task.done]
    for task in left:
        task.path.with_suffix(".json").unlink(missing_ok=True)
    if left:
        (left[0].folder / "manifest.json").unlink(missing_ok=True)
    return left


def run_task(task: Task, crashed: Sequence[str] = ()) -> int:
    """Make a shard, unless it is there; `crashed` names items that killed an earlier process. Returns its clips.

    Raises:
      OSError: a source file cannot be read now, or the shard cannot be written; then it is not there.
    """
    if task.done:
        return 0
    lengths, names, labels, skipped = [], [], [], {}
    at_work = task.path.with_suffix(".at")  # where a process that is killed by what it decodes was

    def records() -> Iterator[bytes]:
        for item in task.items:
            if item.name in crashed:
                skipped[item.name] = "the decoder crashed"
                continue
            at_work.write_bytes(os.fsencode(item.name))  # a file's name need not be UTF-8
            try:
                clips = _all_clips(item, task.settings, task.reader)
            except BrokenVideoError as error:
                skipped[item.name] = str(error).removeprefix(f"{item.path}: ")
                continue
            except OSError as error:  # says nothing about the video, which would be missing for good
                raise OSError(
                    f"{item.path} cannot be read now ({error.strerror or error}). Nothing is lost: see that its disk "
                    "is there, and run the same command again"
                ) from error
            for number, (video, length, label) in enumerate(clips):
                lengths.append(length)
                names.append(f"{item.name}#{number}")
                labels.append(label)
                yield pack(video, label)

    write_shard(task.path, records())
    write_json(
        task.path.with_suffix(".json"),
        {
            "name": task.path.name,
            "clips": len(lengths),
            "frames": sum(lengths),
            "bytes": task.path.stat().st_size,
            "sha256": file_hash(task.path),
            "lengths": lengths,
            "labels": labels,
            "names": names,
            "skipped": skipped,
        },
    )
    at_work.unlink(missing_ok=True)
    return len(lengths)


def finish(listing: SplitIndex, tasks: Sequence[Task]) -> dict:
    """Sum the shards up in `manifest.json` and return it.

    Raises:
      NoVideosError: a shard is missing, or there is no clip in any.
    """
    folder = tasks[0].folder
    shards, skipped = [], dict(listing.absent)
    for task in tasks:
        if not task.done:
            raise NoVideosError(f"{task.path} is not there: run the same command again")
        shard = json.loads(task.path.with_suffix(".json").read_text())
        skipped |= shard.pop("skipped")
        shards.append({k: shard[k] for k in ("name", "clips", "frames", "bytes", "sha256", "lengths")})
    clips = sum(shard["clips"] for shard in shards)
    if not clips:
        raise NoVideosError(f"no clip came out of {len(listing.items)} files of {folder}: {summarize(skipped)}")
    key = json.loads((folder / "key.json").read_text())
    digest = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()[:16]
    manifest = {
        **key,
        "clips": clips,
        "frames": sum(shard["frames"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "hash": digest,
        "skipped": dict(sorted(skipped.items())),
        "shards": shards,
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def prepare_split(
    listing: SplitIndex,
    folder: Path,
    settings: ClipSettings,
    *,
    files: int = 64,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Make all shards of a split with `workers` processes and return the manifest.

    A shard that is there already stays; one that was deleted or cut is made again. A file that crashes its process is
    found, named and left out. Workers end at once when this call does, or its process is killed.

    Raises:
      BlockingIOError: another process prepares this split.
      NoVideosError: as `plan` and `finish`.
      RuntimeError: processes die before they begin, as they do in a script without `if __name__ == "__main__":`.
    """
    with held(folder):
        remove_partial_shards(folder)
        tasks = plan(listing, folder, settings, files=files)
        pending = unfinished(tasks)
        if not pending:
            with contextlib.suppress(NoVideosError):  # it is not there, or damaged: then it is written below
                return read_manifest(folder)
        try:
            _run_all(pending, len(tasks), workers, progress)
        finally:
            remove_partial_shards(folder)  # of workers that a file or a signal ended
        return finish(listing, tasks)


def _run_all(tasks: Sequence[Task], total: int, workers: int, progress: Callable[[int, int], None]) -> None:
    """Run tasks in processes; those at work in a crash are tried alone, and the files that do it are left out."""
    pending = {task.index: task for task in tasks}
    crashed: dict[int, list[str]] = {}
    suspects: set[int] = set()
    while pending:
        # One at a time, so that a crash has one author; the others wait until all of these have run.
        alone = workers == 1 or bool(suspects)
        now = {i: pending[i] for i in suspects} or pending
        progress(total - len(pending), total)
        # Spawned: a fork would carry the locks of libraries that run threads.
        context = multiprocessing.get_context("spawn")
        listening, alive = context.Pipe(duplex=False)
        processes = concurrent.futures.ProcessPoolExecutor(
            1 if alone else workers, mp_context=context, initializer=_end_with, initargs=(listening,)
        )
        with listening, alive, processes as pool:
            try:
                with _ctrl_c_held():  # here processes start
                    started = {pool.submit(run_task, task, crashed.get(i, ())): i for i, task in now.items()}
                for future in concurrent.futures.as_completed(started):
                    future.result()
                    del pending[started[future]]
                    suspects.discard(started[future])
                    progress(total - len(pending), total)
            except BrokenProcessPool as error:
                pending = {i: task for i, task in pending.items() if not task.done}
                in_hand = {i: at for i, task in pending.items() if (at := task.path.with_suffix(".at")).is_file()}
                if alone and now.keys() & pending and not in_hand:  # no file is to blame, and it would go on forever
                    raise RuntimeError(
                        "worker processes die before they read a file: "
                        'a script that calls this keeps its own calls below if __name__ == "__main__":'
                    ) from error
                for i, at in in_hand.items():
                    if alone:  # then it is the one; with several at work, each is tried again alone
                        crashed.setdefault(i, []).append(os.fsdecode(at.read_bytes()))
                    at.unlink()
                # If none was at work, any of them shows whether processes begin at all.
                suspects = suspects & pending.keys() | in_hand.keys() or set(list(pending)[:1])
            except BaseException:
                alive.close()
                pool.shutdown(wait=True, cancel_futures=True)
                raise


@contextlib.contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Context in which Ctrl-C waits; processes started in it never see it, where the system has signal masks.

    It reaches every process of a terminal, but the first one decides; and others would each print where they were.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(listening: Connection) -> None:
    """In a worker: end as soon as the other end of the pipe is closed, which the system does for a killed process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # see _ctrl_c_held

    def wait() -> None:
        with contextlib.suppress(EOFError, OSError):
            listening.recv_bytes()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _all_clips(item: VideoEntry, settings: ClipSettings, reader: str) -> list[tuple[bytes, int, int]]:
    """All of `_clips`.

    Raises:
      BrokenVideoError: as `_clips`, of a file that the disk gives whole.
      OSError: the disk fails.
    """
    try:
        return list(_clips(item, settings, reader))
    except BrokenVideoError:
        # Decoders take a disk that fails for a damaged file. So it is read to its end, which raises what the disk says;
        # and if that was over already, the second try finds the video whole.
        if not item.path.is_dir():  # where the examples of a TensorFlow dataset lie
            with item.path.open("rb") as file:
                while file.read(1 << 20):
                    pass
        return list(_clips(item, settings, reader))


def _clips(item: VideoEntry, settings: ClipSettings, reader: str) -> Iterator[tuple[bytes, int, int]]:
    """`(encoded clip, frames, label)` of a video.

    Raises:
      BrokenVideoError: it cannot be read to its end, or is too short for a clip.
    """
    label, least = item.label, settings.min_frames
    if reader == "image":
        picture = images.read_image(item.path)
        if min(picture.shape[:2]) > settings.short_side:
            picture = images.read_image(item.path, short_side=settings.short_side)
        fps, pictures, least = 1.0, [picture], 1
    elif reader == "tfds":
        video, label = tfds_videos.read_item(item)
        fps, least = 25.0, 1 if len(video) == 1 else least  # a file has a rate, and nothing reads this one
        smaller = min(video.shape[1:3]) > settings.short_side
        pictures = (resize(picture, settings.short_side) if smaller else picture for picture in video)
    else:
        fps = settings.fps or probe(item.path).fps
        pictures = iterate_at_rate(
            item.path,
            fps=settings.fps or None,
            short_side=settings.short_side,
            start=item.start,
            stop=item.stop,
        )
    most, number = settings.frames or math.inf, 0
    held: list[np.ndarray] = []
    for picture in pictures:
        held.append(picture)
        if len(held) == most:
            yield _encode(held, fps, settings), len(held), label
            number, held = number + 1, []
    if len(held) >= least:
        yield _encode(held, fps, settings), len(held), label
        number += 1
    if not number:
        raise BrokenVideoError(f"{item.path}: {len(held)} frames, at least {least} make a clip")


def _encode(pictures: list[np.ndarray], fps: float, settings: ClipSettings) -> bytes:
    even = (picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2] for picture in pictures)
    if min(pictures[0].shape[:2]) < 2:
        raise BrokenVideoError(f"pictures of {pictures[0].shape[0]} x {pictures[0].shape[1]} pixels")
    return encode_video(even, fps=fps, gop=settings.gop, crf=settings.crf)


def _flat(key: dict) -> dict:
    return {name: value for name, value in key.items() if name != "settings"} | key.get("settings", {})


def _check_new(folder: Path, key: dict) -> None:
    """Raise NoVideosError if the folder of a new split holds anything, or does not go with the other split's."""
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if found:
        raise NoVideosError(
            f"{folder} holds {', '.join(found[:3])} and no key.json, so it was not made here: take another --out"
        )
    other = {"train": "test", "test": "train"}.get(folder.name)
    if other:  # a model would be scored on clips of its training, say: folds of UCF101 share videos
        same = ("dataset", "class_names", "settings")
        _check_key(folder.parent / other / "key.json", {name: key[name] for name in same}, only=same)


def _check_key(path: Path, key: dict, only: Sequence[str] = ()) -> None:
    """Raise NoVideosError unless the split of `path` was made as `key` says; `only` these of its entries, if given."""
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text())
        found = _flat({name: found.get(name, {}) for name in only or found})
        key = _flat(key)
        names = sorted(name for name in found.keys() | key.keys() if found.get(name) != key.get(name))
    except (ValueError, AttributeError) as error:
        raise NoVideosError(f"{path} is damaged ({error}): remove {path.parent}") from error
    if names:
        changes = "; ".join(f"{name}: {found.get(name)!r}, now {key.get(name)!r}" for name in names)
        raise NoVideosError(f"{path.parent} was prepared otherwise ({changes}): remove it, or take another --out")
