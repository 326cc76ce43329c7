"""Published data sets in their official layouts: which files their lists name, and which of them are missing.

Nothing is downloaded. Each function takes the user's folder and a split, `train` or `test`, and returns a `SplitIndex`.
"""

import collections
import csv
import functools
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from pv_vae_jax.data.listing import (
    IMAGE_SUFFIXES,
    NoVideosError,
    SplitIndex,
    VideoEntry,
    frame_folders_below,
    summarize,
    videos_below,
    videos_in,
)
from pv_vae_jax.data.video_container import SUFFIXES

_SPLITS = ("train", "test")
_DAVIS_SIZES = ("480p", "Full-Resolution")


def ucf101(folder: str | Path, split: str, *, fold: int = 1) -> SplitIndex:
    """UCF101 (Soomro et al. 2012): `UCF-101/CLASS/v_CLASS_gXX_cYY.avi` and the lists of `ucfTrainTestlist/`.

    Videos may have been written anew with another suffix, such as `.mp4`.

    Args:
      folder: folder that holds both.
      split: `train` or `test`.
      fold: number of the official split, 1 to 3.

    Raises:
      NoVideosError: a list or all videos are missing, or a list is damaged.
    """
    folder, lists = Path(folder), Path(folder) / "ucfTrainTestlist"
    if fold not in (1, 2, 3):
        raise NoVideosError(f"UCF101 has the splits 1, 2 and 3, got {fold}: set data.fold to one of them")
    class_names = []
    for number, line in enumerate(_lines(lists / "classInd.txt", "UCF101"), 1):
        index, _, name = line.partition(" ")
        if index != str(number) or not name:
            raise NoVideosError(f"{lists / 'classInd.txt'}, line {number}: expected '{number} CLASS', got {line!r}")
        class_names.append(name)
    labels = {name: label for label, name in enumerate(class_names)}
    on_disk = set(videos_below(folder / "UCF-101"))
    stems = {path.with_suffix(""): path for path in sorted(on_disk, reverse=True)}
    wanted = []
    for line in _lines(lists / f"{split}list0{fold}.txt", "UCF101"):
        name = line.split(" ")[0]  # the training lists add the number of the class
        if name.split("/")[0] not in labels:
            raise NoVideosError(f"{lists / f'{split}list0{fold}.txt'}: the class of {line!r} is not in classInd.txt")
        path = folder / "UCF-101" / name
        path = path if path in on_disk else stems.get(path.with_suffix(""), path)
        wanted.append(VideoEntry(path, name, labels[name.split("/")[0]]))
    name = "UCF101" if fold == 1 else f"UCF101 split {fold}"  # as in the key of shards prepared from split 1
    return _present(name, class_names, wanted, "UCF101 keeps its videos in UCF-101/CLASS/v_CLASS_gXX_cYY.avi")


def kinetics400(folder: str | Path, split: str) -> SplitIndex:
    """Kinetics-400 (Kay et al. 2017): `annotations/{train,val}.csv` and `{train,val}/.../YOUTUBEID_START_END.mp4`.

    The videos are directly in the split's folder, as the archives unpack, or in sub-folders of classes. Many are no
    longer on the web; the missing ones are listed in `absent`. `test` is the official validation split, as in most
    papers: the test split was published without labels.

    Raises:
      NoVideosError: a list or all videos are missing, or a list is damaged.
    """
    folder, name = Path(folder), {"train": "train", "test": "val"}[split]
    rows = {n: _kinetics_rows(folder / "annotations" / f"{n}.csv") for n in {"train", name}}
    class_names = sorted({row["label"] for row in rows["train"]})
    labels = {label: i for i, label in enumerate(class_names)}
    on_disk = {path.stem: path for path in videos_below(folder / name)} if (folder / name).is_dir() else {}
    wanted = []
    for row in rows[name]:
        stem = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        if row["label"] not in labels:
            raise NoVideosError(f"{folder}/annotations/{name}.csv: class {row['label']!r} is not in train.csv")
        wanted.append(
            VideoEntry(on_disk.get(stem, folder / name / f"{stem}.mp4"), f"{name}/{stem}", labels[row["label"]])
        )
    where = f"Kinetics-400 keeps its videos in {name}/YOUTUBEID_START_END.mp4 or {name}/CLASS/YOUTUBEID_START_END.mp4"
    return _present("Kinetics-400", class_names, wanted, where)


def realestate10k(folder: str | Path, split: str) -> SplitIndex:
    """RealEstate10K (Zhou et al. 2018): `{train,test}/SEQUENCE.txt` camera files and `videos/YOUTUBEID.*`.

    The data set consists of camera files, each of which names a part of a YouTube video by the times of its frames. The
    user provides the complete videos in `videos/`. `read_cameras` reads a camera file.

    Raises:
      NoVideosError: camera files or all videos are missing.
    """
    folder = Path(folder)
    files = sorted((folder / split).glob("*.txt"))
    if not files:
        raise NoVideosError(
            f"{folder / split} holds no camera files: RealEstate10K.tar.gz unpacks to {split}/SEQUENCE.txt (if the "
            f"videos are not from RealEstate10K, use their own folder, {folder / 'videos'})"
        )
    on_disk = {path.stem: path for path in videos_below(folder / "videos")}
    wanted, broken = [], {}
    for path in files:
        try:
            url, times, _, _ = read_cameras(path)
        except NoVideosError as error:
            broken[f"{split}/{path.stem}"] = str(error)
            continue
        # `watch?v=ID&t=4s`, `youtu.be/ID?t=3`, `embed/ID#start`: without what is not `v`, the identity comes last.
        identity = re.split(r"[=/]", re.sub(r"[?&#](?!v=)[^?&#]*", "", url).rstrip("/"))[-1]
        video = on_disk.get(identity, folder / "videos" / f"{identity}.mp4")
        # The last frame is part of the sequence; one more millisecond keeps rounding from losing it.
        wanted.append(VideoEntry(video, f"{split}/{path.stem}", 0, times[0] / 1e6, times[-1] / 1e6 + 1e-3))
    where = "put complete YouTube videos into videos/YOUTUBEID.mp4"
    listing = _present("RealEstate10K", ["real estate"], wanted, where)
    return SplitIndex(listing.dataset, listing.class_names, listing.items, listing.absent | broken)


def read_cameras(path: str | Path) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """A camera file of RealEstate10K.

    Returns:
      `(url, times, intrinsics, poses)`: times `(t,)` int64 in microseconds; intrinsics `(t, 4)`, focal lengths and
      principal point as fractions of width and height: `fx, fy, cx, cy`; poses `(t, 3, 4)`, world to camera.

    Raises:
      NoVideosError: the file is damaged.
    """
    try:
        url, *rows = Path(path).read_text(encoding="utf-8-sig").strip().splitlines()
        table = np.asarray([[float(x) for x in row.split()] for row in rows if row.strip()], np.float64)
        if table.ndim != 2 or table.shape[1] != 19:
            raise ValueError("expected rows of 19 numbers: time, fx, fy, cx, cy, two zeros, a 3 x 4 matrix")
        if not np.isfinite(table).all() or (np.diff(table[:, 0]) < 0).any():
            raise ValueError("expected rising times and finite numbers")
    except (ValueError, UnicodeDecodeError) as error:
        raise NoVideosError(f"{path} is not a camera file of RealEstate10K: {error}") from error
    return url.strip(), table[:, 0].astype(np.int64), table[:, 1:5], table[:, 7:].reshape(-1, 3, 4)


def imagenet(folder: str | Path, split: str) -> SplitIndex:
    """Images in `{train,val}/CLASS/`, as ImageNet's archives are usually unpacked; `test` is `val`.

    Raises:
      NoVideosError: a folder is missing, or holds no images.
    """
    folder = Path(folder)
    name = {"train": "train", "test": "val"}[split]
    for part in {"train", name}:
        if not (folder / part).is_dir():
            raise NoVideosError(f"{folder} has no folder {part}: images are expected in train/CLASS/ and val/CLASS/")
    class_names = sorted(p.name for p in (folder / "train").iterdir() if p.is_dir() and not p.name.startswith("."))
    flat = [p.name for p in (folder / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    if flat and not any((folder / name / c).is_dir() for c in class_names):
        raise NoVideosError(
            f"{folder / name} holds {len(flat)} images directly: sort them into CLASS/ like those of train"
        )
    found = [(p, label) for label, c in enumerate(class_names) for p in sorted((folder / name / c).glob("[!.]*"))]
    found = [(path, path.suffix.lower(), label) for path, label in found if path.is_file()]
    passed = dict(collections.Counter(suffix for _, suffix, _ in found if suffix not in IMAGE_SUFFIXES).most_common())
    items = [
        VideoEntry(path, path.relative_to(folder).as_posix(), label)
        for path, suffix, label in found
        if suffix in IMAGE_SUFFIXES
    ]
    if not items:
        raise NoVideosError(f"{folder / name} holds no images ({', '.join(IMAGE_SUFFIXES)}) in sub-folders of classes")
    return SplitIndex("ImageNet", tuple(class_names), tuple(items), kind="image", passed_over=passed)


def davis(folder: str | Path, split: str) -> SplitIndex:
    """DAVIS (Pont-Tuset et al. 2017): `JPEGImages/480p/CLIP/00000.jpg` and the lists of `ImageSets/2017/`.

    The lists of 2016 are read if there are none of 2017, and `Full-Resolution` if there is no `480p`. `test` is the
    official validation split, since the test splits were published without annotations.

    Raises:
      NoVideosError: a list or all clips are missing.
    """
    folder = Path(folder)
    year = next((y for y in ("2017", "2016") if (folder / "ImageSets" / y).is_dir()), "2017")
    size = next((s for s in _DAVIS_SIZES if (folder / "JPEGImages" / s).is_dir()), _DAVIS_SIZES[0])
    lists = {"train": "train.txt", "test": "val.txt"}
    names = _lines(folder / "ImageSets" / year / lists[split], "DAVIS")
    wanted = [VideoEntry(folder / "JPEGImages" / size / n, f"JPEGImages/{size}/{n}") for n in names]
    where = f"DAVIS keeps its clips in JPEGImages/{size}/CLIP/00000.jpg"
    return _present(f"DAVIS {year} {size}", ["DAVIS"], wanted, where, kind="frames")


def sky_timelapse(folder: str | Path, split: str) -> SplitIndex:
    """Sky Timelapse (Xiong et al. 2018): frames in `sky_train/VIDEO/CLIP/` and `sky_test/VIDEO/CLIP/`, one class.

    Raises:
      NoVideosError: the folder of the split is missing, or holds no frames.
    """
    folder = Path(folder)
    paths = frame_folders_below(folder / f"sky_{split}")
    if not paths:
        raise NoVideosError(
            f"{folder / f'sky_{split}'} is missing or holds no images: Sky Timelapse unpacks to sky_train/VIDEO/CLIP/ "
            "and sky_test/VIDEO/CLIP/, with the frames of a clip in each"
        )
    items = tuple(VideoEntry(path, path.relative_to(folder).as_posix()) for path in paths)
    return SplitIndex("Sky Timelapse", ("sky",), items, kind="frames")


# How each layout is recognised, from the folder and the names of its sub-folders. Half of a layout is enough where
# nothing else looks like it: the function above then says what is missing.


def is_ucf101(folder: Path, below: set[str]) -> bool:
    """Whether `folder` has its lists or its videos."""
    return bool(below & {"ucfTrainTestlist", "UCF-101"})


def is_kinetics400(folder: Path, below: set[str]) -> bool:
    """Whether `folder` has the training list."""
    return (folder / "annotations" / "train.csv").is_file()


def is_part_of_kinetics400(folder: Path, below: set[str]) -> bool:
    """Whether `folder` looks like Kinetics-400 without its training list. To be asked after `is_imagenet`."""
    only = (folder / "annotations" / "val.csv").is_file() or below <= {"annotations", "train", "val"}
    return "annotations" in below and bool(below & {"train", "val"}) and only


def is_imagenet(folder: Path, below: set[str]) -> bool:
    """Whether `folder` has images in folders of classes."""
    return ("val" in below or below == {"train"}) and _holds_images(folder / "train", folder / "val")


def is_davis(folder: Path, below: set[str]) -> bool:
    """Whether `folder` has images in the folders of DAVIS's sizes."""
    return any((folder / "JPEGImages" / size).is_dir() for size in _DAVIS_SIZES)


def is_sky_timelapse(folder: Path, below: set[str]) -> bool:
    """Whether `folder` has one of the splits."""
    return bool(below & {"sky_train", "sky_test"})


def is_realestate10k(folder: Path, below: set[str]) -> bool:
    """Whether `folder` has camera files, or videos where RealEstate10K has them."""
    if "videos" in below and below & {"train", "test"}:
        return below <= {"videos", "train", "test"} or any(next(_texts(folder, split), None) for split in _SPLITS)
    if below == {"videos"}:
        # Other collections have a folder `videos`, but rarely with YouTube's eleven letters of both cases as names.
        stems = [path.stem for path in videos_in(folder / "videos")]
        cases = any(stem != stem.lower() and stem != stem.upper() for stem in stems)
        return cases and all(re.fullmatch(r"[\w-]{11}", stem, re.ASCII) for stem in stems)
    # Captions beside videos are text too; camera files begin with an address and a row of numbers.
    first = (itertools.islice(_texts(folder, split), 20) for split in _SPLITS)
    return any(map(_is_camera_file, itertools.chain.from_iterable(first)))


def _texts(folder: Path, split: str) -> Iterator[Path]:
    return (path for path in (folder / split).glob("*.txt") if path.is_file() and not path.name.startswith("."))


def _is_camera_file(path: Path) -> bool:
    with path.open("rb") as file:
        return re.match(rb"(\xef\xbb\xbf)?\s*https?://\S*youtu\S*\s+\d+ +[-\d.]+ ", file.read(256)) is not None


def _holds_images(*folders: Path) -> bool:
    """Whether the first class folder of `folders` with images or videos has more images than videos."""
    for folder in folders:
        for path in sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith(".")):
            suffixes = [p.suffix.lower() for p in path.iterdir() if not p.name.startswith(".")]
            pictures, videos = (sum(s in known for s in suffixes) for known in (IMAGE_SUFFIXES, SUFFIXES))
            if pictures or videos:
                return pictures > videos
    return False


def _lines(path: Path, dataset: str) -> list[str]:
    if not path.is_file():
        raise NoVideosError(f"{path} is missing: it is part of {dataset}")
    try:
        # Spreadsheets and Windows editors put a byte order mark before the text.
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise NoVideosError(f"{path} is damaged ({error})") from error


@functools.lru_cache(maxsize=4)
def _kinetics_rows(path: Path) -> list[dict]:
    columns = ("label", "youtube_id", "time_start", "time_end")
    rows = list(csv.DictReader(_lines(path, "Kinetics-400")))
    for number, row in enumerate(rows, 2):
        if not all(row.get(c) for c in columns):
            raise NoVideosError(f"{path}, line {number}: expected columns {', '.join(columns)}, got {row}")
        if wrong := [f"{column} is {row[column]}" for column in columns[2:] if not row[column].isdecimal()]:
            raise NoVideosError(f"{path}, line {number}: {wrong[0]}, but names of videos have whole seconds: mend it")
    return rows


def _present(
    dataset: str,
    class_names: list[str],
    wanted: list[VideoEntry],
    where: str,
    kind: Literal["video", "frames"] = "video",
) -> SplitIndex:
    """The files, or folders of frames, that exist. Raises NoVideosError if none does."""
    is_kind = os.DirEntry.is_file if kind == "video" else os.DirEntry.is_dir

    @functools.cache  # one scan a folder: a list may name hundreds of thousands of files
    def names(folder: Path) -> set[str]:
        # A link to a missing file is not a file.
        return {entry.name for entry in os.scandir(folder) if is_kind(entry)} if folder.is_dir() else set()

    exists = [entry.path.name in names(entry.path.parent) for entry in wanted]
    items = tuple(itertools.compress(wanted, exists))
    absent = {e.name: f"expected at {e.path}" for e, found in zip(wanted, exists, strict=True) if not found}
    if not items:
        raise NoVideosError(
            f"none of the {len(wanted)} videos of {dataset} exists ({summarize(absent, 2)}); {where} "
            f"({', '.join(SUFFIXES if kind == 'video' else IMAGE_SUFFIXES)})"
        )
    return SplitIndex(dataset, tuple(class_names), items, absent, kind)
