"""The latent cache: posteriors of clips in ArrayRecord shards, with a key of everything that decides their values.

A folder holds `key.json` (written first), `00000.array_record`, ... (written atomically) and `manifest.json` (written
last: without it the cache is unfinished). A record is a safetensors blob of `mean`, `logvar` and `label`. If clips are
encoded while they are trained on, the folder holds the key and the manifest only, for the statistics.
"""

import contextlib
import itertools
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pv_vae_jax.data.listing import summarize
from pv_vae_jax.data.shards import BrokenRecordError, Shards, write_shard
from pv_vae_jax.storage import write_json

SHARD = 256  # records per file
AGAIN = "pv-vae encode --workdir {} encodes missing and short files again"


class StaleLatentsError(ValueError):
    """A cache was made with another encoder or other clips. The message names the differences."""


def completed_records(folder: Path, key: dict) -> int:
    """Number of records of a cache before the first that is missing.

    Raises:
      StaleLatentsError: the folder holds a cache with another key.
    """
    if not (folder / "key.json").exists():
        return 0
    _check_key(folder, _read_json(folder / "key.json"), key)
    shards = itertools.takewhile(lambda i: (folder / f"{i:05d}.array_record").exists(), itertools.count())
    return SHARD * sum(1 for _ in shards)


def begin_cache(folder: Path, key: dict) -> None:
    """Create the folder of a cache and write its key.

    Raises:
      StaleLatentsError: the folder holds a cache with another key.
    """
    completed_records(folder, key)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "key.json", key)


def cache_shards(folder: Path, total: int) -> dict[Path, range]:
    """Files of a cache of `total` records -> indices of their records. They may be written in any order."""
    starts = range(0, total, SHARD)
    return {folder / f"{i:05d}.array_record": range(a, min(a + SHARD, total)) for i, a in enumerate(starts)}


def incomplete_shards(folder: Path, total: int) -> dict[Path, str]:
    """Files of a cache of `total` records that are missing, short, or not those of its manifest -> what is wrong."""
    shards, manifest = _open(folder, total), folder / "manifest.json"
    lost = shards.incomplete()
    marks = _read_json(manifest).get("first_records", ()) if manifest.exists() else ()  # earlier versions have none
    for (path, rows), mark in zip(cache_shards(folder, total).items(), marks, strict=False):
        with contextlib.suppress(BrokenRecordError):  # named when it is read
            if path not in lost and zlib.crc32(shards[rows.start]) != mark:
                lost[path] = "this file is another than was written here"
    return lost


def write_latents_shard(path: Path, records: Iterable[dict]) -> None:
    """Write one file of a cache atomically."""
    write_shard(path, (save({name: np.asarray(value) for name, value in item.items()}) for item in records))


def finish_cache(folder: Path, *, key: dict, total: int, class_names: tuple[str, ...]) -> None:
    """Write the manifest of a cache whose files are complete, with the statistics of their records."""
    shards = _open(folder, total)
    try:
        _write_manifest(folder, map(load, map(shards.__getitem__, range(total))), key, total, class_names)
    except BrokenRecordError as error:
        raise BrokenRecordError(f"{error}. Remove this file: the same command encodes it again") from error


def write_latents(
    folder: Path, records: Iterable[dict], *, key: dict, total: int, class_names: tuple[str, ...]
) -> None:
    """Write a cache, or the rest of one: all files behind `completed_records`, and the manifest.

    For records that are made one after the other in one process; several may each write files of `cache_shards`.

    Args:
      folder: folder of the cache.
      records: missing records in order: `mean`, `logvar` `(g, h, w, z)` float32 and `label`.
      key: everything that decides the numbers, as JSON.
      total: number of records of the complete cache.
      class_names: class names in label order.

    Raises:
      StaleLatentsError: the folder holds a cache with another key.
      ValueError: `records` ends early.
    """
    done = completed_records(folder, key)
    begin_cache(folder, key)
    records = iter(records)
    for path, rows in cache_shards(folder, total).items():
        if rows.start < done:
            continue
        items = list(itertools.islice(records, len(rows)))
        if len(items) < len(rows):
            raise ValueError(f"{folder}: expected {total} records, got {rows.start + len(items)}")
        write_latents_shard(path, items)
    finish_cache(folder, key=key, total=total, class_names=class_names)


def write_statistics(folder: Path, records: Iterable[dict], *, key: dict, class_names: tuple[str, ...]) -> None:
    """Write the key and manifest of a cache without its records, for clips that are encoded while they are trained on.

    Raises:
      StaleLatentsError: the folder holds a cache with another key.
    """
    begin_cache(folder, key)
    _write_manifest(folder, records, key, 0, class_names)


def read_manifest(folder: Path, key: dict | None = None) -> dict:
    """The manifest of a finished cache, with `statistics`: `(mean, std)`, each `(z,)` float32.

    Raises:
      FileNotFoundError: the folder holds no finished cache.
      StaleLatentsError: the cache has another key.
    """
    if not (folder / "manifest.json").exists():
        raise FileNotFoundError(
            f"no finished latent cache in {folder}: run pv-vae encode, or the stage latents of pv-vae train"
        )
    manifest = _read_json(folder / "manifest.json")
    if key is not None:
        _check_key(folder, manifest["key"], key)
    return manifest | {"statistics": tuple(np.asarray(manifest[name], np.float32) for name in ("mean", "std"))}


class LatentSource:
    """A finished cache as a random-access source. It was written whole, so nothing stands in for a lost record.

    Attributes:
      source, transforms: what batches are made of: itself, as it is.
      class_names: class names in label order.
      statistics: `(mean, std)` of samples of the posteriors over all records and positions, each `(z,)` float32.

    Raises:
      FileNotFoundError, StaleLatentsError: as `read_manifest`.
      BrokenRecordError: files are missing, short, or not those of the manifest; all are named.
    """

    transforms = ()

    def __init__(self, folder: Path, key: dict | None = None):
        manifest = read_manifest(folder, key)
        self.folder, self._length = folder, manifest["records"]
        self.class_names = tuple(manifest["class_names"])
        self.statistics = manifest["statistics"]
        if lost := incomplete_shards(folder, self._length):
            again = AGAIN.format(folder.parent)
            raise BrokenRecordError(f"{len(lost)} files of {folder} are incomplete ({summarize(lost)}): {again}")
        self._records = _open(folder, self._length)

    def __len__(self) -> int:
        return self._length

    @property
    def source(self) -> Self:
        """Itself."""
        return self

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(g, h, w, z)` of a clip's latents."""
        return self[0]["mean"].shape

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: `mean`, `logvar` `(g, h, w, z)` float32 and `label` int32.

        Raises:
          BrokenRecordError: it is damaged.
          ExhaustedError: the machine lacks threads, memory or open files.
        """
        try:
            return load(self._records[index])
        except (BrokenRecordError, SafetensorError) as error:
            again = AGAIN.format(self.folder.parent)
            raise BrokenRecordError(f"damaged latents ({error}): remove this file; {again}") from error


def _check_key(folder: Path, found: dict, expected: dict) -> None:
    expected = json.loads(json.dumps(expected))  # as `found` was: tuples are lists
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if names:
        changes = "; ".join(f"{name}: cached {found.get(name)!r}, now {expected.get(name)!r}" for name in names)
        raise StaleLatentsError(f"the latents in {folder} are stale ({changes}): remove the folder to encode again")


def _open(folder: Path, total: int) -> Shards:
    shards = cache_shards(folder, total)
    return Shards(list(shards), list(map(len, shards.values())))


def _write_manifest(folder: Path, records: Iterable[dict], key: dict, total: int, class_names: tuple[str, ...]) -> None:
    mean, std = (values.tolist() for values in channel_statistics(records))
    shards = _open(folder, total)
    marks = [zlib.crc32(shards[rows.start]) for rows in cache_shards(folder, total).values()]
    about = {"records": total, "key": key, "class_names": list(class_names), "mean": mean, "std": std}
    write_json(folder / "manifest.json", about | {"first_records": marks})


def channel_statistics(records: Iterable[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Channel mean and standard deviation of posterior samples: `Var[z] = Var[mean] + E[exp(logvar)]`, in float64."""
    count = 0
    first: Any = 0.0
    second: Any = 0.0
    for record in records:
        mean, variance = record["mean"].astype(np.float64), np.exp(record["logvar"].astype(np.float64))
        count += mean[..., 0].size
        first = first + mean.sum(axis=(0, 1, 2))
        second = second + (mean**2 + variance).sum(axis=(0, 1, 2))
    mean = first / count
    return mean, np.sqrt(np.maximum(second / count - mean**2, 1e-12))


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise StaleLatentsError(f"{path} is damaged ({error}): remove its folder to encode again") from error
