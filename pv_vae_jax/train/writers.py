"""Where the curves and pictures of a stage go: JSON lines, TensorBoard, Weights & Biases, and writers of a program.

A writer has the methods of clu's `MetricWriter` by name and signature alone, since importing that class imports
TensorFlow. It therefore works inside clu's own `MultiWriter`, and clu's writers work in `train(writers=...)`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import secrets
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flax.traverse_util import flatten_dict

from pv_vae_jax.storage import write_json, write_text
from pv_vae_jax.typing import ConfigError

if TYPE_CHECKING:  # its configs check the names of writers
    from pv_vae_jax.train.run import Run

Arrays = Mapping[str, Any]  # name -> array
FPS = 8  # of clips


class MetricWriter:
    """The methods of clu's `MetricWriter`. A writer has its own for what it keeps; the others do nothing.

    Images are `(n, h, w, c)` or `(h, w, c)`, videos `(n, t, h, w, c)` or `(t, h, w, c)`, both uint8.
    """

    def write_summaries(self, step: int, values: Arrays, metadata: Mapping[str, Any] | None = None) -> None: ...

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

    def write_images(self, step: int, images: Arrays) -> None: ...

    def write_videos(self, step: int, videos: Arrays) -> None: ...

    def write_audios(self, step: int, audios: Arrays, *, sample_rate: int) -> None: ...

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None: ...

    def write_histograms(self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None) -> None: ...

    def write_hparams(self, hparams: Mapping[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonlWriter(MetricWriter):
    """Appends scalars to `folder/metrics.jsonl`, which reports and a resumed stage read.

    A resumed stage first removes the rows after `start_step`, and takes over the steps that were pending at
    `start_step`, so that the curve of an interrupted run equals that of an uninterrupted one.

    Attributes:
      path: path of the JSON lines.
      unwritten: `(step, terms)` of the steps up to `start_step` for which `save_pending` was called.
    """

    def __init__(self, folder: Path, start_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        rows = [row for row in read_metrics(self.path) if row["step"] <= start_step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = self.path.open("a")
        self._aside = folder / "metrics.aside.json"
        written = rows[-1]["step"] if rows else 0
        aside = _read_aside(self._aside)
        fits = aside and aside[-1][0] == start_step
        self.unwritten = [(step, terms) for step, terms in aside if step > written] if fits else []

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write a row, which is in the file when this returns."""
        self._file.write(json.dumps({"step": step} | {name: float(value) for name, value in scalars.items()}) + "\n")
        self._file.flush()

    def save_pending(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Keep the terms of single steps for the process that resumes at the last of them."""
        write_text(self._aside, json.dumps(rows))

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter(MetricWriter):
    """TensorBoard event files in `folder/tensorboard`, by tensorboardX; clips are GIFs, which need no moviepy."""

    def __init__(self, folder: Path, start_step: int = 0):
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._board.add_scalar(name, float(value), step)

    def write_images(self, step: int, images: Arrays) -> None:
        for name, pictures in images.items():
            for i, picture in enumerate(_each(pictures, 3)):
                self._board.add_image(f"{name}/{i}", picture, step, dataformats="HWC")

    def write_videos(self, step: int, videos: Arrays) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        for name, clips in videos.items():
            for i, clip in enumerate(_each(clips, 4)):
                _, height, width, colors = clip.shape
                shown = Summary.Image(height=height, width=width, colorspace=colors, encoded_image_string=gif(clip))
                self._add(Summary(value=[Summary.Value(tag=f"{name}/{i}", image=shown)]), step)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._board.add_text(name, text, step)

    def write_histograms(self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None) -> None:
        for name, values in arrays.items():
            bins: Any = (num_buckets or {}).get(name, 30)
            self._board.add_histogram(name, np.ravel(values), step, bins=bins)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        from tensorboardX.summary import hparams as summaries  # `add_hparams` would begin another run

        plain = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in hparams.items()}
        for summary in summaries(plain, {}):
            self._add(summary)

    def _add(self, summary: Any, step: int | None = None) -> None:
        self._board._get_file_writer().add_summary(summary, step)

    def flush(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class WandbWriter(MetricWriter):
    """A run of Weights & Biases for each stage (package wandb); `WANDB_MODE=offline` keeps it on this machine.

    Args:
      folder: where W&B keeps its files.
      start_step: as for the others; W&B goes on in the run of `stage`.
      stage: folder of the stage, which names the run and holds its id, `wandb.json`; by default `folder`, but in a
        bucket the two differ.

    Raises:
      ImportError: wandb is not installed.
    """

    def __init__(self, folder: Path, start_step: int = 0, stage: Path | None = None):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("writers=wandb needs wandb: pip install wandb, or leave it out of writers") from error
        stage = (stage or folder).resolve()
        self._wandb, group = wandb, stage.parent.name
        names = dict(group=group, name=f"{group}/{stage.name}", id=_wandb_id(stage), resume="allow", dir=str(folder))
        self._run = wandb.init(project="pv_vae_jax", **names)
        self._run.define_metric("*", step_metric="step")  # W&B's own counter drops steps that a resumed stage repeats

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **values})

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._log(step, {name: float(value) for name, value in scalars.items()})

    def write_images(self, step: int, images: Arrays) -> None:
        self._log(step, {name: [self._wandb.Image(p) for p in _each(pictures, 3)] for name, pictures in images.items()})

    def write_videos(self, step: int, videos: Arrays) -> None:
        with tempfile.TemporaryDirectory() as folder:  # of an array, W&B makes a video by moviepy

            def video(clip: np.ndarray) -> Any:
                path = Path(tempfile.mkstemp(".gif", dir=folder)[1])
                path.write_bytes(gif(clip))
                return self._wandb.Video(str(path), format="gif")

            self._log(step, {name: list(map(video, _each(clips, 4))) for name, clips in videos.items()})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._log(step, texts)

    def write_histograms(self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None) -> None:
        bins = num_buckets or {}
        counts = {name: np.histogram(values, bins.get(name, 30)) for name, values in arrays.items()}
        self._log(step, {name: self._wandb.Histogram(np_histogram=pair) for name, pair in counts.items()})

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._run.config.update(dict(hparams), allow_val_change=True)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(stage: Path) -> str:
    """The id of a stage's W&B run: drawn once, so that a resumed stage goes on in its run, and a new one does not."""
    record = stage / "wandb.json"
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):  # none yet, or a damaged one
        return str(json.loads(record.read_text())["id"])
    stage.mkdir(parents=True, exist_ok=True)
    drawn = secrets.token_hex(8)
    write_json(record, {"id": drawn})
    return drawn


WRITERS = {"tensorboard": TensorBoardWriter, "wandb": WandbWriter}  # of `config.writers`


def check_writers(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a writer that does not exist."""
    if unknown := [name for name in names if name not in WRITERS]:
        raise ConfigError(f"writers must be among {', '.join(WRITERS)}, got {', '.join(map(repr, unknown))}")


def missing_board(names: Sequence[str]) -> str | None:
    """What the first line of a run says if TensorBoard is wanted and a package for it is not installed."""
    if "tensorboard" in names and not all(map(importlib.util.find_spec, ("tensorboardX", "PIL"))):
        return (
            "no TensorBoard files, only metrics.jsonl: pip install tensorboardX pillow to have them (the extra "
            "[tensorboard], see docs/watching.md)"
        )
    return None


class StageWriters:
    """The writers of a stage: JSON lines at once, since training states rely on them, the others in a thread.

    So no step waits until a picture is encoded or sent. One that fails is named and left out: a dashboard that cannot
    be reached ends no training.

    The writers of a program meet all stages: they get names such as `video/loss`, and are flushed, not closed.
    """

    def __init__(self, run: Run, stage: str, start_step: int, folder: Path):
        names = run.experiment.writers
        self._jsonl = JsonlWriter(folder, start_step)
        self.unwritten, self.save_pending = self._jsonl.unwritten, self._jsonl.save_pending
        left_out = ["tensorboard"] if missing_board(names) else []
        makers = WRITERS | {"wandb": functools.partial(WandbWriter, stage=run.folder(stage))}
        self._own = []
        for name in names:
            try:
                self._own += [makers[name](folder, start_step)] if name not in left_out else []
            except ImportError:
                raise  # it says what to install
            except Exception as error:  # such as W&B's, without a login or a network
                print(f"{name} cannot start ({error}): it is left out, training goes on", file=sys.stderr)
        self._others = [(writer, "") for writer in self._own] + [(writer, f"{stage}/") for writer in run.writers]
        self._thread, self._failed = concurrent.futures.ThreadPoolExecutor(max_workers=1), list[Any]()
        for writer in self._own if start_step == 0 else ():
            self._submit(writer, "write_hparams", flatten_dict(dataclasses.asdict(run.experiment), sep="."))

    def write(self, step: int, kinds: Mapping[str, Arrays]) -> None:
        """Write the `scalars` of `step` and, as far as there are any, its `images` and `videos`."""
        self._jsonl.write_scalars(step, kinds["scalars"])
        for writer, prefix in self._others:
            for kind, values in kinds.items():
                if values:
                    self._submit(writer, f"write_{kind}", step, {prefix + name: v for name, v in values.items()})
            self._submit(writer, "flush")

    def _submit(self, writer: Any, method: str, *arguments: Any) -> None:
        def call() -> None:
            try:
                if writer not in self._failed:
                    getattr(writer, method)(*arguments)
            except Exception as error:  # a writer of anyone's may raise anything
                self._failed.append(writer)
                name = f"{type(writer).__name__}.{method}"
                print(f"{name} failed ({error}): it is left out from here on, training goes on", file=sys.stderr)

        self._thread.submit(call)

    def close(self) -> None:
        """Wait until everything is written."""
        self._jsonl.close()
        for writer in self._own:
            self._submit(writer, "close")
        self._thread.shutdown()


class NoOpWriter:
    """`StageWriters` that write nothing, for all processes of a run but the first."""

    unwritten: tuple = ()

    def write(self, step: int, kinds: Mapping[str, Arrays]) -> None: ...

    def save_pending(self, rows: list[tuple[int, dict[str, float]]]) -> None: ...

    def close(self) -> None: ...


def gif(clip: np.ndarray, fps: int = FPS) -> bytes:
    """An animated GIF of `(t, h, w, 3)` uint8, by Pillow."""
    from PIL import Image

    first, *later = [Image.fromarray(frame) for frame in np.asarray(clip)]
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=later, duration=round(1000 / fps), loop=0)
    return out.getvalue()


def _each(array: Any, ndim: int) -> np.ndarray:
    """The pictures or clips of an array that holds one or several."""
    array = np.asarray(array)
    return array[None] if array.ndim == ndim else array


def read_metrics(path: Path) -> list[dict]:
    """Rows of a metrics file up to the first damaged line, such as one that a kill cut off; [] if there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # UnicodeDecodeError and JSONDecodeError are both
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def _read_aside(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of `save_pending`; [] if the file is damaged, which changes the mean of one window and no training."""
    try:
        return [(int(step), dict(terms)) for step, terms in json.loads(path.read_bytes())]
    except (FileNotFoundError, ValueError, TypeError):
        return []
