"""The clips of a split of a data set, and how a plain folder of videos, or of folders of frames, is listed."""

import collections
import dataclasses
import difflib
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pv_vae_jax.data.video_container import SUFFIXES, BrokenVideoError

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")


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
      path: path of the file, or of the folder of its frames.
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
      kind: what the items are: video files, folders of frames, image files, or examples of a TensorFlow dataset.
      passed_over: suffix -> number of other files that a plain folder holds, in both splits, hidden ones left out;
        videos that cannot be reached count as `broken links`.
    """

    dataset: str
    class_names: tuple[str, ...]
    items: tuple[VideoEntry, ...]
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    kind: Literal["video", "frames", "image", "tfds"] = "video"
    passed_over: dict[str, int] = dataclasses.field(default_factory=dict)


def video_folder(folder: str | Path, split: str) -> SplitIndex:
    """Video files below a folder; its sub-folders are classes, its own name is the only class if there are none.

    A folder whose only sub-folders are `train` and `test` is already split. Otherwise about a tenth of each class,
    chosen by the hash of the file's name, is held out for testing: adding files does not move others between splits,
    unless the class was so small that none of its files fell into that tenth.

    Raises:
      NoVideosError: the folder does not exist, holds videos beside its class folders, has sub-folders that are splits
        (such as `train` and `val`) and not classes, or holds folders of frames as well.
    """
    return _plain_folder(Path(folder), split, "video")


def frame_folder(folder: str | Path, split: str) -> SplitIndex:
    """Folders of frames below a folder, with classes and splits as in `video_folder`: a clip is a folder, not a file.

    `CLIP/00000.jpg`, `CLASS/CLIP/00000.jpg`, or either of them in `train` and `test`.

    Raises:
      NoVideosError: as `video_folder`, if the folder holds video files as well, or if it is one split of Sky Timelapse.
    """
    folder = Path(folder)
    if folder.name in ("sky_train", "sky_test"):
        raise NoVideosError(
            f"{folder} is one split of Sky Timelapse, and its sub-folders are not classes: use {folder.parent}"
        )
    return _plain_folder(folder, split, "frames")


def _plain_folder(folder: Path, split: str, kind: Literal["video", "frames"]) -> SplitIndex:
    check_folder(folder)
    clips_below = functools.cache(videos_below if kind == "video" else frame_folders_below)
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
    passed = all_clips_below(folder).passed_over  # and two kinds of clips, or images that are no frames, are refused
    base = folder / split if fixed else folder
    # Classes are those of the training split, so that both splits number them alike.
    training = folder / "train" if fixed else folder
    # A folder of frames is itself a clip and not the class of one.
    classes = [
        p.name
        for p in _subfolders(training)
        if (fixed and kind == "video") or any(clip != p for clip in clips_below(p))
    ]
    if classes and base.is_dir():
        stray = videos_in(base) if kind == "video" else [f.path for f in [next(_walk(base))] if f.holds_frames]
        stray += [c for p in _subfolders(base) for c in clips_below(p) if c == p or p.name not in classes]
        if stray:
            what = "every video" if kind == "video" else "every folder of frames"
            raise NoVideosError(
                f"{stray[0]} belongs to no class, and {len(stray) - 1} more: expected {what} in a folder named "
                f"after its class, here {', '.join(classes[:5])}; move or remove them"
            )
    folders = {name: base / name for name in classes} or {folder.name: base}
    items = []
    for label, class_folder in enumerate(folders.values()):
        paths = clips_below(class_folder) if class_folder.is_dir() else []
        paths = paths if fixed else _hold_out(paths, folder, split)
        items += [VideoEntry(path, path.relative_to(folder).as_posix(), label) for path in paths]
    return SplitIndex("folder" if kind == "video" else kind, tuple(folders), tuple(items), {}, kind, passed)


def all_clips_below(folder: Path) -> SplitIndex:
    """The clips at any depth below a folder, in the order of their paths, without regard to classes and splits.

    Raises:
      NoVideosError: the folder holds video files and folders of frames, of which one kind would be lost, or images
        alone that are not numbered like frames.
    """
    found, reason = list(_walk(folder)), None
    videos, folders = _videos(found), sorted(f.path for f in found if f.holds_frames)
    frames = None  # the first folder that is a clip beyond doubt; thumbnails beside videos are none
    for path in folders:
        try:
            if len(list_frames(path)) > 1:
                frames = path
                break
        except BrokenVideoError as error:
            reason = reason or error
    if videos and frames:
        raise NoVideosError(
            f"{folder} holds video files ({videos[0]}) and folders of frames ({frames}), and only one kind can be "
            "read: move the other out of it"
        )
    if reason and not videos and not frames:
        raise NoVideosError(f"{folder} holds no video files, and its images are not the frames of clips: {reason}")
    paths, kind = (folders, "frames") if frames else (videos, "video")
    items = tuple(VideoEntry(path, path.relative_to(folder).as_posix()) for path in paths)
    passed = dict(collections.Counter(suffix for f in found for suffix in f.others).most_common())
    if broken := sum(len(f.videos) for f in found) - len(videos):
        passed = {"broken links": broken} | passed
    return SplitIndex("folder" if kind == "video" else kind, (folder.name,), items, {}, kind, passed)


def tell_passed_over(passed_over: dict[str, int]) -> str:
    """`4 other files passed over (3 .ogv, 1 without suffix)` for the `passed_over` of a `SplitIndex`; "" for none."""
    kinds = ", ".join(f"{n:,} {kind or 'without suffix'}" for kind, n in list(passed_over.items())[:5])
    return f"{sum(passed_over.values()):,} other files passed over ({kinds})" if passed_over else ""


def check_uncut(folder: Path, index: SplitIndex) -> None:
    """Raise NoVideosError if entries are parts of files, which are read only by `pv-vae prepare`."""
    if any(entry.start or entry.stop != float("inf") for entry in index.items):
        raise NoVideosError(
            f"{folder}: clips of {index.dataset} are parts of longer videos; cut them first with pv-vae prepare"
        )


def check_folder(folder: Path) -> None:
    """Raise NoVideosError, with the nearest existing name, unless `folder` is a folder."""
    if folder.is_file() and folder.suffix.lower() == ".zip":
        raise NoVideosError(f"{folder} is a ZIP archive: unzip it, and use the folder that it unpacks to")
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
    return _videos(_walk(folder))


def frame_folders_below(folder: Path) -> list[Path]:
    """Folders that hold the frames of a clip directly, `folder` included, sorted; links as in `videos_below`.

    Such a folder has images and no videos. A folder that has sub-folders as well counts only if an image is numbered,
    so that the cover of a class does not make the class a clip. Whether the names fit together, `list_frames` says.
    """
    return sorted(f.path for f in _walk(folder) if f.holds_frames)


class _Folder(NamedTuple):
    """What a folder holds directly: the names of its videos, frames or not, and the suffixes of all other files."""

    path: Path
    videos: list[str]
    holds_frames: bool
    others: list[str]


def _videos(found: Iterable[_Folder]) -> list[Path]:
    paths = (f.path / name for f in found for name in f.videos)
    return sorted(path for path in paths if path.is_file())


def _walk(folder: Path) -> Iterator[_Folder]:
    """`folder` and each folder below it."""
    top, seen = os.path.realpath(folder), set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # In place, as `os.walk` continues with these. Sorted, so that of two links to a folder always the same counts.
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(name for name in shown if not _leads_back(os.path.join(path, name), top))
        files = [name for name in files if not name.startswith(".")]
        videos = [name for name in files if name.lower().endswith(SUFFIXES)]
        images = [] if videos else [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
        frames = bool(images) and (not folders or any(map(_number, images)))
        taken = {*videos, *(images if frames else ())}
        yield _Folder(Path(path), videos, frames, [Path(name).suffix.lower() for name in files if name not in taken])


def _number(name: str) -> re.Match | None:
    """The three groups of a frame's name: what is before its number, the number, and the suffix."""
    return re.fullmatch(r"(.*?)([0-9]+)(\.[^.]*)", name, re.DOTALL)


def list_frames(folder: str | Path) -> list[str]:
    """Names of the frames that a folder holds directly, in the order of their numbers: `frame_2.png`, `frame_10.png`.

    Frames have one prefix, one suffix, and numbers of which at least every other one is there. They may also be every
    second, fifth or up to tenth frame of a video. Images that have nothing to do with each other, as in ImageNet's
    folders of classes, have larger gaps.

    Raises:
      BrokenVideoError: there are no images, or their names are not those of frames; the message gives the reason.
      OSError: the folder cannot be read.
    """
    with os.scandir(folder) as found:
        names = sorted(e.name for e in found if _is_image(e))
    if not names:
        raise BrokenVideoError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)})")
    frames, first = dict[int, str](), _number(names[0])
    for name in names:
        if not (match := _number(name)) or not first:
            raise BrokenVideoError(f"{folder}: {name} does not end in a number, as the names of frames do")
        if (match[1], match[3].lower()) != (first[1], first[3].lower()):
            raise BrokenVideoError(f"{folder}: {names[0]} and {name} differ in more than their numbers")
        if (number := int(match[2])) in frames:
            raise BrokenVideoError(f"{folder}: {frames[number]} and {name} have the same number")
        frames[number] = name
    numbers = sorted(frames)
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    if sum(steps) > 2 * min([*steps, 10]) * len(steps):
        raise BrokenVideoError(
            f"{folder}: {len(numbers)} images are numbered from {numbers[0]} to {numbers[-1]}, and frames have "
            "numbers without large gaps"
        )
    return [frames[number] for number in numbers]


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".") and entry.is_file()


def is_frames(folder: Path, below: set[str]) -> bool:
    """Whether the first folders with images below `folder` are folders of frames; images alone are in train and val."""
    if "val" in below:
        return False
    first = (f.path for f in _walk(folder) if f.holds_frames)
    try:
        lengths = [len(list_frames(path)) for path in itertools.islice(first, 5)]
    except BrokenVideoError:
        return False
    return max(lengths, default=0) > 1


def content_key(path: Path) -> str:
    """What changes when a clip does, without reading it: size of a file, or hash of the names and sizes of frames."""
    if not path.is_dir():
        return str(path.stat().st_size)
    with os.scandir(path) as found:
        lines = sorted(f"{e.name}\t{e.stat().st_size}" for e in found if _is_image(e))
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16]


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


def _subfolders(folder: Path) -> list[Path]:
    """Sub-folders that may be classes: not hidden, and not links to `folder` or above, which holds all classes."""
    found = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [p for p in found if not (p.is_symlink() and folder.resolve().is_relative_to(p.resolve()))]


def summarize(skipped: dict, shown: int = 5) -> str:
    """The first entries of `name -> reason` on one line, for messages."""
    lines = [f"{getattr(path, 'name', path)}: {why}" for path, why in list(skipped.items())[:shown]]
    # Names need not be UTF-8, and a terminal takes nothing else.
    text = "; ".join(lines).encode("utf-8", "backslashreplace").decode()
    return text + (f"; and {len(skipped) - shown} more" if len(skipped) > shown else "")


def _hold_out(paths: list[Path], folder: Path, split: str) -> list[Path]:
    """The files of a class that belong to `split`. The only file of a class is for training."""
    rank = {p: hashlib.sha256(os.fsencode(p.relative_to(folder).as_posix())).digest() for p in paths}
    test = {p for p in paths if rank[p][0] < 26}  # 26 of 256: about a tenth
    if len(paths) > 1 and not test:
        test = {min(paths, key=rank.__getitem__)}
    if len(test) == len(paths):
        test -= {max(paths, key=rank.__getitem__)} if paths else set()
    return [p for p in paths if (p in test) == (split == "test")]
