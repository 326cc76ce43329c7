"""The files of a split of a data set, and how a plain folder of videos is listed."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from pathlib import Path
from typing import Literal

from pv_vae_jax.data.video_reading import SUFFIXES


class NoVideosError(ValueError):
    """A folder from which no clip can be read; the message says what was found and what is expected.

    Attributes:
      longest: number of frames of the longest video if all are too short for a clip, else 0.
    """

    def __init__(self, message: str, longest: int = 0):
        super().__init__(message)
        self.longest = longest


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """One video, or a part of one.

    Attributes:
      path: path of the file.
      name: name in manifests: the path below the data set's folder, or the official name of the part.
      label: index of its class.
      start, stop: first and last second of the part; by default all of the file.
    """

    path: Path
    name: str
    label: int = 0
    start: float = 0.0
    stop: float = float("inf")


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """A split of a data set.

    Attributes:
      dataset: name of the data set.
      class_names: class names in label order, the same for all splits.
      items: files on disk.
      absent: name -> expected path, for files that the official lists name and that are missing.
      kind: what the items are: video files, image files, or examples of a TensorFlow dataset.
    """

    dataset: str
    class_names: tuple[str, ...]
    items: tuple[VideoEntry, ...]
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    kind: Literal["video", "image", "tfds"] = "video"


def video_folder(folder: str | Path, split: str) -> SplitIndex:
    """Video files below a folder; its sub-folders are classes, its own name is the only class if there are none.

    A folder whose only sub-folders are `train` and `test` is already split. Otherwise about a tenth of each class,
    chosen by the hash of the file's name, is held out for testing: adding files does not move others between splits,
    unless the class was so small that none of its files fell into that tenth.

    Raises:
      NoVideosError: the folder does not exist, holds videos beside its class folders, or has sub-folders that are
        splits (such as `train` and `val`) and not classes.
    """
    folder = Path(folder)
    check_folder(folder)
    below = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    fixed = below == ["test", "train"]
    splits = [name for name in below if name in ("test", "train", "val", "valid", "validation")]
    if len(splits) > 1 and not fixed:
        others = [name for name in below if name not in splits]
        beside = f" beside {', '.join(others[:5])}" if others else ""
        raise NoVideosError(
            f"{folder} holds {', '.join(splits)}{beside}, which are splits, not classes. If it is Kinetics-400, its "
            f"lists are missing: they are expected at {folder / 'annotations' / 'train.csv'} and val.csv; images are "
            "expected in train/CLASS/ and val/CLASS/. In any other folder the held-out part is called test, and "
            "train and test are its only sub-folders"
        )
    base = folder / split if fixed else folder
    # Classes are those of the training split, so that both splits number them alike.
    training = folder / "train" if fixed else folder
    roots = sorted(p for p in training.iterdir() if p.is_dir() and not _holds(p, training))
    classes = [p.name for p in roots if not p.name.startswith(".") and (fixed or videos_below(p))]
    if classes:
        stray = videos_in(base)
        if fixed and base.is_dir():
            stray += [v for p in base.iterdir() if p.is_dir() and p.name not in classes for v in videos_below(p)]
        if stray:
            raise NoVideosError(
                f"{stray[0]} belongs to no class, and {len(stray) - 1} more: expected every video in a folder named "
                f"after its class, here {', '.join(classes[:5])}; move or remove them"
            )
    folders = {name: base / name for name in classes} or {folder.name: base}
    items = []
    for label, below in enumerate(folders.values()):
        paths = videos_below(below) if below.is_dir() else []
        paths = paths if fixed else _hold_out(paths, folder, split)
        items += [VideoEntry(path, path.relative_to(folder).as_posix(), label) for path in paths]
    return SplitIndex("folder", tuple(folders), tuple(items))


def check_folder(folder: Path) -> None:
    """Raise NoVideosError, with the nearest existing name, unless `folder` is a folder."""
    if folder.is_file():
        raise NoVideosError(f"{folder} is a file; data.source must be 'synthetic' or a folder of video files")
    if not folder.is_dir():
        near = difflib.get_close_matches(folder.name, [p.name for p in folder.parent.glob("*")], 1)
        hint = f"; did you mean {folder.parent / near[0]}?" if near else ""
        raise NoVideosError(f"no folder {folder}{hint} (data.source must be 'synthetic' or a folder of video files)")


def videos_below(folder: Path) -> list[Path]:
    """Files with the suffix of a video at any depth, sorted, without hidden files and folders.

    Links to folders are followed, each folder once, so that loops end. Not followed are links to folders within
    `folder`, whose files are found anyway, and to `folder` itself or above, which holds the files of other classes too.
    """
    top, seen, found = os.path.realpath(folder), set(), []
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # In place, as `os.walk` continues with these. Sorted, so that of two links to a folder always the same counts.
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(name for name in shown if not _leads_back(os.path.join(path, name), top))
        found += [Path(path, name) for name in files if not name.startswith(".")]
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and p.is_file())


def _leads_back(path: str, top: str) -> bool:
    """Whether `path` is a link to a folder within the real folder `top`, to `top` itself, or to a folder above it."""
    if not os.path.islink(path):
        return False
    real = os.path.realpath(path)
    return os.path.commonpath((real, top)) in (real, top)


def videos_in(folder: Path) -> list[Path]:
    """Those of `videos_below` that are directly in the folder."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in files if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith("."))


def _holds(path: Path, folder: Path) -> bool:
    """Whether `path` is a link to `folder` or above: its videos would be those of all classes."""
    return path.is_symlink() and folder.resolve().is_relative_to(path.resolve())


def summarize(skipped: dict, shown: int = 5) -> str:
    """The first entries of `name -> reason` on one line, for messages."""
    lines = [f"{getattr(path, 'name', path)}: {why}" for path, why in list(skipped.items())[:shown]]
    return "; ".join(lines) + (f"; and {len(skipped) - shown} more" if len(skipped) > shown else "")


def _hold_out(paths: list[Path], folder: Path, split: str) -> list[Path]:
    """The files of a class that belong to `split`. The only file of a class is for training."""
    rank = {p: hashlib.sha256(os.fsencode(p.relative_to(folder).as_posix())).digest() for p in paths}
    test = {p for p in paths if rank[p][0] < 26}  # 26 of 256: about a tenth
    if len(paths) > 1 and not test:
        test = {min(paths, key=rank.__getitem__)}
    if len(test) == len(paths):
        test -= {max(paths, key=rank.__getitem__)} if paths else set()
    return [p for p in paths if (p in test) == (split == "test")]
