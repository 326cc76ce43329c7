"""Shards as tasks.

The files of a split are distributed over shards in an order drawn from their names, so that every shard holds all
kinds. A task makes one shard. It depends on its files and the settings alone, and is done when its JSON file exists and
the records have the size that the JSON file states. So tasks may run in processes of one machine (`local`), or on many
machines (`beam`), and write the same bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pv_vae_jax.data.listing import NoVideosError, SplitIndex, VideoEntry, content_key, summarize
from pv_vae_jax.data.prepare.encoding import ClipSettings, encode_clips
from pv_vae_jax.data.readers.records import FORMAT, pack
from pv_vae_jax.data.shards import write_shard
from pv_vae_jax.data.video_container import READING, BrokenVideoError, decoder_versions
from pv_vae_jax.locks import locked
from pv_vae_jax.storage import file_hash, write_json


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard: `items`, of a kind as in `SplitIndex`, become `<folder>/<index>.array_record` and `.json`."""

    folder: Path
    index: int
    items: tuple[VideoEntry, ...]
    settings: ClipSettings
    kind: Literal["video", "frames", "image", "tfds"] = "video"

    @property
    def path(self) -> Path:
        """The ArrayRecord file."""
        return self.folder / f"{self.index:05d}.array_record"

    @property
    def done(self) -> bool:
        """Whether the shard exists, with the size that was written."""
        try:
            size = json.loads(self.path.with_suffix(".json").read_text()).get("bytes")
            found = self.path.stat().st_size
        except (OSError, ValueError, AttributeError):
            return False
        return size is None or size == found


@contextlib.contextmanager
def lock_split(folder: Path) -> Iterator[None]:
    """Reserve the folder of a split, created if needed, for this process.

    Raises:
      BlockingIOError: another process is preparing this split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock"))
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{folder} is in use by another process that prepares it: wait for it, stop it, or use another --out"
            ) from error
        yield


def plan(listing: SplitIndex, folder: Path, settings: ClipSettings, *, files: int = 64) -> list[Task]:
    """Distribute a split over shards of about `files` source files, and write what they are made of to `key.json`.

    Raises:
      NoVideosError: the split has no files; the folder holds shards of other files or settings, which are named, or
        anything else; or the other split beside it has another data set or other settings.
    """
    if not listing.items:
        raise NoVideosError(f"{listing.dataset}: the split has no files to prepare; check the folder, or leave it out")
    if settings.fps and listing.kind in ("tfds", "frames"):
        raise NoVideosError(f"{listing.dataset} holds frames without times: leave fps at 0, which takes all of them")
    items = sorted(listing.items, key=lambda item: hashlib.sha256(os.fsencode(item.name)).digest())
    sizes = "\n".join(
        f"{item.name}\t{item.label}\t{item.start}\t{item.stop}\t"
        f"{None if listing.kind == 'tfds' else content_key(item.path)}"
        for item in items  # without their folder: a data set may move
    )
    key = {
        "format": FORMAT,
        "dataset": listing.dataset,
        "class_names": list(listing.class_names),
        "files": len(items),
        "files_hash": hashlib.sha256(os.fsencode(sizes)).hexdigest()[:16],  # names, parts, labels, sizes
        "files_per_shard": files,
        "settings": dataclasses.asdict(settings),
    } | ({} if listing.kind == "tfds" else {"reading": READING})
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "key.json").is_file():
        _check_key(folder / "key.json", key)
    else:
        _check_new(folder, key)
    write_json(folder / "key.json", key)
    shards = math.ceil(len(items) / files)
    return [Task(folder, i, tuple(items[i::shards]), settings, listing.kind) for i in range(shards)]


def unfinished(tasks: Sequence[Task]) -> list[Task]:
    """The tasks to run. JSON files of shards that were lost, and then the manifest, are removed."""
    left = [task for task in tasks if not task.done]
    for task in left:
        task.path.with_suffix(".json").unlink(missing_ok=True)
    if left:
        (left[0].folder / "manifest.json").unlink(missing_ok=True)
    return left


def run_task(task: Task, crashed: Sequence[str] = ()) -> int:
    """Make a shard, unless it exists, and return the number of its clips.

    Args:
      task: the shard.
      crashed: names of items that killed an earlier process, which are left out.

    Raises:
      OSError: a source file cannot be read at present, or the shard cannot be written. Then no shard is left behind.
    """
    if task.done:
        return 0
    lengths, names, labels, skipped = [], [], [], {}
    at_work = task.path.with_suffix(".at")  # names what was being decoded, if that kills the process

    def records() -> Iterator[bytes]:
        for item in task.items:
            if item.name in crashed:
                skipped[item.name] = "the decoder crashed"
                continue
            at_work.write_bytes(os.fsencode(item.name))  # a file's name need not be UTF-8
            try:
                clips = encode_clips(item, task.settings, task.kind)
            except BrokenVideoError as error:
                skipped[item.name] = str(error).removeprefix(f"{item.path}: ")
                continue
            except OSError as error:  # skipped now, the video would be missing for good
                raise OSError(
                    f"{item.path} cannot be read now ({error.strerror or error}). Nothing is lost: check that its disk "
                    "is connected, and run the same command again"
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
      NoVideosError: a shard is missing, or all are empty.
    """
    folder = tasks[0].folder
    shards, skipped = [], dict(listing.absent)
    for task in tasks:
        if not task.done:
            raise NoVideosError(f"{task.path} is missing: run the same command again")
        shard = json.loads(task.path.with_suffix(".json").read_text())
        skipped |= shard.pop("skipped")
        shards.append({k: shard[k] for k in ("name", "clips", "frames", "bytes", "sha256", "lengths")})
    clips = sum(shard["clips"] for shard in shards)
    if not clips:
        raise NoVideosError(f"none of {len(listing.items)} files gave a clip for {folder}: {summarize(skipped)}")
    key = json.loads((folder / "key.json").read_text())
    digest = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()[:16]
    manifest = {
        **key,
        "clips": clips,
        "frames": sum(shard["frames"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "hash": digest,
        "versions": decoder_versions(),
        "skipped": dict(sorted(skipped.items())),
        "shards": shards,
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def _flat(key: dict) -> dict:
    return {"reading": 1} | {name: value for name, value in key.items() if name != "settings"} | key.get("settings", {})


def _check_new(folder: Path, key: dict) -> None:
    """Raise NoVideosError if the folder of a new split is not empty, or does not match that of the other split."""
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if found:
        raise NoVideosError(
            f"{folder} holds {', '.join(found[:3])} but no key.json, so it was not prepared here: use another --out"
        )
    other = {"train": "test", "test": "train"}.get(folder.name)
    if other:  # otherwise a model could be scored on its training clips: folds of UCF101 share videos
        same = ("dataset", "class_names", "settings", "reading")
        same_key = {name: key[name] for name in same if name in key}
        _check_key(folder.parent / other / "key.json", same_key, only=same)


def _check_key(path: Path, key: dict, only: Sequence[str] = ()) -> None:
    """Raise NoVideosError unless the key file `path` equals `key`; if given, in the entries `only`."""
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text())
        found = _flat({name: value for name, value in found.items() if not only or name in only})
        key = _flat(key)
        names = sorted(name for name in found.keys() | key.keys() if found.get(name) != key.get(name))
    except (ValueError, AttributeError) as error:
        raise NoVideosError(f"{path} is damaged ({error}): remove {path.parent}") from error
    if names:
        changes = "; ".join(f"{name}: {found.get(name)!r}, now {key.get(name)!r}" for name in names)
        raise NoVideosError(f"{path.parent} was prepared differently ({changes}): remove it, or use another --out")
