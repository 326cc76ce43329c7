"""From any data set to ArrayRecord shards of short clips, in parallel and resumable at any moment.

`tasks` says which shards there are and makes one of them, `local` and `beam` run these tasks. The shards are read by
`readers.records`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pv_vae_jax.data.listing import NoVideosError, SplitIndex, check_folder, summarize, tell_passed_over
from pv_vae_jax.data.prepare.encoding import ClipSettings
from pv_vae_jax.data.prepare.local import prepare_split
from pv_vae_jax.data.sources import DATASETS, detect_format, list_dataset
from pv_vae_jax.data.video_writing import check_encoder

__all__ = ["ClipSettings", "prepare_dataset", "prepare_split"]


def prepare_dataset(
    source: Path,
    out: Path,
    run: Callable[[SplitIndex, Path], dict],
    *,
    dataset: str = "",
    fold: int = 1,
    splits: Sequence[str] = ("train", "test"),
) -> dict[Path, dict]:
    """Prepare the splits of a data set.

    Args:
      source: folder of the data set.
      out: folder for the splits' folders.
      run: `(files of a split, its folder)` -> its manifest, as `prepare_split` with settings.
      dataset: format of the source, a key of `DATASETS`; recognised if empty.
      fold: official split of UCF101, 1 to 3.
      splits: splits to prepare.

    Returns:
      Folder of a split -> its manifest.

    Raises:
      NoVideosError: the source is missing, prepared already, incomplete, or without videos for training, or `out` is in
        it.
      NoEncoderError: there is no encoder for H.264.
    """
    check_folder(source)
    dataset = dataset or detect_format(source)
    if dataset not in DATASETS:
        raise NoVideosError(
            f"{source} is prepared already, and training reads it as it is: use --config.data.source={source}"
        )
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise NoVideosError(f"{out} is inside the source and would be taken for classes: use another --out")
    # All lists first, so that missing files show before hours of work.
    listings = {split: list_dataset(source, split, dataset, fold) for split in dict.fromkeys(splits)}
    if "train" in listings and not listings["train"].items:
        raise NoVideosError(f"{source} holds no videos for training: add some, or prepare --split=test alone")
    for split, listing in listings.items():
        if listing.absent:
            print(f"{split}: {len(listing.absent)} files are missing: {summarize(listing.absent, 2)}", file=sys.stderr)
    for told in dict.fromkeys(tell_passed_over(listing.passed_over) for listing in listings.values()):
        if told:  # of a plain folder, once for both splits
            print(f"{source}: {told}", file=sys.stderr)
    check_encoder()
    manifests = {}
    for split, listing in listings.items():
        if listing.items:
            manifests[out / split] = run(listing, out / split)
        else:
            print(f"{split}: no files, left out", file=sys.stderr)
    return manifests
